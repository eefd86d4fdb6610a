"""Signed folders load; whatever differs from what was signed is an error that names the file."""

from __future__ import annotations

import base64
import json
import random
import shutil
from pathlib import Path

import pytest
from signing_changes import (
    BUNDLE_CHANGES,
    FILE_CHANGES,
    KEY,
    STATEMENT_CHANGES,
    set_in,
)
from signing_support import (
    KeyPair,
    edit_bundle,
    edit_statement,
    read_bundle,
    read_statement,
    sign_payload,
)
from tiny import load_tiny

from swag_models import load_model
from swag_models.errors import SignatureError
from swag_models.hub.hf_format import CONFIG_FILE, SIGNATURE_FILE
from swag_models.hub.signature import hash_public_key, load_public_key, parse_signature
from swag_models.hub.signed_folder import check_names
from swag_models.publish import save, sign_folder

MUTATIONS = 4000
WEIGHTS = "model.safetensors"

pytestmark = pytest.mark.usefixtures("caches")


def refuse(folder: Path, keys: KeyPair) -> str:
    """The message with which a folder is refused: one printable line."""
    with pytest.raises(SignatureError) as caught:
        load_model(folder, trusted_key=keys.public)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


@pytest.mark.parametrize("change", FILE_CHANGES)
def test_a_changed_folder_is_refused(change: str, folder: Path, keys: KeyPair) -> None:
    alter, expected = FILE_CHANGES[change]
    alter(folder)
    assert expected in refuse(folder, keys)


@pytest.mark.parametrize("change", BUNDLE_CHANGES)
def test_a_changed_envelope_is_refused(change: str, folder: Path, keys: KeyPair) -> None:
    alter, expected = BUNDLE_CHANGES[change]
    edit_bundle(folder, alter)
    message = refuse(folder, keys)
    assert "model.sig" in message
    assert expected in message


@pytest.mark.parametrize("change", STATEMENT_CHANGES)
def test_an_unsuitable_statement_is_refused(change: str, folder: Path, keys: KeyPair) -> None:
    alter, expected = STATEMENT_CHANGES[change]
    edit_statement(folder, keys.private, alter)
    message = refuse(folder, keys)
    assert "model.sig is not supported" in message
    assert expected in message


def test_files_that_the_signer_ignored_are_refused(folder: Path, keys: KeyPair) -> None:
    """Otherwise a signature that ignores config.json would let any config.json in."""
    (folder / CONFIG_FILE).rename(folder / ".git" / CONFIG_FILE)
    sign_folder(folder, keys.private)
    ignored = read_statement(folder)["predicate"]["serialization"]["ignore_paths"]
    edit_statement(
        folder,
        keys.private,
        set_in("predicate", "serialization", "ignore_paths", value=[*ignored, CONFIG_FILE]),
    )
    (folder / ".git" / CONFIG_FILE).rename(folder / CONFIG_FILE)
    assert f"not signed: {CONFIG_FILE}" in refuse(folder, keys)


def test_another_key_is_refused(folder: Path, keys: KeyPair, other_keys: KeyPair) -> None:
    assert "model.sig states another key than the trusted one" in refuse(folder, other_keys)
    hint = hash_public_key(load_public_key(other_keys.public))
    edit_bundle(folder, set_in(*KEY, "hint", value=hint))
    assert "was not made with the trusted key" in refuse(folder, other_keys)
    sign_folder(folder, other_keys.private)
    assert "states another key" in refuse(folder, keys)
    assert load_model(folder, trusted_key=other_keys.public).num_classes == 10


def test_the_signature_of_another_folder_is_refused(
    folder: Path, keys: KeyPair, tmp_path: Path
) -> None:
    other = save(load_tiny(), tmp_path / "other", sign=keys.private)
    shutil.copy(other / SIGNATURE_FILE, folder)
    assert "not signed: notes/naïve é.txt" in refuse(folder, keys)


def test_a_signature_of_version_0_2_is_refused(folder: Path, keys: KeyPair) -> None:
    """Its bytes to sign were ambiguous: the payload was formatted as a Python literal."""
    payload = json.dumps(read_statement(folder)).encode()
    kind = "application/vnd.in-toto+json"
    sign_payload(
        folder,
        keys.private,
        payload,
        lambda payload: f"DSSEV1 {len(kind)} {kind} {len(payload)} {payload!r}".encode(),
    )
    assert "was changed, or was not made with the trusted key" in refuse(folder, keys)


def test_no_mutation_of_the_envelope_changes_what_is_verified(
    original: Path, keys: KeyPair
) -> None:
    generator = random.Random(0)
    key = load_public_key(keys.public)
    content = (original / SIGNATURE_FILE).read_bytes()
    bundle = read_bundle(original)
    accepted = 0
    for _ in range(MUTATIONS):
        mutated = bytearray(content)
        for _ in range(generator.choice((1, 1, 1, 2, 5))):
            position = generator.randrange(len(mutated))
            match generator.randrange(4):
                case 0:
                    mutated[position] = generator.randrange(256)
                case 1:
                    mutated[position] ^= 1 << generator.randrange(8)
                case 2:
                    del mutated[position]
                case _:
                    mutated.insert(position, generator.choice(b' ,:"{}[]0aA=+/\\\n\xff'))
        try:
            signature = parse_signature(bytes(mutated), "model.sig")
            signature.verify(key)
        except SignatureError:
            continue
        accepted += 1
        # Only white space between the values differs.
        assert json.loads(bytes(mutated)) == bundle
    assert accepted < MUTATIONS / 20


def test_no_mutation_of_the_payload_is_accepted(original: Path, keys: KeyPair) -> None:
    generator = random.Random(0)
    key = load_public_key(keys.public)
    bundle = read_bundle(original)
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    for _ in range(MUTATIONS // 4):
        mutated = bytearray(payload)
        mutated[generator.randrange(len(payload))] ^= 1 << generator.randrange(8)
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(mutated).decode()
        signature = parse_signature(json.dumps(bundle).encode(), "model.sig")
        with pytest.raises(SignatureError, match="was changed, or was not made"):
            signature.verify(key)


def test_names_that_look_alike_are_shown_with_escapes() -> None:
    """An accent can be part of its letter, or a character of its own."""
    composed, decomposed = "caf\u00e9.txt", "cafe\u0301.txt"
    with pytest.raises(SignatureError) as caught:
        check_names("folder", [decomposed, "\u00fc.txt"], [composed])
    assert str(caught.value) == (
        "folder does not have the files that were signed: "
        "not signed: 'cafe\\u0301.txt', \u00fc.txt; "
        "missing: 'caf\\xe9.txt'"
    )
