"""Errors from outside of a rank's process are reported in one line."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as torch_dist
from runs import find_port

from swag_models.errors import ConfigError, TrainingError
from swag_models.recipe.training.distributed import init_distributed


def test_a_rank_without_an_address_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(
            ConfigError,
            match=r"^rank 0 cannot connect to the other ranks \(.*MASTER_ADDR.*\); use torchrun",
        ),
        init_distributed(),
    ):
        pass


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = find_port()
    store = torch_dist.TCPStore("127.0.0.1", port, 1, is_master=True)
    settings = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(
            ConfigError,
            match=rf"^rank 0 cannot connect to the other ranks \(.*{port}.*\); use torchrun",
        ) as caught,
        init_distributed(),
    ):
        pass
    assert "\n" not in str(caught.value)
    del store


def test_running_out_of_gpu_memory_is_reported_with_a_fix() -> None:
    with pytest.raises(
        TrainingError, match=r"^out of memory on .* \(rank 0\); .*engine.micro_batch"
    ):
        take_too_much()


def test_a_batch_norm_of_one_pixel_of_one_image_is_reported_with_a_fix() -> None:
    with (
        pytest.raises(ConfigError, match=r"^a batch norm gets one value .*engine.micro_batch or"),
        init_distributed(torch.device("cpu")) as dist,
    ):
        torch.nn.BatchNorm2d(3).to(dist.device)(torch.ones(1, 3, 1, 1))


def take_too_much() -> None:
    with init_distributed() as dist:
        if dist.device.type == "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        torch.empty(2**50, device=dist.device)
