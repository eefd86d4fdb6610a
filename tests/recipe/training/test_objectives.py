"""Objectives in whole runs: the first loss is that of a formula, on images and on shards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from runs import finish, make_arguments, read_errors, read_losses, start
from shards_support import make_images, make_labels
from test_losses import compute_dense_losses
from torch import Tensor

from swag_models import get_spec, load_model, load_preprocess
from swag_models.errors import ConfigError
from swag_models.recipe.config import Objective
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.pack import pack
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT, CLASSES = 24, 6
# one step that changes nothing, over all images, which are not cropped
STILL = ("init=none", "image_size=32", f"batch_size={COUNT}", "steps=1", "engine.workers=0")
STILL += ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "augment.scale=1,1")
STILL += ("augment.ratio=1,1", "augment.flip=0", "log_every=1")


@pytest.fixture(scope="module")
def labels() -> dict[str, Sequence[int]]:
    rows = {name: classes for name, (classes, _) in make_labels(COUNT).items()}
    return {name: sorted({min(number, 5) for number in row}) for name, row in rows.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, labels: dict[str, Sequence[int]]) -> Path:
    """Images with one to three of six classes, in labels.json."""
    folder = make_images(tmp_path_factory.mktemp("made") / "images", list(labels))
    names = {f"{name}.jpg": [f"class {n}" for n in row] for name, row in labels.items()}
    (folder / "labels.json").write_text(json.dumps(names))
    return folder / "labels.json"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A model of these classes; the head of a new one is 0, and so is the effect of targets."""
    moving = ("steps=6", "optimizer.lr=0.01")
    return train_one_step(images, tmp_path_factory.mktemp("started") / "run", *moving)[1]


def train_one_step(data: Path, output: Path, *settings: str) -> tuple[float, Path]:
    run = override(get_preset("vit_nano_finetune").run, [*STILL, *settings])
    model = train(run, data, output, progress=False)
    return read_losses(output)[0], model


def compute_logits(model: Path, folder: Path, labels: dict[str, Sequence[int]]) -> Tensor:
    backbone, preprocess = load_model(model), load_preprocess(model)
    inputs = [preprocess(Image.open(folder / f"{name}.jpg")) for name in labels]
    with torch.inference_mode():
        return backbone(torch.stack(inputs)).double()


def count_images(labels: dict[str, Sequence[int]]) -> list[int]:
    """Number of images with each class; all occur."""
    counts = [sum(number in row for row in labels.values()) for number in range(CLASSES)]
    assert all(counts)
    assert sum(counts) == sum(map(len, labels.values()))
    return counts


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_idf_weights_the_classes_of_an_image(
    packed: bool, images: Path, started: Path, labels: dict[str, Sequence[int]], tmp_path: Path
) -> None:
    data = images
    if packed:
        data = tmp_path / "shards"
        pack(images, images.parent, data, progress=False, processes=1)
    init = f"init={started}"
    loss, model = train_one_step(data, tmp_path / "run", "objective.weighting=idf", init)
    plain, _ = train_one_step(data, tmp_path / "plain", init)
    targets = torch.zeros(COUNT, CLASSES, dtype=torch.float64)
    weights = [math.log(COUNT / (1 + count)) for count in count_images(labels)]
    for target, row in zip(targets, labels.values(), strict=True):
        for number in row:
            target[number] = weights[number] / sum(weights[other] for other in row)
    logits = compute_logits(model, images.parent, labels)
    assert loss == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    equal = (targets > 0) / (targets > 0).sum(1, keepdim=True)
    assert plain == pytest.approx(F.cross_entropy(logits, equal).item(), rel=1e-5)
    assert abs(loss - plain) > 1e-3
    assert "| objective | softmax, idf-weighted |" in (model / "README.md").read_text()


@pytest.mark.slow
def test_the_asymmetric_loss_trains_a_multi_label_model(
    images: Path, labels: dict[str, Sequence[int]], tmp_path: Path
) -> None:
    losses = {}
    for gamma in (4, 1):
        settings = ("objective.kind=asymmetric", f"objective.gamma_neg={gamma}")
        losses[gamma], model = train_one_step(images, tmp_path / str(gamma), *settings)
        assert get_spec(model).multi_label
        logits = compute_logits(model, images.parent, labels)
        targets = torch.zeros(COUNT, CLASSES, dtype=torch.float64)
        for target, row in zip(targets, labels.values(), strict=True):
            target[list(row)] = 1
        objective = Objective("asymmetric", gamma_neg=gamma)
        expected = compute_dense_losses(objective, logits, targets).mean().item()
        assert losses[gamma] == pytest.approx(expected, rel=1e-5)
        # the head starts where gradients cancel, as if there were an image more of each kind
        counts = torch.tensor(count_images(labels)) + 1
        has_class = (torch.arange(COUNT + 2)[:, None] < counts).double()
        bias = load_model(model).head.bias.detach().double().requires_grad_()
        compute_dense_losses(objective, bias.expand(COUNT + 2, -1), has_class).sum().backward()
        assert bias.grad.abs().max() < 1e-4
    assert losses[4] < losses[1]


@pytest.mark.slow
def test_shards_that_do_not_count_their_classes_refuse_idf(images: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    pack(images, images.parent, shards, progress=False, processes=1)
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["class_samples"]  # as an earlier version wrote it
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"^objective.weighting is 'idf', and the training data"):
        train_one_step(shards, tmp_path / "run", "objective.weighting=idf")
    assert not (tmp_path / "run" / "run.json").exists()
    loss, _ = train_one_step(shards, tmp_path / "plain")
    assert math.isfinite(loss)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [("objective.kind=asymmetric",), ("objective.weighting=idf",)])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_and_micro_batches_do_not_change_what_is_learnt(
    parallel: str, settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    losses = {}
    for ranks, more in ((1, ()), (2, (f"engine.parallel={parallel}", "engine.micro_batch=4"))):
        arguments = make_arguments(
            images, tmp_path / str(ranks), *settings, *more, preset="vit_nano_finetune"
        )
        arguments += ["--set", "init=none"]
        assert finish(start(arguments, ranks)) == [0] * ranks, read_errors(arguments)
        losses[ranks] = read_losses(tmp_path / str(ranks))
    assert losses[1] == pytest.approx(losses[2], abs=1e-4)
