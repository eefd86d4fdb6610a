"""Checkpoints of one rank: bit-exact, retained as configured, rejected if damaged."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fetch_support import list_files, small_disk, wait_until
from ranks import assert_same, flatten, one_rank
from torch import nn

from swag_models.errors import CheckpointError, OutputError
from swag_models.recipe.training.checkpointer import Checkpointer
from swag_models.recipe.training.train_state import collect_tensors, restore_tensors

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(
        parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "sgd without momentum": lambda parameters: torch.optim.SGD(
        parameters, lr=0.1, weight_decay=0.1
    ),
}


@pytest.fixture(autouse=True)
def _rank() -> Iterator[None]:
    with one_rank():
        yield


def make_tensors() -> dict[str, Any]:
    return {
        "weights": {
            "float": torch.randn(7, 5),
            "bf16": torch.randn(3, 4).bfloat16(),
            "odd": torch.tensor([torch.nan, -0.0]),
        },
        "counts": [
            {"large": torch.tensor([2**62 + 1, -5])},
            {"one": torch.tensor(7), "half": torch.tensor(0.1).half()},
        ],
        "rate": 0.1,
        "betas": (0.9, 0.95),
    }


def blank(tensors: Any) -> Any:
    """A copy with zeros."""
    if isinstance(tensors, dict):
        return {name: blank(value) for name, value in tensors.items()}
    if isinstance(tensors, list):
        return [blank(value) for value in tensors]
    return torch.zeros_like(tensors) if isinstance(tensors, torch.Tensor) else None


def save_some(checkpoints: Checkpointer, scores: dict[int, float | None]) -> None:
    for step, score in scores.items():
        checkpoints.save(step, {"step": torch.full((300,), step)}, {}, score=score)
    checkpoints.finish()


def list_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten())
        self.head = nn.Linear(8 * 6 * 6, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(images))
        return out


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def test_all_tensors_are_restored_bit_for_bit_as_they_were_at_the_save(
    tmp_path: Path,
) -> None:
    checkpoints, tensors = Checkpointer(tmp_path, 1), make_tensors()
    before, facts = copy.deepcopy(tensors), {"epoch": 3, "stream": {"position": [1, 2]}}
    checkpoints.save(5, tensors, facts)
    facts["epoch"] = 4
    for value in flatten(tensors).values():
        if isinstance(value, torch.Tensor):
            value.zero_()
    path = checkpoints.find_latest()
    assert path == tmp_path / "step-00000005"
    loaded = blank(tensors)
    assert checkpoints.load(path, loaded) == {"epoch": 3, "stream": {"position": [1, 2]}}
    assert_same(loaded, before)
    part = {"weights": {"float": torch.zeros(7, 5)}}
    checkpoints.load(path, part)
    assert_same(part, {"weights": {"float": before["weights"]["float"]}})


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path, kind: str) -> None:
    checkpoints, model = Checkpointer(tmp_path, 1), Net()
    optimizer, average = OPTIMIZERS[kind](model.parameters()), copy.deepcopy(model)
    train(model, optimizer, range(3))
    average.head.weight.data.lerp_(model.head.weight.data, 0.3)
    checkpoints.save(3, collect_tensors(model, optimizer, average), {})
    train(model, optimizer, range(3, 6))
    torch.manual_seed(1)
    other, other_average = Net(), Net()
    other_optimizer = OPTIMIZERS[kind](other.parameters())
    fresh = copy.deepcopy(other.state_dict())
    tensors = collect_tensors(other, other_optimizer, other_average)
    assert_same(other.state_dict(), fresh)
    latest = checkpoints.find_latest()
    assert latest
    checkpoints.load(latest, tensors)
    restore_tensors(tensors, other, other_optimizer, other_average)
    assert_same(other_average.state_dict(), average.state_dict())
    train(other, other_optimizer, range(3, 6))
    assert_same(other.state_dict(), model.state_dict())
    assert_same(other_optimizer.state_dict(), optimizer.state_dict())


def test_the_last_and_the_best_are_kept_over_restarts(tmp_path: Path) -> None:
    save_some(Checkpointer(tmp_path, 2), {1: 0.3, 2: 0.9, 3: None, 4: 0.5, 5: float("nan")})
    assert list_steps(tmp_path) == [2, 4, 5]
    checkpoints = Checkpointer(tmp_path, 2)
    assert checkpoints.find_best() == tmp_path / "step-00000002"
    save_some(checkpoints, {6: 0.9, 7: None, 8: 0.1})
    assert list_steps(tmp_path) == [6, 7, 8], "of equals the later is the best"
    assert checkpoints.find_latest() == tmp_path / "step-00000008"


def test_without_scores_there_is_no_best(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path / "new" / "folder", 1)
    assert (checkpoints.find_latest(), checkpoints.find_best()) == (None, None)
    save_some(checkpoints, {1: None, 2: None})
    assert checkpoints.find_best() is None
    assert list_steps(checkpoints.folder) == [2]


def test_polling_completes_a_finished_save(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, 1)
    checkpoints.save(1, make_tensors(), {})
    assert not (tmp_path / "step-00000001").exists(), "not before anyone asks"

    def poll() -> bool:
        checkpoints.poll()
        return (tmp_path / "step-00000001").exists()

    wait_until(poll)
    assert checkpoints.finish() is None
    checkpoints.poll()


def test_a_step_saved_again_replaces_the_first(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, 1)
    for value in (1.0, 2.0):
        checkpoints.save(4, {"value": torch.tensor(value)}, {"value": value}, wait=True)
    loaded = {"value": torch.tensor(0.0)}
    assert checkpoints.load(tmp_path / "step-00000004", loaded) == {"value": 2.0}
    assert loaded["value"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    save_some(Checkpointer(tmp_path, 3), {1: None, 2: None})
    (tmp_path / "step-00000002").rename(
        tmp_path / ".step-00000002.old"
    )  # killed while another took its place
    for name in (".step-00000003.tmp", ".step-00000001.old", "step-00000009"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_bytes(b"half")
    checkpoints = Checkpointer(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000001",
        "step-00000002",
        "step-00000009",
    ]
    assert checkpoints.find_latest() == tmp_path / "step-00000002", "one without state.json is none"
    checkpoints.load(tmp_path / "step-00000002", {"step": torch.zeros(300, dtype=torch.int64)})


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "other bytes"])
def test_damage_is_reported_with_the_name_of_the_checkpoint(
    tmp_path: Path, name: str, damage: str
) -> None:
    checkpoints = Checkpointer(tmp_path, 1)
    save_some(checkpoints, {1: None})
    path = tmp_path / "step-00000001"
    content = (path / name).read_bytes()
    changed = {
        "cut": content[:-1],
        "empty": b"",
        "other bytes": bytes(byte ^ 0x55 for byte in content),
    }
    if damage == "gone":
        (path / name).unlink()
    else:
        (path / name).write_bytes(changed[damage])
    with pytest.raises(CheckpointError, match=f"checkpoint {path} cannot be loaded: ") as caught:
        checkpoints.load(path, {"step": torch.zeros(300, dtype=torch.int64)})
    assert "\n" not in str(caught.value)


def test_another_model_is_rejected(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, 1)
    save_some(checkpoints, {1: None})
    for tensors in ({"other": torch.zeros(300)}, {"step": torch.zeros(299)}):
        with pytest.raises(CheckpointError, match="step-00000001"):
            checkpoints.load(tmp_path / "step-00000001", tensors)


def test_a_full_disk_keeps_the_last_checkpoint_and_training_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        checkpoints = Checkpointer(disk / "run", 1)
        save_some(checkpoints, {1: None})
        large, small = {"value": torch.randn(1_000_000)}, {"value": torch.randn(10)}
        with caplog.at_level(logging.WARNING, "swag_models"):
            checkpoints.save(2, large, {})
            assert checkpoints.finish()
        assert [
            record.getMessage().split(":")[0]
            for record in caplog.records
            if record.name == "swag_models"
        ] == ["the checkpoint of step 2 cannot be written"]
        assert "No space left on device" in caplog.text
        assert checkpoints.failed == 1
        assert [path.name for path in (disk / "run").iterdir()] == ["step-00000001"]
        with pytest.raises(OutputError, match="step-00000003"):
            checkpoints.save(3, large, {}, wait=True)
        checkpoints.save(4, small, {}, wait=True)
        assert checkpoints.failed == 2
        assert list_steps(disk / "run") == [4]
        # Room for the tensors, but not for state.json.
        free = 3 * 2**20 - sum(-(-path.stat().st_size // 4096) * 4096 for path in list_files(disk))
        (disk / "other").write_bytes(bytes(free - 4 * 4096))
        checkpoints.save(5, small, {"much": "x" * 100_000})
        assert checkpoints.finish()
        assert checkpoints.find_latest() == disk / "run" / "step-00000004"
        assert json.loads((disk / "run" / "step-00000004" / "state.json").read_text())["step"] == 4


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        Checkpointer(tmp_path / "file", 1)
