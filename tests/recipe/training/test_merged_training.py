"""Training with token merging: in whole runs, in estimates, and what cannot have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SETTINGS, make_digits, read_losses

from swag_models import get_spec, load_model
from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError
from swag_models.finetuning.defaults import choose_run
from swag_models.inference import Embedder
from swag_models.inference.embed import write_embeddings
from swag_models.models import ViT
from swag_models.publish.model_info import count_flops
from swag_models.recipe.config import Engine, Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.embeddings import StoredEmbeddings
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.estimate import plan
from swag_models.recipe.training.head_state import check_embeddings
from swag_models.recipe.training.memory import estimate_activations, find_arch
from swag_models.recipe.training.model import make_model
from swag_models.recipe.training.timm_student import make_timm_student
from swag_models.recipe.training.trainer import train
from swag_models.spec import Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")
NANO = "vit_nano_hashtags"
RUN = Run("vit_nano", 64, 64, steps=10, engine=Engine(precision="fp32"))


def train_digits(data: Path, output: Path, *settings: str, **options: Any) -> Path:
    run = override(get_preset(NANO).run, [*SETTINGS, "steps=4", *settings])
    return train(run, data, output, progress=False, **options)


def test_estimates_know_the_tokens_that_are_left() -> None:
    merged = replace(RUN, merge_tokens=20)
    spec = replace(find_arch("vit_nano"), num_classes=10, preprocess=Preprocess(64))
    plans = [plan(run, 1000, num_classes=10) for run in (RUN, merged)]
    assert plans[0].flops == 3 * count_flops(spec)
    assert plans[1].flops == 3 * count_flops(replace(spec, merge_tokens=20))
    assert plans[1].flops < 0.7 * plans[0].flops
    config = spec.config
    assert isinstance(config, ViTConfig)
    # 65 tokens, of which the blocks leave 45, 25, 13 and 7
    attention, mlp = 6 * config.width, 3 * config.width + 2 * config.mlp_width
    numbers = (65 + 45 + 25 + 13) * attention + (45 + 25 + 13 + 7) * mlp
    assert estimate_activations(merged) == 4 * numbers
    assert estimate_activations(merged) < estimate_activations(RUN)


def test_what_has_no_tokens_is_refused() -> None:
    message = r"^merge_tokens is 2; a RegNet has no tokens, leave it (at 0|out)$"
    with pytest.raises(ConfigError, match=message):
        plan(replace(RUN, arch="regnety_nano", merge_tokens=2), 1000, num_classes=10)
    spec = get_spec("regnety_nano_hashtags")
    for options in ({"merge_tokens": 2}, {"settings": ["merge_tokens=2"]}):
        with pytest.raises(ConfigError, match=message):
            choose_run(spec, spec.name, 50, torch.device("cpu"), **options)  # type: ignore[arg-type]
    pytest.importorskip("timm")
    run = replace(RUN, arch="timm:vit_tiny_patch16_224", merge_tokens=2)
    with pytest.raises(ConfigError, match=r"^merge_tokens is 2; allowed for timm:vit_tiny.*: 0$"):
        make_timm_student(run, Classes(0))


def test_fine_tuning_keeps_the_merging_of_the_model() -> None:
    spec, cpu = get_spec(NANO), torch.device("cpu")
    merged = replace(spec, merge_tokens=5)
    assert choose_run(spec, NANO, 50, cpu).merge_tokens == 0
    assert choose_run(merged, NANO, 50, cpu).merge_tokens == 5
    assert choose_run(merged, NANO, 50, cpu, merge_tokens=0).merge_tokens == 0
    assert choose_run(merged, NANO, 50, cpu, merge_tokens=2, linear=True).merge_tokens == 2


def test_a_run_trains_the_merged_model() -> None:
    model, spec = make_model(replace(RUN, init=NANO, merge_tokens=3), Classes(3))
    assert isinstance(model, ViT)
    assert model.merge_tokens == spec.merge_tokens == 3
    model, spec = make_model(RUN, Classes(3))
    assert isinstance(model, ViT)
    assert (model.merge_tokens, spec.merge_tokens) == (0, None)


@pytest.mark.slow
def test_runs_learn_and_publish_with_merging(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = make_digits(tmp_path / "train", 60)
    losses = {}
    for settings in (
        (),
        ("merge_tokens=3",),
        ("merge_tokens=3", "engine.grad_checkpointing=true"),
        ("merge_tokens=3", "engine.parallel=fsdp"),
        ("merge_tokens=3", "patch_drop_rate=0.5", "augment.sizes=32,48"),
    ):
        output = tmp_path / f"run {len(losses)}"
        folder = train_digits(images, output, *settings)
        losses[settings] = read_losses(output)
        expected = 3 if settings else 0
        model = load_model(folder)
        assert isinstance(model, ViT)
        assert model.merge_tokens == expected
        card = (folder / "README.md").read_text()
        assert ("| token merging | each block merges 3 tokens" in card) == (expected > 0)
    plain, merged, checkpointing, sharded, dropped = losses.values()
    assert plain[1:] != merged[1:]
    assert merged[1:] != dropped[1:]
    assert merged == pytest.approx(checkpointing, abs=1e-5)
    assert merged == pytest.approx(sharded, abs=1e-3)
    with pytest.raises(ConfigError, match=r"merge_tokens"):
        train_digits(images, tmp_path / "run 1", "merge_tokens=4")
    # from a folder with merging
    init = f"init={tmp_path / 'run 1' / 'model'}"
    caplog.clear()
    folder = train_digits(images, tmp_path / "next", init, "steps=1")
    assert "merges 3 tokens in each block, but the run none; set merge_tokens=3" in caplog.text
    assert get_spec(folder).merge_tokens is None


@pytest.mark.slow
def test_a_head_learns_from_embeddings_with_the_same_merging(tmp_path: Path) -> None:
    images, path = make_digits(tmp_path / "train", 36), tmp_path / "e.parquet"
    write_embeddings(Embedder(NANO, device="cpu", merge_tokens=6), images, path, progress=False)
    short = ("steps=4", "batch_size=12", "augment.scale=1,1", "augment.ratio=1,1", "augment.flip=0")
    run = override(get_preset("vit_nano_linear").run, [*short, "log_every=1"])
    with pytest.raises(
        ConfigError,
        match=r"was computed with merge_tokens 6, but .* has merge_tokens 0; set merge_tokens=6",
    ):
        check_embeddings(run, StoredEmbeddings(path))
    run = override(run, ["merge_tokens=6"])
    stored = train(run, images, tmp_path / "stored", embeddings=path, progress=False)
    train(run, images, tmp_path / "images", progress=False)
    assert read_losses(tmp_path / "stored") == pytest.approx(
        read_losses(tmp_path / "images"), abs=1e-4
    )
    assert get_spec(stored).merge_tokens == 6
