"""Makes the modules beside this file (`tiny`, `golden`) importable from every test, and random numbers repeatable."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
