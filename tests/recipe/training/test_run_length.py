"""A run can be made longer, finished or not, and a message names only the setting that differs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from runs import SETTINGS, list_steps, make_digits, read_lines, read_losses, read_weights

from swag_models.errors import ConfigError
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.optimizer import schedule_lr
from swag_models.recipe.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 30)


def train_digits(images: Path, output: Path, *settings: str) -> Path:
    run = override(get_preset("vit_nano_hashtags").run, [*SETTINGS, *settings])
    return train(run, images, output, progress=False)


def test_a_finished_run_continues_on_the_longer_schedule(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    train_digits(images, output, "steps=3")
    short = read_weights(output)
    train_digits(images, output, "steps=5")
    assert f"{output}: the run of 3 steps becomes one of 5; from now on," in caplog.text
    lines = read_lines(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    run = override(get_preset("vit_nano_hashtags").run, [*SETTINGS, "steps=5"])
    rates = [schedule_lr(step, 5, run.lr, run.warmup) for step in (3, 4)]
    assert [line["lr"] for line in lines[3:]] == rates
    assert read_weights(output) != short
    assert list_steps(output)[-1] == 5
    long = read_weights(output)
    train_digits(images, output, "steps=5")  # done
    assert read_weights(output) == long
    # 30 images in batches of 12: 2.4 epochs are 6 steps
    train_digits(images, output, "steps=none", "epochs=2.4")
    assert [line["step"] for line in read_lines(output)] == [1, 2, 3, 4, 5, 6]
    for settings in (("steps=5",), ("steps=none", "epochs=1")):
        message = r"holds a run of 6 steps, and (steps|epochs) \d are \d; a run can be made longer"
        with pytest.raises(ConfigError, match=message):
            train_digits(images, output, *settings)
    weights = read_weights(output)
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(ConfigError, match="no checkpoint is left to continue to 9; choose another"):
        train_digits(images, output, "steps=9")
    train_digits(images, output, "steps=6")
    assert read_weights(output) == weights


WSD = ("schedule=wsd", "cooldown=0.5", "warmup=0", "checkpoint.every=1", "checkpoint.keep=1")


@pytest.mark.slow
def test_a_longer_run_with_a_stable_phase_ends_as_one_that_began_with_its_length(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for settings in (WSD, (*WSD, "optimizer.kind=sgd", "objective.mixup=0.4")):
        whole, output = tmp_path / f"whole {len(settings)}", tmp_path / f"run {len(settings)}"
        train_digits(images, whole, "steps=8", *settings)
        train_digits(images, output, "steps=4", *settings)
        assert list_steps(output) == [2, 4]
        assert read_lines(output)[3]["lr"] < read_lines(whole)[3]["lr"]
        train_digits(images, output, "steps=8", *settings)
        message = f"{output}: the run of 4 steps becomes one of 8; it continues from step 2, before"
        assert message in caplog.text
        assert list_steps(output) == [4, 8]
        assert read_losses(output) == read_losses(whole)
        assert read_weights(output) == read_weights(whole)


@pytest.mark.slow
def test_a_longer_run_without_the_stable_checkpoint_continues_from_the_last(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    train_digits(images, output, "steps=4", *WSD)
    shutil.rmtree(output / "checkpoints" / "step-00000002")
    losses = read_losses(output)
    train_digits(images, output, "steps=6", *WSD)
    assert "the learning rate follows the longer schedule" in caplog.text
    assert read_losses(output)[:4] == losses


def test_a_run_recorded_before_a_field_existed_resumes(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    train_digits(images, output, "steps=1")
    record = json.loads((output / "run.json").read_text())
    for part, field in ((record["run"], "schedule"), (record["run"]["optimizer"], "clip_norm")):
        assert part.pop(field)
    (output / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"holds other work, with optimizer.clip_norm None, not"):
        train_digits(images, output, "steps=1")
    train_digits(images, output, "steps=1", "optimizer.clip_norm=none")
    with pytest.raises(ConfigError, match=r"holds other work, with schedule cosine, not wsd"):
        train_digits(images, output, "steps=1", "schedule=wsd", "optimizer.clip_norm=none")


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("optimizer.weight_decay=0.3", r"optimizer\.weight_decay [\d.]+, not 0\.3"),
        ("augment.flip=0.25", r"augment\.flip [\d.]+, not 0\.25"),
        ("ema.decay=0.5", r"ema\.decay (None|[\d.]+), not 0\.5"),
        ("seed=7", "seed 0, not 7"),
    ],
)
def test_another_run_is_refused_by_the_setting_that_differs(
    setting: str, difference: str, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = tmp_path_factory.getbasetemp() / "another"
    if not output.exists():
        train_digits(images, output, "steps=1")
    with pytest.raises(ConfigError) as info:
        train_digits(images, output, "steps=2", setting)
    path = re.escape(str(output))
    assert re.fullmatch(
        rf"{path} holds other work, with {difference}; delete {path} or choose another output",
        str(info.value),
    )
