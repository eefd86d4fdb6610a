"""Manifests that are damaged or made by someone else are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shards_support import make_shards

from swag_models.errors import ConfigError
from swag_models.recipe.data.manifest import MAX_CLASSES, read_manifest, verify_shards
from swag_models.recipe.data.shards import find_shards
from swag_models.recipe.data.sources import open_source


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 8, 4)


ENTRIES = ("num_classes", "count", "bytes", "samples", "shards", "rejects", "labels_sha256")
VALUES: tuple[Any, ...] = (
    None, "text", [], {}, True, -1, 1e400, float("nan"), ["text"], [{}], [[]], 10**400,
)  # fmt: skip
VALID = {"rejects": ({},), "labels_sha256": ("text",), "shards": ([],)}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_that_is_missing_or_of_another_type_is_named(
    entry: str, packed: Path, tmp_path: Path
) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    path = tmp_path / "manifest.json"
    without = {name: value for name, value in manifest.items() if name != entry}
    for value in (without, *({**manifest, entry: value} for value in VALUES)):
        path.write_text(json.dumps(value))
        if value.get(entry) in VALID.get(entry, ()):
            continue
        for read in (read_manifest, open_source, lambda path: verify_shards(path.parent)):
            with pytest.raises(ConfigError, match=entry) as caught:
                read(path)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a" * 300},
        {"name": "x\ud800.tar"},
        {"name": "\u202exe.tar"},
        {"count": "8"},
        {"bytes": -1},
        {"sha256": None},
        {"extra": 1},
    ],
)
def test_an_entry_of_a_shard_is_checked(
    change: dict[str, Any], packed: Path, tmp_path: Path
) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["shards"][1] |= change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=rf"shards\[1\].*{next(iter(change))}") as caught:
        find_shards(tmp_path)
    assert str(caught.value).isprintable()


def test_a_shard_that_is_listed_twice_and_too_many_classes_are_refused(
    packed: Path, tmp_path: Path
) -> None:
    manifest = json.loads((packed / "manifest.json").read_text())
    first = manifest["shards"][0]
    for change, message in (
        ({"shards": [first, first]}, "shards lists 'shard-000000.tar' more than once"),
        ({"samples": 0}, "samples is 0, but shards are listed"),
        ({"class_samples": [1.0]}, r"class_samples has 1 number for \d+ classes; pack again"),
        (
            {"class_samples": [-1.0] * 10, "num_classes": 10},
            "class_samples has -1 to -1; allowed: 0 to",
        ),
        (
            {"class_samples": [99.0] * 10, "num_classes": 10},
            "class_samples has 99 to 99; allowed: 0 to",
        ),
        ({"class_samples": ["a"]}, r"class_samples\[0\] is 'a'; allowed: a finite number"),
        ({"num_classes": MAX_CLASSES + 1}, "num_classes is 1000001; allowed: 0 to 1,000,000"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ConfigError, match=message):
            find_shards(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, '{"a":' * 100_000, "[]", "1", "null", '"text"', "\ud800", "9" * 5000],
)
def test_a_file_that_is_not_a_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, "utf-8", "surrogatepass")
    with pytest.raises(ConfigError, match=r"manifest.json is not the manifest of packed shards: ."):
        find_shards(tmp_path)
