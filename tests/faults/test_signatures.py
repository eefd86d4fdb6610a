"""Altered envelopes, statements, keys and folders: none is taken for what the key signed."""

from __future__ import annotations

import base64
import copy
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from faults.counts import DEFECTS, judge, record, scaled
from signing_support import CURVES, write_keys

from swag_models.hub.signature import (
    encode_envelope,
    find_algorithm,
    load_public_key,
    parse_signature,
)
from swag_models.hub.signed_folder import verify_folder
from swag_models.publish import sign_folder
from swag_models.publish.signing import load_private_key, make_signature

pytestmark = pytest.mark.faults
DIGESTS = {"a.txt": "0" * 64, "b/c": "1" * 64, "d": "2" * 64}
VALUES: list[Any] = [
    None, True, 0, -1, 1e400, 10**30, "", "x", "\ud800", "\0", "../x", "a\nb", "\x1b[2J", [], {},
    [[]], {"a": 1}, [None], "0" * 64, "A" * 64, "a.txt", "sha256",
]  # fmt: skip


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Change, remove, insert or repeat some bytes."""
    mutated = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 5))):
        position, length = generator.randrange(len(mutated)), generator.randrange(40)
        match generator.randrange(5):
            case 0:
                mutated[position] = generator.randrange(256)
            case 1:
                mutated[position] ^= 1 << generator.randrange(8)
            case 2:
                del mutated[position : position + length]
            case 3:
                mutated.insert(position, generator.choice(b' ,:"{}[]0aA=+/\\\n\xff'))
            case _:
                mutated[position:position] = mutated[position : position + length]
        if not mutated:
            return b""
    return bytes(mutated)


def mutate_json(value: Any, generator: random.Random) -> Any:
    """Remove, repeat, rename or replace a value somewhere in JSON."""
    places: list[tuple[Any, Any]] = []

    def find(container: Any) -> None:
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, item in pairs:
            places.append((container, key))
            if isinstance(item, (dict, list)):
                find(item)

    value = copy.deepcopy(value)
    find(value)
    container, key = generator.choice(places)
    item = container.pop(key)
    match generator.randrange(4), container:
        case 0, _:
            pass
        case 1, list():
            container += [item, copy.deepcopy(item)]
        case 1, dict():
            container[generator.choice(["", "name", "x"])] = item
        case _, dict():
            container[key] = copy.deepcopy(generator.choice(VALUES))
        case _:
            container.insert(key, copy.deepcopy(generator.choice(VALUES)))
    return value


def finish(row: str, counts: Counter[str]) -> None:
    record("signatures", counts, row)
    assert not [outcome for outcome in (*DEFECTS, "wrong") if counts[outcome]], counts


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_envelopes(kind: str, key: ec.EllipticCurvePrivateKey) -> None:
    generator, counts = random.Random(1), Counter[str]()
    content = make_signature(DIGESTS, "model", key)
    bundle, public_key = json.loads(content), key.public_key()
    for _ in range(scaled(100_000)):
        altered = (
            mutate(content, generator)
            if kind == "bytes"
            else json.dumps(mutate_json(bundle, generator)).encode()
        )
        digests: list[dict[str, str]] = []

        def read(altered: bytes = altered, digests: list[dict[str, str]] = digests) -> None:
            signature = parse_signature(altered, "model.sig")
            signature.verify(public_key)
            digests.append(signature.read_digests())

        outcome = judge(read)
        # Accepted if it means the same: other white space, or without a field that may be missing.
        counts[outcome if digests in ([], [DIGESTS]) else "wrong"] += 1
    finish(f"envelope: changed {kind}", counts)


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_signed_statements(kind: str, key: ec.EllipticCurvePrivateKey) -> None:
    generator, counts = random.Random(2), Counter[str]()
    bundle = json.loads(make_signature(DIGESTS, "model", key))
    envelope = bundle["dsseEnvelope"]
    content = base64.b64decode(envelope["payload"])
    statement = json.loads(content)
    for _ in range(scaled(100_000)):
        payload = (
            mutate(content, generator)
            if kind == "bytes"
            else json.dumps(mutate_json(statement, generator)).encode()
        )
        value = key.sign(encode_envelope(payload), find_algorithm(key))
        envelope["payload"] = base64.b64encode(payload).decode()
        envelope["signatures"][0]["sig"] = base64.b64encode(value).decode()
        signature = parse_signature(json.dumps(bundle).encode(), "model.sig")
        signature.verify(key.public_key())
        counts[judge(signature.read_digests)] += 1
    finish(f"statement with a valid signature: changed {kind}", counts)


def test_keys(tmp_path: Path) -> None:
    generator, counts = random.Random(3), Counter[str]()
    pairs = [
        write_keys(tmp_path / name, ec.generate_private_key(CURVES[name]())) for name in CURVES
    ]
    for _ in range(scaled(100_000)):
        pair = generator.choice(pairs)
        path, load = generator.choice(
            [(pair.private, load_private_key), (pair.public, load_public_key)]
        )
        altered = mutate(path.read_bytes(), generator)
        if generator.random() < 0.6:  # of the numbers inside
            first, *lines, last = path.read_text().splitlines()
            inner = base64.encodebytes(mutate(base64.b64decode("".join(lines)), generator))
            altered = f"{first}\n{inner.decode()}{last}\n".encode()
        (tmp_path / "key.pem").write_bytes(altered)
        counts[judge(lambda load=load: load(tmp_path / "key.pem"))] += 1  # type: ignore[misc]
    finish("key files: changed bytes", counts)


def change_folder(folder: Path, generator: random.Random) -> None:
    """Make one change to the files of a folder, which may have no effect."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = generator.choice(files), generator.choice(files)
    new = generator.choice([folder, *folder.rglob("*/")]) / generator.choice(
        ["n", ".git", "d", "é"]
    )
    changes: list[Callable[[], object]] = [
        path.unlink,
        lambda: path.rename(new),
        lambda: path.rename(other),
        lambda: shutil.copy(path, other) if path != other else None,
        # Opening a FIFO would wait for a reader.
        lambda: new.write_bytes(b"new") if new.is_file() or not new.exists() else None,
        lambda: new.mkdir(),
        lambda: new.symlink_to(path),
        lambda: os.link(path, new),
        lambda: os.mkfifo(new),
        lambda: path.write_bytes(mutate(path.read_bytes() or b"x", generator)),
        lambda: os.utime(path),
        lambda: path.chmod(0o600),
    ]
    try:
        generator.choice(changes)()
    except OSError:  # no such change is possible
        return


def list_content(folder: Path) -> dict[str, bytes | None]:
    """The content of every file apart from git's, None for what is not a file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
        if path.relative_to(folder).parts[0] != ".git"
    }


def test_folders(tmp_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    generator, counts = random.Random(4), Counter[str]()
    keys = write_keys(tmp_path / "keys", key)
    original = tmp_path / "original"
    (original / "b").mkdir(parents=True)
    for name in ("a.txt", "b/c", "d", "config.json"):
        (original / name).write_text(name)
    sign_folder(original, keys.private)
    before = list_content(original)
    for _ in range(scaled(10_000)):
        folder = tmp_path / "folder"
        shutil.copytree(original, folder)
        for _ in range(generator.choice((1, 1, 2, 3))):
            change_folder(folder, generator)
        outcome = judge(lambda folder=folder: verify_folder(folder, key.public_key()))  # type: ignore[misc]
        after = list_content(folder)
        if outcome == "clean" and after == before:
            outcome = "wrong"
        # The signature file itself may differ in white space.
        if outcome == "accepted" and after | {"model.sig": None} != before | {"model.sig": None}:
            outcome = "wrong"
        counts[outcome] += 1
        shutil.rmtree(folder)
    finish("folders: changed, moved, added and removed files", counts)
