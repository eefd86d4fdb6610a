"""Changes to a signed folder, after each of which it must be refused, and what the message says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swag_models.hub.hf_format import CONFIG_FILE, SIGNATURE_FILE

WEIGHTS = "model.safetensors"


def set_in(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets a value in JSON; `...` as the value deletes it."""

    def edit(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        if value is ...:
            del data[path[-1]]
        else:
            data[path[-1]] = value

    return edit


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    card, config = folder / "README.md", folder / CONFIG_FILE
    content = card.read_bytes()
    card.write_bytes(config.read_bytes())
    config.write_bytes(content)


def add(name: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")

    return write


def move_out_and_link(path: Path) -> None:
    """Replace a file or folder by a link to itself outside the folder."""
    outside = path.parent.parent / f"outside-{path.name}"
    shutil.move(path, outside)
    os.symlink(outside, path)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# What happens to a folder -> what the message says.
FILE_CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (lambda folder: flip_bit(folder / WEIGHTS), f"{WEIGHTS} is not the signed file"),
    "card": (lambda folder: flip_bit(folder / "README.md"), "README.md is not the signed file"),
    "config that is not JSON": (
        lambda folder: (folder / CONFIG_FILE).write_text("{"),
        "config.json is not the signed file",
    ),
    "file in a subfolder": (lambda folder: flip_bit(folder / "notes/naïve é.txt"), "é.txt is"),
    "contents of two files swapped": (swap, "is not the signed file"),
    "empty file": (lambda folder: (folder / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is not"),
    "longer file": (
        lambda folder: os.truncate(folder / WEIGHTS, 10**6),
        f"{WEIGHTS} is not the signed file",
    ),
    "extra file": (add("tokenizer.json"), "not signed: tokenizer.json"),
    "extra hidden file": (add(".env"), "not signed: .env"),
    "extra file in a subfolder": (add("notes/b.py"), "not signed: notes/b.py"),
    "extra file in a folder named as git's": (add("notes/.gitignore"), "signed: notes/.gitignore"),
    "name that moves the cursor": (add("a\x1b[2Jb"), r"not signed: a\x1b[2Jb"),
    "name that is not UTF-8": (lambda folder: add(os.fsdecode(b"\xff"))(folder), r"signed: \udcff"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "missing: README.md"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"missing: {WEIGHTS}"),
    "renamed file": (
        lambda folder: (folder / WEIGHTS).rename(folder / "MODEL.safetensors"),
        f"not signed: MODEL.safetensors; missing: {WEIGHTS}",
    ),
    "moved file": (
        lambda folder: (folder / WEIGHTS).rename(folder / "notes" / WEIGHTS),
        f"not signed: notes/{WEIGHTS}; missing: {WEIGHTS}",
    ),
    "link to the same content": (
        lambda folder: move_out_and_link(folder / WEIGHTS), f"{WEIGHTS} is a link"
    ),
    "folder as a link": (lambda folder: move_out_and_link(folder / "notes"), "notes is a link"),
    "link within the folder": (
        lambda folder: os.symlink(WEIGHTS, folder / "same"), "same is a link"
    ),
    "broken link": (lambda folder: os.symlink("nowhere", folder / "b"), "b is a link"),
    "pipe": (lambda folder: make_pipe(folder / WEIGHTS), f"{WEIGHTS} is not a regular file"),
    "folder in place of a file": (
        lambda folder: ((folder / "README.md").unlink(), (folder / "README.md").mkdir()),
        "missing: README.md",
    ),
    "no signature": (
        lambda folder: (folder / SIGNATURE_FILE).unlink(),
        "is not signed: it has no model.sig",
    ),
    "signature that is a pipe": (
        lambda folder: make_pipe(folder / SIGNATURE_FILE), "model.sig is a named pipe"
    ),
    "empty signature": (
        lambda folder: (folder / SIGNATURE_FILE).write_bytes(b""), "model.sig is not a signature"
    ),
    "endless signature": (
        lambda folder: os.truncate(folder / SIGNATURE_FILE, 1 << 25), "model.sig is larger than"
    ),
    "deep signature": (
        lambda folder: (folder / SIGNATURE_FILE).write_text("[" * 100_000), "is not a signature"
    ),
    "signature with a name twice": (
        lambda folder: (folder / SIGNATURE_FILE).write_text('{"a": 1, "a": 2}'), "a occurs twice"
    ),
}  # fmt: skip

ENVELOPE = ("dsseEnvelope",)
SIGNED = ("dsseEnvelope", "signatures", 0)
KEY = ("verificationMaterial", "publicKey")
BUNDLE_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "media type": (set_in("mediaType", value="application/json"), "mediaType is"),
    "payload type": (set_in(*ENVELOPE, "payloadType", value="text/plain"), "payloadType is"),
    "payload": (set_in(*ENVELOPE, "payload", value="e30="), "was changed, or was not made"),
    "payload with line breaks": (
        lambda bundle: set_in(*ENVELOPE, "payload", value=f"\n{bundle['dsseEnvelope']['payload']}")(
            bundle
        ),
        "is not a signature",
    ),
    "no payload": (set_in(*ENVELOPE, "payload", value=...), "dsseEnvelope has no payload"),
    "number as the payload": (set_in(*ENVELOPE, "payload", value=1), "payload is not a text"),
    "signature": (set_in(*SIGNED, "sig", value="MAYCAQECAQE="), "was changed, or was not made"),
    "no signature": (set_in(*ENVELOPE, "signatures", value=[]), "signatures has 0 items"),
    "two signatures": (
        lambda bundle: bundle["dsseEnvelope"]["signatures"].append({"sig": "", "keyid": ""}),
        "signatures has 2 items",
    ),
    "key id": (set_in(*SIGNED, "keyid", value="k"), "keyid is"),
    "hint": (set_in(*KEY, "hint", value="0" * 64), "states another key"),
    "no hint": (set_in(*KEY, "hint", value=...), "publicKey has no hint"),
    "list as the key": (set_in(*KEY, value=[]), "publicKey is not an object"),
    "kind of key": (set_in(*KEY, "keyDetails", value="PKCS1_RSA"), "states another key"),
    "certificate": (
        set_in("verificationMaterial", value={"x509CertificateChain": {}}),
        "verificationMaterial has no publicKey",
    ),
    "log entries": (set_in("verificationMaterial", "tlogEntries", value=[{}]), "tlogEntries is"),
    "unknown field": (set_in("extra", value=1), "unknown fields: extra"),
    "list": (set_in("dsseEnvelope", value=[]), "dsseEnvelope is not an object"),
}

RESOURCES = ("predicate", "resources")
# Statements that the trusted key signed, but that are not about all files of the folder.
STATEMENT_CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "statement type": (set_in("_type", value="https://in-toto.io/Statement/v0.1"), "_type is"),
    "predicate type": (set_in("predicateType", value="https://slsa.dev/v1"), "predicateType is"),
    "predicate of version 0.2": (
        set_in("predicateType", value="https://model_signing/Digests/v0.1"), "predicateType is"
    ),
    "parts of files": (set_in("predicate", "serialization", "method", value="shards"), "method is"),
    "other hash": (set_in("predicate", "serialization", "hash_type", value="blake3"), "hash_type"),
    "other algorithm": (set_in(*RESOURCES, 0, "algorithm", value="md5"), "algorithm is 'md5'"),
    "no files": (set_in(*RESOURCES, value=[]), "lists no files"),
    "name twice": (
        lambda statement: statement["predicate"]["resources"].append(
            {**statement["predicate"]["resources"][0], "digest": "0" * 64}
        ),
        "README.md is listed twice",
    ),
    "path out of the folder": (set_in(*RESOURCES, 0, "name", value="../README.md"), "invalid file"),
    "path with a dot": (set_in(*RESOURCES, 0, "name", value="./README.md"), "invalid file name"),
    "absolute path": (set_in(*RESOURCES, 0, "name", value="/etc/passwd"), "invalid file name"),
    "digest": (set_in(*RESOURCES, 0, "digest", value="0" * 63), "invalid SHA-256"),
    "digest of the folder": (
        set_in("subject", 0, "digest", "sha256", value="0" * 64), "the digest of the folder is"
    ),
    "no subject": (set_in("subject", value=[]), "subject has 0 items"),
    "two subjects": (lambda statement: statement["subject"].append({}), "subject has 2 items"),
    "no predicate": (set_in("predicate", value=...), "predicate is None"),
}  # fmt: skip
