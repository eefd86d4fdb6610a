"""Makes the modules beside this file importable from every test, random numbers repeatable, and the user's cache untouched."""

from collections.abc import Iterator

import pytest
import torch
from server import Server


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of weight files on loopback."""
    with Server() as server:
        yield server
