"""Keys, signed folders and altered signatures for tests."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from swag_models.hub.hf_format import SIGNATURE_FILE
from swag_models.hub.signature import encode_envelope, find_algorithm
from swag_models.publish.signing import load_private_key

CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}


@dataclass(frozen=True)
class KeyPair:
    """Paths of the two PEM files of a key."""

    private: Path
    public: Path


def write_keys(folder: Path, key: Any = None, password: str | None = None) -> KeyPair:
    """Write a key, by default a new one on P-256, as two PEM files."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    keys = KeyPair(folder / "private.pem", folder / "public.pem")
    encryption = (
        serialization.BestAvailableEncryption(password.encode())
        if password
        else serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    keys.private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    keys.public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return keys


def read_bundle(folder: Path) -> dict[str, Any]:
    """The signature file as JSON."""
    bundle: dict[str, Any] = json.loads((folder / SIGNATURE_FILE).read_text())
    return bundle


def read_statement(folder: Path) -> dict[str, Any]:
    """The statement that a folder's signature signs."""
    payload = base64.b64decode(read_bundle(folder)["dsseEnvelope"]["payload"])
    statement: dict[str, Any] = json.loads(payload)
    return statement


def edit_bundle(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the signature file without signing it again."""
    bundle = read_bundle(folder)
    edit(bundle)
    (folder / SIGNATURE_FILE).write_text(json.dumps(bundle))


def edit_statement(folder: Path, key: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the statement, and sign it again with a key."""
    statement = copy.deepcopy(read_statement(folder))
    edit(statement)
    sign_payload(folder, key, json.dumps(statement).encode())


def sign_payload(
    folder: Path,
    key: Path,
    payload: bytes,
    encode: Callable[[bytes], bytes] = encode_envelope,
) -> None:
    """Replace the payload of a folder's signature by one that is signed with a key."""
    private = load_private_key(key)
    value = private.sign(encode(payload), find_algorithm(private))

    def edit(bundle: dict[str, Any]) -> None:
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(value).decode()

    edit_bundle(folder, edit)
