"""20,000 damaged annotation files of every format: each is read, or refused in one line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
from faults.counts import DEFECTS, judge, record, scaled
from image_support import write_images

from swag_models.recipe.data.annotations import open_annotations

pytestmark = pytest.mark.faults

CASES = 20_000
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", " ", "nan", "0", "1", "cat"),
    *(
        "../a.png",
        "/etc/passwd",
        "a\0.png",
        "\ud800",
        "\x1b[2J",
        "x" * 300,
        "http://a/b.png",
        "é|;,",
    ),
    *([], [[]], ["cat", 3], {}, {"cat": 1}, [None]),
)
NAMES = ("0.png", "1.png", "2.png")
INSERTED = (b"", b"\n", b",", b'"', b"|", b"\0", b"\xff", b"../")
ROWS = [{"file_name": name, "labels": ["cat", "dog"], "cat": 1} for name in NAMES]
COCO = {
    "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
    "annotations": [{"image_id": number, "category_id": 7} for number in range(3)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
}
SEEDS: dict[str, tuple[Any, ...]] = {
    "rows.json": (ROWS,),
    "mapping.json": ({name: ["cat"] for name in NAMES},),
    "coco.json": (COCO,),
}


def change_json(value: Any, rng: Random) -> Any:
    """Replace, remove or repeat a random part of a JSON value."""
    if isinstance(value, list) and value and rng.random() < 0.9:
        items = list(value)
        index = rng.randrange(len(items))
        match rng.randrange(6):
            case 0:
                del items[index]
            case 1:
                items.append(items[index])
            case _:
                items[index] = change_json(items[index], rng)
        return items
    if isinstance(value, dict) and value and rng.random() < 0.9:
        items = dict(value)
        key = rng.choice(list(items))
        match rng.randrange(6):
            case 0:
                del items[key]
            case 1:
                items[str(rng.choice(VALUES))] = items.pop(key)
            case _:
                items[key] = change_json(items[key], rng)
        return items
    return rng.choice(VALUES)


def change_bytes(content: bytes, rng: Random) -> bytes:
    """Change, remove or insert a few bytes."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        inserted = rng.choice(
            (b"", b"\n", b",", b'"', b"|", b"\0", b"\xff", b"../", rng.randbytes(3))
        )
        changed[start : start + rng.randint(0, 5)] = inserted
    return bytes(changed)


def make_case(number: int) -> tuple[str, bytes]:
    """A file name and its damaged content."""
    rng = Random(number)
    kind = rng.choice(
        ("rows.json", "mapping.json", "coco.json", "rows.jsonl", "list.csv", "flags.csv")
    )
    if kind in SEEDS:
        value = SEEDS[kind][0]
        for _ in range(rng.randint(1, 3)):
            value = change_json(value, rng)
        content = json.dumps(value).encode("utf-8", "surrogatepass")
    elif kind == "rows.jsonl":
        rows = change_json(ROWS, rng)
        rows = rows if isinstance(rows, list) else [rows]
        content = "\n".join(map(json.dumps, rows)).encode()
    elif kind == "list.csv":
        content = b"file_name,labels\n0.png,cat|dog\n1.png,\n2.png,dog\n"
    else:
        content = b"file_name,cat,dog\n0.png,1,0\n1.png,0,0\n2.png,1,1\n"
    if kind.endswith(".csv") or rng.random() < 0.3:
        content = change_bytes(content, rng)
    return kind, content


def open_safely(path: Path) -> None:
    """Open an annotation file; AssertionError if it names a file outside of its folder."""
    dataset, root = open_annotations(path), path.parent.resolve()
    assert all((dataset.root / name).resolve().is_relative_to(root) for name in dataset.names)
    assert all(0 <= label < dataset.num_classes for labels in dataset.labels for label in labels)


def test_damaged_annotations(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    for path, name in zip(sorted(tmp_path.iterdir()), NAMES):
        path.rename(tmp_path / name)
    counts, defects = dict[str, Counter[str]](), list[tuple[int, str]]()
    for number in range(scaled(CASES)):
        kind, content = make_case(number)
        path = tmp_path / kind
        path.write_bytes(content)
        outcome = judge(lambda path=path: open_safely(path))  # type: ignore[misc]
        counts.setdefault(kind, Counter())[outcome] += 1
        if outcome in DEFECTS:
            defects.append((number, outcome))
    for kind, numbers in counts.items():
        record("annotations", numbers, row=kind)
    assert not defects, defects[:5]
