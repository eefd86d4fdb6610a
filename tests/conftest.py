"""Makes the modules beside this file importable from every test, random numbers repeatable, and the user's cache untouched."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
