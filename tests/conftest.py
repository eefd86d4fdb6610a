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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models on one thread: with more, they mostly wait for each other, ten times as long where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
