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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch, here and in processes: small models are no slower, and a busy machine makes several wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)
