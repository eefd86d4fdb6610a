"""Training on one process: effect of each setting on the weights, and behaviour on errors."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    REGNET,
    SETTINGS,
    STATEFUL,
    compare,
    list_steps,
    make_digits,
    read_lines,
    read_losses,
    read_weights,
)
from safetensors.torch import load_file

from swag_models import load_model
from swag_models.errors import ConfigError, TrainingError
from swag_models.publish import save
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "_quiet")


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Silence the warning about a missing licence."""
    logger = logging.getLogger("swag_models")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 60)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run to compare others with."""
    output = tmp_path_factory.mktemp("plain") / "run"
    train_digits(images, output)
    return output


def make_run(*settings: str) -> Run:
    return override(get_preset("vit_nano_hashtags").run, [*SETTINGS, "steps=6", *settings])


def train_digits(data: Path, output: Path, *settings: str, **options: Any) -> Path:
    return train(make_run(*settings), data, output, progress=False, **options)


def load_weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        ("engine.micro_batch=5",),
        ("engine.grad_checkpointing=true",),
        ("engine.channels_last=false",),
        ("engine.workers=2",),
        ("engine.parallel=fsdp",),
        pytest.param(("engine.compile=true",), marks=pytest.mark.slow),
    ],
)
def test_the_engine_does_not_change_what_is_learnt(
    settings: tuple[str, ...], plain: Path, images: Path, tmp_path: Path
) -> None:
    train_digits(images, tmp_path / "run", *settings)
    compare(tmp_path / "run", plain)


@pytest.mark.parametrize(
    ("parallel", "precision"),
    [
        ("ddp", "bf16"),
        ("ddp", "fp16"),
        *(pytest.param("fsdp", each, marks=pytest.mark.slow) for each in ("bf16", "fp16")),
    ],
)
def test_low_precision_gives_similar_losses(
    parallel: str, precision: str, plain: Path, images: Path, tmp_path: Path
) -> None:
    train_digits(
        images, tmp_path / "run", f"engine.precision={precision}", f"engine.parallel={parallel}"
    )
    ours, theirs = read_losses(tmp_path / "run"), read_losses(plain)
    assert ours != theirs
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.05
    assert all(weight.dtype == torch.float32 for weight in load_weights(tmp_path / "run").values())


def test_a_model_learns(images: Path, tmp_path: Path) -> None:
    train_digits(images, tmp_path / "run", "steps=60", *REGNET)
    losses = read_losses(tmp_path / "run")
    assert sum(losses[-10:]) / 10 < 0.75 * losses[0]
    model = load_model(tmp_path / "run" / "model")
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.num_batches_tracked == 60


def test_gradient_clipping_label_smoothing_and_sigmoid_loss(
    plain: Path, images: Path, tmp_path: Path
) -> None:
    rates = (
        "optimizer.kind=sgd",
        "optimizer.momentum=0",
        "optimizer.lr=1",
        "optimizer.weight_decay=0",
        "steps=1",
    )
    before = load_before(images, tmp_path)
    moved = {}
    for limit in ("none", "0.01"):
        output = tmp_path / limit
        train_digits(images, output, *rates, f"optimizer.clip_norm={limit}")
        after = load_weights(output)
        moved[limit] = math.sqrt(
            sum((after[name] - before[name]).square().sum().item() for name in before)
        )
        assert read_lines(output)[0]["grad_norm"] > 0.1, "as it is without clipping"
    assert moved["0.01"] == pytest.approx(0.01, rel=0.01)
    assert moved["none"] == pytest.approx(read_lines(tmp_path / "none")[0]["grad_norm"], rel=0.01)
    train_digits(images, tmp_path / "sigmoid", "objective.kind=sigmoid")
    first = read_losses(tmp_path / "sigmoid")[0]
    assert first == pytest.approx(3.25, rel=0.1), "10 classes: entropy at one tenth each"
    train_digits(images, tmp_path / "smooth", "objective.label_smoothing=0.2")
    assert read_losses(tmp_path / "smooth")[1:] != read_losses(plain)[1:]


def load_before(images: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run before its first step."""
    train_digits(
        images, folder / "before", "optimizer.lr=1e-30", "optimizer.weight_decay=0", "steps=1"
    )
    return load_weights(folder / "before")


def test_the_average_is_published(images: Path, tmp_path: Path) -> None:
    """One that takes half of each step's weights, which the checkpoints have."""
    rates = ("optimizer.kind=sgd", "optimizer.weight_decay=0", "warmup=0")
    every = (
        "steps=3",
        "checkpoint.every=1",
        "checkpoint.keep=3",
        "ema.warmup_ratio=0",
        "ema.decay=0.5",
    )
    train_digits(images, tmp_path / "run", *rates, *every)
    expected = load_before(images, tmp_path)
    for step in (1, 2, 3):
        raw = read_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")["model"]
        expected = {name: expected[name].lerp(raw[name], 0.5) for name in expected}
    published = load_weights(tmp_path / "run")
    assert max((published[name] - expected[name]).abs().max().item() for name in expected) < 1e-6
    assert max((published[name] - raw[name]).abs().max().item() for name in expected) > 1e-5


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Convert a checkpoint with PyTorch's own tool."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(path, path.with_suffix(".pt"))
    return torch.load(path.with_suffix(".pt"), weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "settings", [(), pytest.param(REGNET, marks=pytest.mark.slow), ("engine.parallel=fsdp",)]
)
def test_a_linear_classifier_does_not_change_the_backbone(
    settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    train_digits(images, tmp_path / "backbone", *settings, "steps=2")
    model = tmp_path / "backbone" / "model"
    train_digits(
        images,
        tmp_path / "run",
        *settings,
        f"init={model}",
        "trainable=head",
        "optimizer.lr=0.01",
        *STATEFUL[:2],
    )
    before, after = load_weights(tmp_path / "backbone"), load_weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"} or changed == {"head.fc.weight", "head.fc.bias"}


def test_a_run_starts_from_another_models_weights(
    plain: Path, images: Path, tmp_path: Path
) -> None:
    init, still = (
        plain / "model",
        ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "steps=1", f"init={plain}/model"),
    )
    train_digits(images, tmp_path / "same", *still)
    before, same = load_weights(plain), load_weights(tmp_path / "same")
    assert all(torch.equal(before[name], same[name]) for name in before), (
        "the head too, as the classes are the same"
    )
    few = tmp_path / "few"
    shutil.copytree(images, few)
    shutil.rmtree(few / "digit 3")
    model = load_model(train_digits(few, tmp_path / "other", *still, "image_size=48"))
    after = model.state_dict()
    assert (model.num_classes, model.image_size) == (9, (48, 48))
    changed = {
        name
        for name in before
        if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert changed == {"pos_embed", "head.weight", "head.bias"}
    train_digits(
        images,
        tmp_path / "avg",
        "steps=1",
        f"init={save(load_model(init, global_pool='avg'), tmp_path / 'pooled', license='mit')}",
    )
    assert load_model(tmp_path / "avg" / "model").global_pool == "avg"
    with pytest.raises(
        ConfigError,
        match=r"has architecture vit_nano, but the run has arch=regnety_nano; change one",
    ):
        train_digits(images, tmp_path / "wrong", *REGNET, f"init={init}")


@pytest.mark.parametrize("settings", [(), pytest.param(REGNET, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_stops_the_run(
    settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    wild = (
        *settings,
        "steps=30",
        "optimizer.kind=sgd",
        "optimizer.clip_norm=none",
        "checkpoint.every=2",
        "warmup=0.5",
    )
    with pytest.raises(
        TrainingError,
        match=r"^step \d+ has loss .*; its samples are in .*bad_loss.json; set on_nonfinite_loss",
    ) as caught:
        train_digits(images, output, *wild, "optimizer.lr=1e15")
    assert "\n" not in str(caught.value)
    facts = json.loads((output / "bad_loss.json").read_text())
    assert len(facts["ids"]) == 12
    assert all((images / name).is_file() for name in facts["ids"])
    assert f"step {facts['step']} has loss" in str(caught.value)
    assert not (output / "model").exists()


def test_a_run_stopped_by_a_bad_loss_resumes_as_its_message_says(
    images: Path, tmp_path: Path
) -> None:
    """Every rising loss counts as an explosion; the rerun skips them."""
    output = tmp_path / "run"
    tight = ("steps=10", "loss_spike_factor=1.0001", "checkpoint.every=1", "optimizer.lr=0.02")
    with pytest.raises(TrainingError, match=r"set on_nonfinite_loss=skip and rerun to resume"):
        train_digits(images, output, *tight)
    step = json.loads((output / "bad_loss.json").read_text())["step"]
    assert list_steps(output)[-1] == step >= 1
    train_digits(images, output, *tight, "on_nonfinite_loss=skip")
    assert read_lines(output, "skip")[0]["step"] == step + 1
    assert (output / "model" / "config.json").is_file()


@pytest.mark.parametrize(
    "settings", [pytest.param((), marks=pytest.mark.slow), REGNET, ("engine.precision=fp16",)]
)
def test_too_many_skipped_losses_stop_the_run(
    settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    wild = (
        "steps=60",
        "optimizer.kind=sgd",
        "optimizer.lr=1e15",
        "optimizer.clip_norm=none",
        "on_nonfinite_loss=skip",
    )
    with pytest.raises(
        TrainingError,
        match=r"bad_loss.json; lower optimizer.lr or set optimizer.clip_norm, in a new folder$",
    ):
        train_digits(images, output, *settings, *wild)
    assert len(read_lines(output, "skip")) == 20
    assert len(json.loads((output / "bad_loss.json").read_text())["ids"]) == 12


def test_a_skipped_step_changes_neither_weights_nor_statistics(
    images: Path, tmp_path: Path
) -> None:
    """Every step but the first is skipped, so the model is that of one step."""
    settings = (*REGNET, "optimizer.lr=0.001", "optimizer.weight_decay=0", "steps=8")
    train_digits(
        images,
        tmp_path / "run",
        *settings,
        "loss_spike_factor=1.0001",
        "on_nonfinite_loss=skip",
        "objective.mixup=0.4",
    )
    skipped = [line["step"] for line in read_lines(tmp_path / "run", "skip")]
    assert skipped
    state = load_weights(tmp_path / "run")
    assert {
        int(value) for name, value in state.items() if name.endswith("num_batches_tracked")
    } == {8 - len(skipped)}
    assert all(value.isfinite().all() for value in state.values())


def test_broken_images_are_counted_over_restarts_and_skipped(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    for path in sorted(data.rglob("*.png"))[:3]:
        path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "swag_models"):
        train_digits(data, tmp_path / "run", "steps=10")  # two epochs
    (line,) = [line for line in caplog.messages if "could not be read and was left out" in line]
    assert line.startswith("6 times an image or shard")
    assert str(data) in line
    assert read_lines(tmp_path / "run")[-1]["broken_images"] == 6
    lines = [(line["step"], line["broken_images"]) for line in read_lines(tmp_path / "run")]
    for gone in ("model", "checkpoints/step-00000010"):
        shutil.rmtree(tmp_path / "run" / gone)
    train_digits(data, tmp_path / "run", "steps=10")  # resumes from step 8
    assert [(line["step"], line["broken_images"]) for line in read_lines(tmp_path / "run")] == lines


def test_a_hugging_face_dataset_on_disk_trains(images: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    names = sorted(path.name for path in images.iterdir())
    files = sorted(map(str, images.rglob("*.png")))
    rows = {"image": files, "label": [names.index(Path(file).parent.name) for file in files]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "rows"))
    model = load_model(train_digits(tmp_path / "rows", tmp_path / "run", val=tmp_path / "rows"))
    assert model.spec
    assert model.spec.classes == tuple(names)
    assert read_lines(tmp_path / "run", "eval")


def test_evaluations_count_every_picture_once_and_the_best_checkpoint_is_kept(
    images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train_digits(
        images,
        output,
        "steps=30",
        "eval_every=5",
        "checkpoint.every=3",
        "checkpoint.keep=1",
        val=images,
    )
    scores = {line["step"]: line["top1"] for line in read_lines(output, "eval")}
    assert list(scores) == [5, 10, 15, 20, 25, 30]
    best = max(scores, key=lambda step: (scores[step], step))
    assert list_steps(output) == sorted({best, 30})
    model = load_model(output / "model")
    hits = count_by_hand(model, images)
    assert scores[30] == pytest.approx(100 * hits / 60)
    assert model.spec
    assert model.spec.metrics
    assert model.spec.metrics.top1 == round(scores[30], 2)


def count_by_hand(model: torch.nn.Module, images: Path) -> int:
    from PIL import Image

    from swag_models import load_classes, load_preprocess

    spec: Any = model.spec
    names, transform = load_classes(spec), load_preprocess(spec)
    files = sorted(images.rglob("*.png"))
    with torch.no_grad():
        best = model(torch.stack([transform(Image.open(file)) for file in files])).argmax(1)
    return sum(
        names[int(number)] == file.parent.name for number, file in zip(best, files, strict=True)
    )


def test_a_finished_run_is_not_changed_and_another_run_is_rejected(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "swag_models")
    output = tmp_path / "run"
    model = train_digits(images, output)
    weights = read_weights(output)
    ignored = {"run.json", ".lock"}
    before = {
        path: path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.name not in ignored
    }
    assert train_digits(images, output, "engine.workers=1", "checkpoint.keep=5") == model
    after = {
        path: path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and path.name not in ignored
    }
    assert after == before
    shutil.rmtree(model)
    train_digits(images, output)
    assert read_weights(output) == weights, "published again, from the last checkpoint"
    for path in sorted(model.iterdir()):
        content = path.read_bytes()
        path.unlink()
        train_digits(images, output)
        assert path.read_bytes() == content
    caplog.clear()
    train_digits(images, output, val=images)
    message = f"{model} was published with other settings; it is published again"
    assert message in caplog.messages
    assert "top1" in json.loads((model / "recipe.json").read_text())["metrics"]
    (model / "README.md").write_text("edited")
    with pytest.raises(ConfigError, match=r"model was changed after training: README\.md; delete"):
        train_digits(images, output, val=images)
    assert (model / "README.md").read_text() == "edited"
    (output / "published.json").unlink()
    train_digits(images, output)
    shutil.move(output / "checkpoints", tmp_path / "moved")
    train_digits(images, output)
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"lacks config\.json, and no checkpoint is left to"):
        train_digits(images, output)
    shutil.move(tmp_path / "moved", output / "checkpoints")
    train_digits(images, output)
    message = (
        f"{output} holds other work, with batch_size 12, not 6; "
        f"delete {output} or choose another output"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        train_digits(images, output, "batch_size=6")
    few = tmp_path / "few"
    shutil.copytree(images, few)
    next(few.rglob("*.png")).unlink()
    with pytest.raises(
        ConfigError,
        match=f"^{re.escape(str(output))} holds other work, with data.(samples 60, not 59|sha256)",
    ):
        train_digits(few, output)


@pytest.mark.slow
def test_fp16_may_be_switched_on_and_off_on_resume(images: Path, tmp_path: Path) -> None:
    """The engine may change, and with it whether the loss is scaled."""
    for first, then in (("fp32", "fp16"), ("fp16", "fp32")):
        output = tmp_path / first
        with pytest.raises(TrainingError):
            train_digits(
                images,
                output,
                "steps=12",
                f"engine.precision={first}",
                "checkpoint.every=1",
                "loss_spike_factor=1.0001",
            )
        train_digits(images, output, "steps=12", f"engine.precision={then}")
        assert read_lines(output)[-1]["step"] == 12
