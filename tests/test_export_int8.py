"""int8 is smaller, keeps the answers on pictures, and is refused where it does not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from tiny import REGNET_SPEC, SMALL_REGNET, VIT_SPEC, randomise

import swag_models
from swag_models import export
from swag_models.errors import ExportError
from swag_models.export import export_model, read_metadata
from swag_models.models import RegNet, build
from swag_models.preprocess import read_image

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits as pictures, named by what they show."""
    folder, digits = tmp_path_factory.mktemp("pictures"), load_digits()
    for index in range(COUNT):
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:03}_{digits.target[index]}.png")
    return folder


def count_right(path: Path, folder: Path) -> int:
    """How many of the digits an exported model reads right."""
    session, preprocess = onnxruntime.InferenceSession(path), swag_models.load_preprocess("vit_nano_digits")
    pictures = sorted(folder.iterdir())
    batch = torch.stack([preprocess(read_image(picture)) for picture in pictures])
    (logits,) = session.run(None, {"images": batch.numpy()})
    return int((np.argmax(logits, axis=1) == [int(picture.stem[-1]) for picture in pictures]).sum())


def test_a_vit_shrinks_and_keeps_its_answers(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    full = export_model("vit_nano_digits", tmp_path / "full.onnx", pictures=folder)
    report = export_model("vit_nano_digits", tmp_path / "int8.onnx", dtype="int8", pictures=folder)
    assert capfd.readouterr() == ("", "")
    assert (full.kept, full.pictures) == (1, COUNT)
    assert report.kept is not None
    assert report.kept >= 0.99
    assert report.pictures == COUNT, "it has no ranges to measure, so all are checked"
    assert report.size < 0.4 * full.size
    assert report.mean < 0.05
    assert count_right(report.path, folder) >= count_right(full.path, folder) - 3
    assert read_metadata(report.path) == export.Metadata(**{**vars(read_metadata(full.path)), "dtype": "int8"})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full.onnx", "int8.onnx"]


def learn(folder: Path) -> RegNet:
    """A small RegNet that reads the digits of a folder."""
    preprocess = swag_models.load_preprocess("vit_nano_digits")
    pictures = sorted(folder.iterdir())
    inputs = torch.stack([preprocess(read_image(picture)) for picture in pictures])
    targets = torch.tensor([int(picture.stem[-1]) for picture in pictures])
    model = build(SMALL_REGNET, num_classes=10, image_size=32)
    assert isinstance(model, RegNet)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        chosen = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_a_regnet_measures_ranges_on_other_pictures_than_it_is_checked_on(folder: Path, tmp_path: Path) -> None:
    report = export_model(learn(folder), tmp_path / "int8.onnx", spec=REGNET_SPEC, dtype="int8", pictures=folder)
    assert report.kept is not None
    assert report.kept >= 0.99
    assert report.pictures == COUNT - COUNT // 3
    assert count_right(report.path, folder) > 0.7 * COUNT
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert operators >= {"QuantizeLinear", "DequantizeLinear", "Conv"}


def test_features_keep_their_direction_and_few_pictures_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digits = Path(__file__).parents[1] / "examples" / "digits"
    with caplog.at_level(logging.WARNING, "swag_models"):
        report = export_model(
            randomise(build(SMALL_REGNET, num_classes=None, image_size=64)).eval(),
            tmp_path / "int8.onnx",
            spec=REGNET_SPEC,
            dtype="int8",
            pictures=digits,
        )
    assert (report.kept, report.pictures) == (1, 10)
    assert "has only 10 pictures: ranges are measured on those that are checked" in caplog.text


def test_answers_that_hang_by_a_thread_are_refused(folder: Path, tmp_path: Path) -> None:
    model = swag_models.load_model("vit_nano_digits")
    head = model.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():  # all classes nearly the same
        head.weight.sub_(head.weight.mean(dim=0)).mul_(1e-3).add_(torch.randn(64))
    message = r"int8\.onnx was not written: \d\d\.\d\d% of 300 pictures keep their answer, 99% must"
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "int8.onnx", spec=VIT_SPEC, dtype="int8", pictures=folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "calibrated", "checked"), [(20, 10, 10), (300, 100, 200), (5000, 125, 975)])
def test_pictures_are_split_evenly(count: int, calibrated: int, checked: int, tmp_path: Path) -> None:
    for index in range(count):
        (tmp_path / f"{index:04}.png").touch()
    (tmp_path / "notes.txt").touch()
    calibration, others = export._split_pictures(tmp_path, ranges=True)
    assert (len(calibration), len(others)) == (calibrated, checked)
    assert not set(calibration) & set(others)
    for part in (calibration, others):
        assert int(part[-1].stem) > 0.98 * count - 3, "the whole folder is covered"
