"""Limits of the search for a state dict and for class names, on objects in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swag_models.errors import CheckpointError
from swag_models.wrappers import find_class_names, find_state_dict

PATH = Path("file.pth")


@pytest.mark.parametrize(("count", "message"), [(100, "has 100 state"), (101, "more than 100")])
def test_at_most_100_state_dicts_are_compared(count: int, message: str) -> None:
    content = {f"fold_{index}": {"cls_token": torch.ones(index + 1)} for index in range(count)}
    with pytest.raises(CheckpointError, match=message):
        find_state_dict(content, PATH)


def test_a_counter_of_averages_is_left_out_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = {"module.cls_token": torch.ones(1), "n_averaged": torch.tensor(5)}
    assert find_state_dict(state, PATH) == {"cls_token": state["module.cls_token"]}
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("key", "wanted"), [("ema", 1), ("ema.module", 1), ("a.b", 2), ("a", 2), ("a.b.module", 2)]
)
def test_a_key_names_a_state_dict_by_its_first_parts(key: str, wanted: int) -> None:
    content = {
        "ema": {"module.cls_token": torch.tensor([1])},
        "a": {"b": {"module.cls_token": torch.tensor([2])}},
    }
    assert find_state_dict(content, PATH, key)["cls_token"] == wanted


@pytest.mark.parametrize(("depth", "found"), [(0, True), (2, True), (3, False), (9, False)])
def test_class_names_are_found_below_two_keys_at_most(depth: int, found: bool) -> None:
    content: Any = {"classes": ["cat", "dog"]}
    for _ in range(depth):
        content = {"settings": content}
    assert find_class_names(content) == [("cat", "dog")] * found


@pytest.mark.parametrize("depth", [0, 1])
def test_the_average_of_lightning_is_beside_the_last_weights(depth: int) -> None:
    last: Any = {"model.cls_token": torch.tensor([1])}
    for _ in range(depth):
        last = {"model": last}
    content = {"state_dict": {"model.cls_token": torch.tensor([2])}, "current_model_state": last}
    assert find_state_dict(content, PATH)["cls_token"] == 2
