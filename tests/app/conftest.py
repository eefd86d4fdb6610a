"""A folder of images to search."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SCENES = Path(__file__).parents[2] / "examples" / "scenes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SCENES, tmp_path / "a" / "scenes")
    return tmp_path / "a"
