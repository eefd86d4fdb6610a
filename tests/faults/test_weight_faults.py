"""Damaged and hostile weight files, configs, indexes, specs and names."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.counts import DEFECTS, judge, record, scaled
from safetensors.torch import save
from tiny import VIT_SPEC, tiny

from swag_models import get_spec, load_classes, load_model
from swag_models.checkpoint import read_state_dict
from swag_models.export import export_model, read_metadata
from swag_models.hub.cache import is_complete
from swag_models.hub.hf_format import CONFIG_FILE, INDEX_FILE
from swag_models.publish import save as save_model
from swag_models.spec import ModelSpec

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore")]
SEED, LIMIT_S = 14, 15
NUMBERS = [0, -1, 1, 3, 1.5, 2**31, 2**63, 10**18, 10**400, 1e308, -0.0, True, None]
VALUES = [*NUMBERS, "", "a", "\x1b[2J", "\ud800", "a" * 100_000, [], {}, [[1]], {"a": {}}, "../x"]


def flip(data: bytes, chance: random.Random) -> bytes:
    """Change bytes, cut, repeat or insert a part; mostly at the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        end = chance.choice((40, 600, len(changed))) or 1
        position = chance.randrange(min(end, len(changed)) or 1)
        match chance.randrange(5):
            case 0 | 1:
                if changed:
                    changed[position] = chance.randrange(256)
            case 2:
                del changed[position:]
            case 3:
                changed[position:position] = chance.randbytes(chance.randrange(9))
            case _:
                del changed[position : position + chance.randrange(64)]
    return bytes(changed)


def mutate(value: Any, chance: random.Random) -> Any:
    """Change one part of a JSON value."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        value, key = dict(value), chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                del value[key]
            case 1:
                value[str(chance.choice(VALUES))[:50]] = value[key]
            case _:
                value[key] = mutate(value[key], chance)
        return value
    if isinstance(value, list) and value and chance.random() < 0.9:
        value, index = list(value), chance.randrange(len(value))
        value[index] = mutate(value[index], chance)
        return value * chance.choice((1, 1, 1, 2, 100))
    if isinstance(value, int) and chance.random() < 0.5:
        return value * chance.choice((2, 10, 1000, 10**6)) + chance.choice((-1, 0, 1))
    return chance.choice(VALUES)


def to_json(value: Any, chance: random.Random) -> bytes:
    text = json.dumps(value)
    if chance.random() < 0.05:
        return text.encode()[: chance.randrange(len(text))]
    if chance.random() < 0.02:
        return b'{"a":' * chance.choice((10, 1000, 100_000)) + text.encode()
    return text.encode()


def make_file(kind: str) -> bytes:
    state = {key: value.clone() for key, value in list(tiny("vit").state_dict().items())[:8]}
    if kind == "safetensors":
        return save(state)
    buffer = io.BytesIO()
    torch.save({"model": state, "args": {"lr": 0.1}}, buffer,
               _use_new_zipfile_serialization=kind == "zip")  # fmt: skip
    return buffer.getvalue()


def change_header(data: bytes, chance: random.Random) -> bytes:
    """Change the JSON header of a safetensors file, and keep the rest."""
    length = struct.unpack("<Q", data[:8])[0]
    header = to_json(mutate(json.loads(data[8 : 8 + length]), chance), chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def change_pickle(data: bytes, chance: random.Random) -> bytes:
    """Change the pickle of a zip archive, whose checksums stay right."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, flip(content, chance) if name.endswith("data.pkl") else content)
    return result.getvalue()


def make_program(_: bytes, chance: random.Random) -> bytes:
    """Make a pickle of random operations, in the form of a legacy file."""
    opcodes = [bytes([code]) for code in range(256)]
    parts = [b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"(", b")", b"}", b"]", b"u",
             b"X\x01\x00\x00\x00a", b"R", b"b", b"\x81", b"2", b"q\x00", b"h\x00", b"t", b"\x85",
             b"Q", b"ccollections\nOrderedDict\n", b"c" + b"a" * 100_000 + b"\nb\n"]  # fmt: skip
    program = b"".join(
        chance.choice(parts if chance.random() < 0.95 else opcodes) for _ in range(60)
    )
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    return magic + b"\x80\x02" + program + b"." + pickle.dumps([], 2)


CHANGES: dict[str, tuple[str, Callable[[bytes, random.Random], bytes]]] = {
    "safetensors: bytes": ("safetensors", flip),
    "safetensors: header": ("safetensors", change_header),
    "torch zip: bytes": ("zip", flip),
    "torch zip: pickle": ("zip", change_pickle),
    "torch legacy: bytes": ("legacy", flip),
    "torch legacy: pickle program": ("legacy", make_program),
}


def run(section: str, row: str, calls: Iterator[Callable[[], object]]) -> None:
    """Count the outcomes of calls, record them, and fail for a defect."""
    counts: Counter[str] = Counter()
    examples = []
    for number, call in enumerate(calls):
        outcome = judge(call, LIMIT_S)
        counts[outcome] += 1
        if outcome in DEFECTS and len(examples) < 5:
            examples.append((number, outcome, describe_failure(call)))
    record(section, counts, row=row)
    assert not examples


def describe_failure(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "accepted"


@pytest.mark.parametrize("row", CHANGES)
def test_weight_files(row: str, tmp_path: Path) -> None:
    kind, change = CHANGES[row]
    original, chance = make_file(kind), random.Random(SEED)
    path = tmp_path / "weights"

    def calls() -> Iterator[Callable[[], object]]:
        for number in range(scaled(100_000)):
            path.write_bytes(change(original, chance))
            backend: Any = ("mmap", "pread")[number % 2]
            yield lambda backend=backend: (
                is_complete(path),
                read_state_dict(path, backend=backend),
            )

    run("weights", row, calls())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    spec = get_spec("vit_nano_hashtags")
    return save_model(load_model(spec.name), tmp_path / "model", license="mit",
                      max_shard_size=100_000)  # fmt: skip


@pytest.mark.parametrize("row", ["config.json: load", "config.json: spec", "index"])
def test_folders(row: str, folder: Path) -> None:
    path = folder / (INDEX_FILE if row == "index" else CONFIG_FILE)
    original, chance = json.loads(path.read_text()), random.Random(SEED)
    cases = {"config.json: load": 100_000, "config.json: spec": 100_000, "index": 100_000}

    def read() -> None:
        if row == "config.json: load":
            load_model(folder)
        elif row == "index":
            read_state_dict(path)
        else:
            str(get_spec(folder)), load_classes(folder)

    def calls() -> Iterator[Callable[[], object]]:
        for _ in range(scaled(cases[row])):
            value = original
            for _ in range(chance.choice((1, 1, 2))):
                part = "swag_models" if row != "index" and chance.random() < 0.9 else None
                if part and isinstance(value, dict) and part in value:
                    value = {**value, part: mutate(value[part], chance)}
                else:
                    value = mutate(value, chance)
            path.write_bytes(to_json(value, chance))
            yield read

    run("configs", row, calls())


def test_specs() -> None:
    original, chance = json.loads(VIT_SPEC.to_json()), random.Random(SEED)

    def calls() -> Iterator[Callable[[], object]]:
        for _ in range(scaled(100_000)):
            text = to_json(mutate(original, chance), chance).decode()
            yield lambda text=text: ModelSpec.from_json(text).to_json()

    run("configs", "ModelSpec.from_json", calls())


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(SEED)
    parts = ["hf-hub:", "vit_b16", "org/repo", "@", "main", "..", "/", "~", "~root", "\0", "\ud800",
             "\x1b[2J", "é", "a" * 300, "file://", "https://x", "pipe:", "*", "", " ", "\n", "%2e",
             "package://", "local-dir:", ":", "\\", "model.safetensors", "0" * 40]  # fmt: skip
    others: list[Any] = [None, 3, True, b"x", [], {}, io.BytesIO(), torch.ones(1), VIT_SPEC.config]

    def calls() -> Iterator[Callable[[], object]]:
        for number in range(scaled(100_000)):
            name: Any = "".join(chance.choice(parts) for _ in range(chance.randrange(1, 6)))
            if chance.random() < 0.02:
                name = chance.choice(others)
            if number % 2:
                yield lambda name=name: get_spec(name)
            else:
                yield lambda name=name: load_model("vit_nano_hashtags", weights=name)

    run("configs", "names, URIs and paths", calls())


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_exported_files(suffix: str, tmp_path: Path) -> None:
    path, chance = tmp_path / f"model{suffix}", random.Random(SEED)
    export_model(tiny("vit"), path, spec=VIT_SPEC)
    original = path.read_bytes()

    def calls() -> Iterator[Callable[[], object]]:
        for number in range(scaled(10_000)):
            if number % 2:  # the metadata and the directory are at the end
                path.write_bytes(flip(original[::-1], chance)[::-1])
            else:
                path.write_bytes(flip(original, chance))
            yield lambda: read_metadata(path)

    run("weights", f"exported {suffix}", calls())
