"""Training on images with several labels: the objective, validation, and the published folder."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import finish, make_arguments, read_errors, read_lines, start
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from swag_models import get_spec, load_model, load_preprocess
from swag_models.errors import ConfigError
from swag_models.recipe.config_overrides import override
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = ["init=none", "image_size=32", "batch_size=16", "engine.workers=0", "log_every=5"]


def write_pairs(root: Path, count: int, seed: int) -> Path:
    """Write images with no, one or two handwritten digits, and labels.json."""
    digits, classes = load_digits(return_X_y=True)
    rng, labels = random.Random(seed), {}
    root.mkdir()
    for number in range(count):
        canvas, names = np.zeros((16, 16), np.uint8), set()
        for column in rng.sample((0, 8), rng.choice((0, 1, 2, 2))):
            index = rng.randrange(len(digits))
            row = rng.choice((0, 8))
            canvas[row : row + 8, column : column + 8] = digits[index].reshape(8, 8) * 15
            names.add(f"digit {classes[index]}")
        Image.fromarray(canvas).save(root / f"{number}.png")
        labels[f"{number}.png"] = sorted(names)
    (root / "labels.json").write_text(json.dumps(labels))
    return root / "labels.json"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "train", 48, 0)


def test_a_multi_label_run_is_validated_by_map_and_published_as_one(
    pairs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    test = write_pairs(tmp_path / "test", 24, 1)
    run = override(get_preset("vit_nano_multilabel").run, [*SETTINGS, "steps=4", "eval_every=2"])
    folder = train(run, pairs, tmp_path / "run", val=test, progress=False)
    spec = get_spec(folder)
    assert (spec.multi_label, spec.metrics, spec.num_classes) == (True, None, 10)
    scores = [line["mAP"] for line in read_lines(tmp_path / "run", "eval")]
    assert len(scores) == 2
    model, preprocess = load_model(folder), load_preprocess(folder)
    labels = json.loads(test.read_text())
    inputs = torch.stack([preprocess(Image.open(test.with_name(name))) for name in labels])
    with torch.inference_mode():
        logits = model(inputs).numpy()
    targets = np.array([[name in names for name in spec.classes] for names in labels.values()])
    expected = average_precision_score(targets, logits, average="macro")
    assert scores[-1] == pytest.approx(100 * expected, abs=1e-3)
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["metrics"] == {"mAP": scores[-1]}
    assert f"mAP {scores[-1]:.2f}%" in (folder / "README.md").read_text()


def test_a_new_head_starts_with_the_frequency_of_each_class(pairs: Path, tmp_path: Path) -> None:
    run = override(get_preset("vit_nano_multilabel").run, [*SETTINGS, "steps=1"])
    run = override(run, ["optimizer.lr=1e-30", "optimizer.weight_decay=0"])
    model = load_model(train(run, pairs, tmp_path / "run", progress=False))
    labels = json.loads(pairs.read_text()).values()
    names = get_spec(tmp_path / "run" / "model").classes
    shares = [(sum(name in image for image in labels) + 1) / (len(labels) + 2) for name in names]
    torch.testing.assert_close(model.head.bias.sigmoid(), torch.tensor(shares))
    again = override(run, [f"init={tmp_path / 'run' / 'model'}", "optimizer.lr=1e-30"])
    (one, two) = sorted(pairs.with_name(f"{number}.png").name for number in range(2))
    other = pairs.with_name("other.json")
    other.write_text(json.dumps({one: list(names), two: list(names)}))
    kept = load_model(train(again, other, tmp_path / "again", progress=False))
    assert torch.equal(kept.head.bias, model.head.bias), "a head for the same classes is kept"


def test_images_without_labels_need_the_sigmoid(pairs: Path, tmp_path: Path) -> None:
    run = override(get_preset("vit_nano_finetune").run, [*SETTINGS, "steps=10"])
    with pytest.raises(ConfigError, match=r"has no class; leave it out, or use objective\.kind="):
        train(run, pairs, tmp_path / "run", progress=False)


def test_top1_instead_of_map_is_logged_once(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("swag_models.recipe.training.validation.MAX_SCORES", 100)
    run = override(get_preset("vit_nano_multilabel").run, [*SETTINGS, "steps=2", "eval_every=1"])
    train(run, pairs, tmp_path / "run", val=pairs, progress=False)
    (message,) = [line for line in caplog.messages if "top-1 and not mAP" in line]
    count = len(json.loads(pairs.read_text()))
    assert f"mAP: {count} samples of 10 classes have more than 100 scores; give" in message
    assert all("top1" in line for line in read_lines(tmp_path / "run", "eval"))


@pytest.mark.slow
def test_the_number_of_ranks_does_not_change_the_map(pairs: Path, tmp_path: Path) -> None:
    values = {}
    for ranks in (1, 3):
        arguments = make_arguments(
            pairs,
            tmp_path / str(ranks),
            "init=none",
            "steps=2",
            options=["--val", pairs],
            preset="vit_nano_multilabel",
        )
        assert finish(start(arguments, ranks)) == [0] * ranks, read_errors(arguments)
        (line,) = read_lines(tmp_path / str(ranks), "eval")
        values[ranks] = line["mAP"]
    assert values[1] == pytest.approx(values[3], abs=0.5)
