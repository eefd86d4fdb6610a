"""`Classifier(threshold=)`: sigmoids of multi-label models, and which classes are returned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_support import write_images
from tiny import load_tiny

from swag_models import load_model, load_preprocess
from swag_models.cli import main
from swag_models.errors import ConfigError, FetchError
from swag_models.inference import Classifier
from swag_models.inference.thresholds import read_thresholds
from swag_models.publish import save

NAMES = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay")

pytestmark = pytest.mark.usefixtures("one_thread", "caches")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-label model and, in images/, three images."""
    root = tmp_path_factory.mktemp("thresholds") / "model"
    torch.manual_seed(0)
    save(load_tiny(), root, license="mit", classes=NAMES, multi_label=True)
    write_images(root.parent / "images", 3)
    return root


@torch.inference_mode()
def compute_sigmoids(folder: Path) -> np.ndarray[Any, Any]:
    from PIL import Image

    model, preprocess = load_model(folder), load_preprocess(folder)
    paths = sorted((folder.parent / "images").iterdir())
    return model(torch.stack([preprocess(Image.open(path)) for path in paths])).sigmoid().numpy()


def predict(folder: Path, threshold: Any, **options: Any) -> list[dict[str, float]]:
    classifier = Classifier(folder, threshold=threshold, **options)
    rows = classifier(folder.parent / "images")
    assert all(
        row == sorted(row, key=lambda prediction: -prediction.probability) for row in rows
    ), "best first"
    return [{prediction.label: prediction.probability for prediction in row} for row in rows]


@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.9, 1, np.float32(0.5), torch.tensor(0.5)])
def test_every_class_at_or_above_the_threshold_is_returned(folder: Path, threshold: Any) -> None:
    expected = compute_sigmoids(folder)
    limit = float(threshold)
    for row, found in zip(expected, predict(folder, threshold)):
        assert set(found) == {name for name, value in zip(NAMES, row) if value >= limit}
        for name, value in found.items():
            assert value == pytest.approx(row[NAMES.index(name)], abs=1e-5)


def test_a_probability_equal_to_the_threshold_is_enough(folder: Path) -> None:
    (name, value), *_ = predict(folder, 0)[0].items()
    assert name in predict(folder, value)[0]
    assert name not in predict(folder, math.nextafter(value, 1))[0]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_each_class_can_have_its_threshold(folder: Path, kind: Any) -> None:
    expected = compute_sigmoids(folder)
    limits = [0.05 + 0.09 * index for index in range(10)]
    for row, found in zip(expected, predict(folder, kind(limits))):
        assert set(found) == {
            name for name, value, limit in zip(NAMES, row, limits) if value >= limit
        }
    some = {"dog": 0.0, "cow": 1.0}
    assert predict(folder, some) == predict(folder, [some.get(name, 0.5) for name in NAMES])


def test_without_a_threshold_the_best_classes_are_returned(folder: Path) -> None:
    classifier = Classifier(folder)
    rows, expected = classifier(folder.parent / "images"), compute_sigmoids(folder)
    for row, values in zip(rows, expected):
        assert [prediction.index for prediction in row] == list(np.argsort(-values)[:5])
        assert row[0].probability == pytest.approx(values.max(), abs=1e-5)
    limited = Classifier(folder, threshold=0)(folder.parent / "images", top_k=2)
    assert limited == [row[:2] for row in rows]


def test_a_model_that_is_not_multi_label_has_a_softmax(folder: Path) -> None:
    save(load_model(folder), folder.parent / "single", license="mit", multi_label=False)
    single = Classifier(folder.parent / "single", threshold=0)
    for row in single(folder.parent / "images"):
        assert sum(prediction.probability for prediction in row) == pytest.approx(1, abs=1e-5)
    certain = Classifier(folder.parent / "single", threshold=0.5)(folder.parent / "images")
    assert max(map(len, certain)) <= 1
    assert predict(folder.parent / "single", 0.3, multi_label=True) == predict(folder, 0.3)
    # also a model in memory
    in_memory = Classifier(load_model(folder), threshold=0.3)(folder.parent / "images")
    assert [{p.label: p.probability for p in row} for row in in_memory] == predict(folder, 0.3)


INVALID: list[tuple[Any, str]] = [
    (1.5, "invalid threshold 1.5: allowed: a number from 0 to 1"),
    (-0.1, "invalid threshold -0.1: allowed"),
    (math.nan, "invalid threshold nan: allowed"),
    (True, "invalid threshold True: allowed"),
    ("0.5", "invalid threshold '0.5': allowed"),
    (b"x", "invalid threshold b'x': allowed"),
    ({1, 2}, "invalid threshold of type set: allowed"),
    (10**400, "invalid threshold 1000.*: allowed"),
    ([0.5] * 9, "threshold has 9 values; allowed: one number, or one for each of the 10 classes"),
    ([], "threshold has 0 values; allowed"),
    ([0.5] * 9 + [None], "invalid threshold of class jay None: allowed"),
    (np.full((10, 2), 0.5), r"invalid threshold of class ant \[0.5, 0.5\]: allowed"),
    ({"dgo": 0.5}, "threshold: unknown class 'dgo'; did you mean: dog"),
    ({3: 0.5}, "invalid threshold of 3: allowed: names of classes"),
    ({"dog": "high"}, "invalid threshold of class dog 'high': allowed"),
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 2}, "invalid threshold 2: allowed"),
        ({"threshold": {"no class": 0.1}}, "threshold: unknown class 'no class'"),
        ({"classes": ["cat", "dog"]}, "2 class names for 1,000 classes"),
    ],
)
def test_arguments_are_checked_before_the_weights_are_fetched(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    with pytest.raises(ConfigError, match=f"^{message}"):
        Classifier("vit_b16_in1k", **options)
    with pytest.raises(FetchError):
        Classifier("vit_b16_in1k", threshold=0.2)


@pytest.mark.parametrize(("threshold", "message"), INVALID)
def test_invalid_thresholds_are_rejected_in_one_line(threshold: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_thresholds(threshold, NAMES)
    assert len(str(caught.value)) < 500


def test_the_command_takes_a_number_or_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", str(folder.parent / "images"), "--model", str(folder), "--json"]
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"dog": 0.0, "cow": 1}))
    for text, threshold in (("0.3", 0.3), (str(limits), {"dog": 0.0, "cow": 1})):
        assert main([*command, "--threshold", text]) == 0
        rows = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
        assert [{row["label"]: row["probability"] for row in image} for image in rows] == predict(
            folder, threshold
        )
    assert main([*command[:-1], "--threshold", "1"]) == 0
    assert capsys.readouterr().out.count("\n  no class reaches the threshold\n") == 3
    limits.write_text('{"dog": 0.5, "dog": 1}')
    for text, message in (
        ("high", "invalid --threshold 'high': allowed: a number from 0 to 1, or a .json file"),
        ("nan", "invalid threshold nan: allowed"),
        ("gone.json", "gone.json cannot be read: No such file"),
        (str(limits), "cannot be read: dog occurs twice"),
    ):
        assert main([*command, "--threshold", text]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
