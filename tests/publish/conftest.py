"""Keys and signed folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from signing_support import KeyPair, write_keys
from tiny import load_tiny

from swag_models.publish import save, sign_folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return write_keys(tmp_path_factory.mktemp("other_keys"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, keys: KeyPair) -> Path:
    """A signed folder, with a subfolder and files of git, which are not signed."""
    folder = tmp_path_factory.mktemp("signed") / "model"
    save(load_tiny(), folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "naïve é.txt").write_text("text")
    (folder / ".gitattributes").write_text("*.safetensors lfs\n")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    sign_folder(folder, keys.private)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model", symlinks=True))
