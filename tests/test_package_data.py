"""All files of the package that are not modules are listed as package data, for wheels."""

from __future__ import annotations

from pathlib import Path

import pytest

import swag_models

PACKAGE = Path(swag_models.__file__).parent
PYPROJECT = PACKAGE.parent / "pyproject.toml"


@pytest.mark.skipif(not PYPROJECT.exists(), reason="the package is installed, not a checkout")
def test_package_data_lists_every_file() -> None:
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    options = tomllib.loads(PYPROJECT.read_text("utf-8"))["tool"]["setuptools"]
    patterns = options["package-data"]["swag_models"]
    included = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {
        path
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    }
    assert files - included == set()
    assert all(any(PACKAGE.glob(pattern)) for pattern in patterns)
