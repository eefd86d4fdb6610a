"""Patch dropout and images of several sizes in whole runs and in estimates."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SETTINGS, make_digits, read_losses, read_weights
from torch import Tensor

from swag_models import load_model
from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError
from swag_models.publish.model_info import count_flops
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import Engine, Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.transforms import Augmentation
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.estimate import plan
from swag_models.recipe.training.memory import estimate_activations, find_arch
from swag_models.recipe.training.train_state import TrainState
from swag_models.recipe.training.trainer import train
from swag_models.spec import ModelSpec, Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = Run("vit_nano", 224, 64, steps=10, engine=Engine(precision="fp32"))


def make_spec(size: int) -> ModelSpec:
    return replace(find_arch("vit_nano"), num_classes=10, preprocess=Preprocess(size))


def train_digits(data: Path, output: Path, *settings: str, **options: Any) -> Path:
    run = override(get_preset("vit_nano_hashtags").run, [*SETTINGS, "steps=8", *settings])
    return train(run, data, output, progress=False, **options)


def test_estimates_know_the_patches_that_are_dropped() -> None:
    dropped = replace(RUN, patch_drop_rate=0.5)
    plans = [plan(run, 1000, num_classes=10) for run in (RUN, dropped)]
    assert plans[0].flops == 3 * count_flops(make_spec(224))
    assert plans[1].flops == 3 * count_flops(make_spec(224), patch_drop_rate=0.5)
    assert plans[1].flops < 0.55 * plans[0].flops
    config = make_spec(224).config
    assert isinstance(config, ViTConfig)
    tokens, widths = 1 + 28**2 // 2, 8 * config.width + 2 * config.mlp_width
    assert estimate_activations(dropped) == config.depth * tokens * widths * 4


def test_estimates_know_the_sizes_of_training_images() -> None:
    mixed = replace(RUN, augment=Augment(sizes=(128, 256, 256)))
    small, large = (count_flops(make_spec(size)) for size in (128, 256))
    assert plan(mixed, 1000, num_classes=10).flops == 3 * round((small + 2 * large) / 3)
    assert estimate_activations(mixed) == estimate_activations(replace(RUN, image_size=256))
    for arch, size, reason in (
        ("vit_nano", 100, "image size 100x100 is not a multiple of the patch size 8; nearest: 96x"),
        ("regnety_nano", 16, "image size 16x16 is too small"),
    ):
        run = replace(RUN, arch=arch, augment=Augment(sizes=(128, size)))
        with pytest.raises(ConfigError, match=rf"^augment.sizes: {reason}"):
            plan(run, 1000, num_classes=10)
    run = replace(RUN, arch="regnety_nano", patch_drop_rate=0.5)
    with pytest.raises(ConfigError, match=r"^patch_drop_rate is 0.5; a RegNet has no patches"):
        plan(run, 1000, num_classes=10)


@pytest.mark.slow
def test_runs_with_several_sizes_and_dropped_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published model and its validation have `image_size`; each setting changes the losses."""
    images = make_digits(tmp_path / "train", 60)
    held_out = make_digits(tmp_path / "val", 20, first=60)
    shapes: list[tuple[int, ...]] = []
    tokens: list[tuple[int, ...]] = []
    prepare = TrainState.prepare_inputs

    def record(state: TrainState, pixels: Tensor) -> Tensor:
        shapes.append(tuple(pixels.shape))
        if not tokens:
            blocks = state.model.get_submodule("blocks.0")
            blocks.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape))
        return prepare(state, pixels)

    monkeypatch.setattr(TrainState, "prepare_inputs", record)
    losses = {}
    for settings in (
        (),
        ("patch_drop_rate=0.5",),
        ("augment.sizes=16,32,48",),
        ("augment.sizes=16,32,48", "patch_drop_rate=0.5"),
        ("augment.sizes=16,32,48", "patch_drop_rate=0.5", "engine.grad_checkpointing=true"),
        ("augment.sizes=16,32,48", "patch_drop_rate=0.5", "engine.workers=2"),
    ):
        shapes.clear(), tokens.clear()
        output = tmp_path / f"run {len(losses)}"
        train_digits(images, output, *settings, val=held_out)
        losses[settings] = read_losses(output)
        mixed = "augment.sizes=16,32,48" in settings
        assert {shape[2] for shape in shapes} == ({16, 32, 48} if mixed else {32})
        rate = 0.5 if "patch_drop_rate=0.5" in settings else 0
        patches = [(side // 8) ** 2 for _, _, side, _ in shapes]
        expected = [1 + max(1, int(count * (1 - rate))) for count in patches]
        # a validation image has 1 + 16
        assert {shape[1] for shape in tokens} | {17} == {*expected, 17}
        spec = load_model(output / "model").spec
        assert spec is not None
        assert spec.image_size == 32
        card = (output / "model" / "README.md").read_text()
        assert f"12 images of {'16 to 48' if mixed else '32'} px per step" in card
    four = list(losses.values())[:4]
    assert all(one[1:] != other[1:] for one in four for other in four if one is not other)
    *_, plain, checkpointing, workers = losses.values()
    assert plain == workers
    assert plain == pytest.approx(checkpointing, abs=1e-5)
    assert read_weights(tmp_path / "run 3") == read_weights(tmp_path / "run 5")


@pytest.mark.slow
def test_a_compiled_run_with_several_sizes_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by torch.compile, one graph for each size, but not translated to C++: minutes."""
    graphs: list[int] = []

    def trace(module: Any, inputs: list[Any]) -> Any:
        graphs.append(len(inputs))
        return module.forward

    compiler = partial(torch.compile, backend=trace)
    monkeypatch.setattr(torch, "compile", compiler)
    images = make_digits(tmp_path / "train", 60)
    numbers = tuple(range(16, 104, 8))  # more than torch compiles by default
    settings = (f"augment.sizes={','.join(map(str, numbers))}", "patch_drop_rate=0.5", "steps=24")
    train_digits(images, tmp_path / "plain", *settings)
    train_digits(images, tmp_path / "compiled", *settings, "engine.compile=true")
    assert read_losses(tmp_path / "compiled") == pytest.approx(
        read_losses(tmp_path / "plain"), abs=1e-3
    )
    drawn = {
        Augmentation(Augment(sizes=numbers), 32).at_step(step).image_size for step in range(24)
    }
    assert len(graphs) == len(drawn) > 8


def test_the_position_embedding_learns_from_other_sizes() -> None:
    """Embedding is linear in the positions: the gradient predicts the effect of any change."""
    from tiny import images, tiny

    for side in (32, 48, 80):
        model: Any = tiny("vit").train()
        x, weights = images(2, side), torch.randn(2, 1 + (side // 8) ** 2, 32)
        before = (model._embed(x) * weights).sum()
        before.backward()
        change = torch.randn_like(model.pos_embed)
        with torch.no_grad():
            model.pos_embed += change
        effect = (model._embed(x) * weights).sum() - before
        torch.testing.assert_close(
            effect, (model.pos_embed.grad * change).sum(), rtol=1e-3, atol=0.01
        )
