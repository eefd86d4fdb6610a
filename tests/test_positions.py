"""The grid on which the position embedding of a user's file was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VIT_SPEC, tiny

from swag_models import get_spec, load_model
from swag_models.errors import CheckpointError
from swag_models.layouts import resize_position_embedding, translate_layout
from swag_models.models import build
from swag_models.spec import Preprocess


def test_positions_of_a_rectangle_are_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model("vit_nano_hashtags")
    state = model.state_dict()
    torch.save(state, tmp_path / "square.pth")
    load_model("vit_nano_hashtags", weights=tmp_path / "square.pth")
    assert caplog.text == ""
    path = tmp_path / "oblong.pth"
    for grid in ((4, 9), (9, 4), (3, 12), (12, 3), (3, 5), (6, 12), (10, 20), (16, 36)):
        size = (grid[0] * 8, grid[1] * 8)
        state["pos_embed"] = resize_position_embedding(model.pos_embed.detach(), (6, 6), grid)
        torch.save(state, path)
        with pytest.raises(CheckpointError) as error:
            load_model("vit_nano_hashtags", weights=path)
        assert f"positions look like {grid[0]}x{grid[1]} patches" in str(error.value)
        assert f"pass image_size={size}" in str(error.value)
        loaded = load_model("vit_nano_hashtags", weights=path, image_size=size)
        assert torch.equal(loaded.pos_embed, state["pos_embed"])
        with pytest.raises(CheckpointError, match=r"pass image_size="):  # a third grid
            load_model("vit_nano_hashtags", weights=path, image_size=(88, 40))


def test_the_image_size_that_the_user_chooses_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model("vit_nano_hashtags")
    state = model.state_dict()
    state["pos_embed"] = resize_position_embedding(model.pos_embed.detach(), (6, 6), (4, 9))
    torch.save(state, tmp_path / "x.pth")
    loaded = load_model("vit_nano_hashtags", weights=tmp_path / "x.pth", image_size=48)
    assert torch.equal(loaded.pos_embed, state["pos_embed"])
    assert "look like 4x9 patches, not 6x6; if so, pass image_size=(32, 72)" in caplog.text


@pytest.mark.parametrize("grid", [(4, 9), (9, 4), (3, 12)], ids=str)
@pytest.mark.parametrize("layout", ["swag", "torchvision"])
def test_positions_of_a_rectangle_are_noticed_in_every_layout(
    layout: Any, grid: tuple[int, int], tmp_path: Path
) -> None:
    model = load_model("vit_nano_hashtags")
    state = model.state_dict()
    state["pos_embed"] = resize_position_embedding(model.pos_embed.detach(), (6, 6), grid)
    torch.save(translate_layout(state, layout), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"look like {grid[0]}x{grid[1]} patches, not 6x6"):
        load_model("vit_nano_hashtags", weights=tmp_path / "x.pth")
    size = (grid[0] * 8, grid[1] * 8)
    loaded = load_model("vit_nano_hashtags", weights=tmp_path / "x.pth", image_size=size)
    assert torch.equal(loaded.pos_embed, state["pos_embed"])


def test_untrained_positions_look_like_no_grid(tmp_path: Path) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        for size in (16, 24, 32, 40, 48, 64):
            model = build(VIT_SPEC.config, num_classes=2, image_size=size)
            torch.save(model.state_dict(), tmp_path / "x.pth")
            loaded = load_model(VIT_SPEC, weights=tmp_path / "x.pth", image_size=size)
            assert torch.equal(loaded.pos_embed, model.pos_embed)
            load_model(VIT_SPEC, weights=tmp_path / "x.pth")


def test_a_square_in_place_of_the_models_rectangle_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "square.pth"
    state = load_model("vit_nano_hashtags").state_dict()
    torch.save(state, path)
    loaded = load_model("vit_nano_hashtags", weights=path, image_size=(32, 72))
    assert torch.equal(loaded.pos_embed, state["pos_embed"])
    assert "look like 6x6 patches, not 4x9; if so, pass image_size=(48, 48)" in caplog.text
    oblong = replace(get_spec("vit_nano_hashtags"), preprocess=Preprocess((32, 72)))
    with pytest.raises(
        CheckpointError,
        match=r"not 4x9; pass image_size=\(48, 48\), or image_size=\(32, 72\) if they are 4x9$",
    ):
        load_model(oblong, weights=path)


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan"), float("inf")])
def test_equal_positions_look_like_no_grid(
    value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tiny("vit").state_dict()
    state["pos_embed"].fill_(value)
    torch.save(state, tmp_path / "x.pth")
    loaded = load_model(VIT_SPEC, weights=tmp_path / "x.pth")
    assert loaded.pos_embed.isclose(state["pos_embed"], equal_nan=True).all()
    assert caplog.text == ""
