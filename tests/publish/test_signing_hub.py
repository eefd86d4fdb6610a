"""Signed models on a Hub on loopback: pushed, downloaded and verified, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_hub import Hub
from hub_support import REPO, list_requests, push, read_files, run
from signing_support import KeyPair
from tiny import load_tiny

from swag_models.publish import save, sign_folder

NAME = f"hf-hub:{REPO}"
OPEN = """
import json, sys
from swag_models.errors import SwagModelsError
from swag_models.hub.signed_model import open_signed
try:
    model = open_signed(sys.argv[1], sys.argv[2], progress=False)
    print(json.dumps([str(model.weights), model.spec.sources[0].url, sorted(model.folder.files)]))
except SwagModelsError as error:
    sys.exit(f"{type(error).__name__}: {error}")
assert "torch" not in sys.modules
"""
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def model(tmp_path: Path, keys: KeyPair) -> Path:
    """A signed folder without other files than those of a model."""
    return save(load_tiny(), tmp_path / "model", license="mit", sign=keys.private)


def open_model(name: str, keys: KeyPair) -> tuple[Any, str]:
    """(path of the weights, their URL, names of the files), None on failure; and the messages."""
    return run(OPEN, name, str(keys.public))


def test_a_signed_repository_is_verified(
    hub: Hub, model: Path, keys: KeyPair, other_keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(model) | {".gitattributes": b"lfs"})
    opened, errors = open_model(NAME, keys)
    assert opened, errors
    assert opened[1:] == [f"hf://{REPO}@{commit}/model.safetensors", FILES]
    assert Path(opened[0]).read_bytes() == (model / "model.safetensors").read_bytes()
    assert errors == "model: the weights are licensed MIT\n"
    hub.requests.clear()
    assert open_model(f"{NAME}@{commit}", keys) == (opened, "")
    with monkeypatch.context() as patched:
        patched.setenv("HF_HUB_OFFLINE", "1")
        assert open_model(NAME, keys) == (opened, "")
    assert not hub.requests
    _, errors = open_model(f"{NAME}@{commit}", other_keys)
    assert "SignatureError:" in errors
    assert "states another key than the trusted one" in errors
    # The cache of the Hub's client is verified as well.
    weights = Path(opened[0]).resolve()
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    _, errors = open_model(f"{NAME}@{commit}", keys)
    assert "model.safetensors is not the signed file" in errors
    card = Path(opened[0]).with_name("README.md")
    card.unlink()
    card.symlink_to(model / "README.md")
    _, errors = open_model(f"{NAME}@{commit}", keys)
    assert "README.md is a link" in errors


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.sig": None}, "is not signed: it has no model.sig"),
        ({"custom_code.py": b""}, "not signed: custom_code.py"),
        ({"README.md": None}, "missing: README.md"),
        ({"config.json": b"{"}, "config.json is not the signed file"),
        ({"model.sig": b"{"}, "model.sig is not a signature of Model Signing 1.x"),
    ],
)
def test_a_changed_repository_is_refused(
    change: dict[str, bytes | None], expected: str, hub: Hub, model: Path, keys: KeyPair
) -> None:
    files: dict[str, bytes | None] = {**read_files(model), **change}
    hub.put_repo(REPO, {name: content for name, content in files.items() if content is not None})
    opened, errors = open_model(NAME, keys)
    assert opened is None
    assert errors.startswith("SignatureError: ")
    assert expected in errors
    assert errors.count("\n") == 1
    if "is not the signed file" not in expected:  # nothing but the signature was downloaded
        assert not [line for line in list_requests(hub) if "safetensors" in line]


def test_a_model_that_is_not_complete_on_this_machine_is_refused_offline(
    hub: Hub, model: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put_repo(REPO, read_files(model))
    opened, errors = open_model(NAME, keys)
    assert opened, errors
    Path(opened[0]).unlink()
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    _, errors = open_model(NAME, keys)
    assert "missing: model.safetensors" in errors
    _, errors = open_model("hf-hub:org/other", keys)
    assert "FetchError: the signature of hf-hub:org/other@main is not on this machine" in errors


def test_a_signed_folder_is_pushed_as_it_is(
    hub: Hub, token: None, model: Path, keys: KeyPair
) -> None:
    sent, errors = push(model)
    assert sent, errors
    contents = dict(hub.repos[REPO].commits[sent[1]])
    del contents[".gitattributes"]
    assert contents == read_files(model)
    opened, errors = open_model(NAME, keys)
    assert opened, errors
    (model / "README.md").write_text("other")
    sent, errors = push(model)
    assert sent is None
    assert "README.md is not the signed file" in errors
    # The old signature is deleted in the commit of a new version without one.
    (model / "model.sig").unlink()
    sent, errors = push(model)
    assert sent, errors
    assert "model.sig" not in hub.repos[REPO].commits[sent[1]]


def test_pushed_files_can_be_signed(
    hub: Hub, token: None, folders: dict[str, Path], keys: KeyPair
) -> None:
    sent, errors = push(folders["sharded"], sign=str(keys.private))
    assert sent, errors
    assert b'load_model("hf-hub:org/tiny")' in hub.repos[REPO].commits[sent[1]]["README.md"]
    opened, errors = open_model(NAME, keys)
    assert opened, errors
    assert {"README.md", "config.json", "model.safetensors.index.json"} < set(opened[2])


def test_files_that_the_signature_would_not_cover_prevent_a_push(
    hub: Hub, token: None, model: Path, keys: KeyPair
) -> None:
    (model / "notes.txt").write_text("private")
    sent, errors = push(model)
    assert sent is None
    assert "not signed: notes.txt" in errors
    sign_folder(model, keys.private)
    sent, errors = push(model)
    assert sent is None
    assert "is signed with notes.txt, which a published model does not have" in errors
    sent, errors = push(model, sign=str(keys.private))
    assert sent, errors
    hub.put_repo(REPO, {"custom_code.py": b""})
    sent, errors = push(model, sign=str(keys.private))
    assert sent is None
    assert "files that the signature does not cover" in errors
    assert "custom_code.py; delete them" in errors
