"""int8 is smaller, keeps the answers on pictures, and is refused where it does not."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from image_support import SCENES, compute_probabilities, render_scenes
from PIL import Image
from sklearn.datasets import load_digits
from tiny import REGNET_SPEC, SMALL_REGNET, VIT_SPEC, randomise

import swag_models
from swag_models import export
from swag_models.errors import ExportError
from swag_models.export import export_model, read_metadata
from swag_models.models import RegNet, build
from swag_models.preprocess import Transform, read_image
from swag_models.spec import Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 300


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of held-out pictures those of which the model that ships is surest, named by what it takes them for."""
    folder, (pictures, _) = tmp_path_factory.mktemp("scenes"), render_scenes()
    best = compute_probabilities(pictures).topk(2)
    surest = (best.values[:, 0] / best.values[:, 1]).topk(COUNT).indices.tolist()
    for index in surest:
        pictures[index].save(folder / f"{index:03}_{best.indices[index, 0]}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits as pictures, named by what they show."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for index in range(COUNT):
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:03}_{digits.target[index]}.png")
    return folder


def count_right(path: Path, folder: Path) -> int:
    """How many of the pictures an exported model takes for what their names say."""
    batch, targets = read_pictures(folder, read_metadata(path).preprocess)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": batch.numpy()})
    return int((torch.from_numpy(logits).argmax(dim=1) == targets).sum())


def read_pictures(folder: Path, preprocess: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (N, 3, H, W) and classes (N,), which names of files end with."""
    pictures = sorted(folder.iterdir())
    transform = Transform(preprocess)
    inputs = torch.stack([transform(read_image(picture)) for picture in pictures])
    return inputs, torch.tensor([int(picture.stem.split("_")[1]) for picture in pictures])


@pytest.mark.slow
def test_a_vit_shrinks_and_keeps_its_answers(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    full = export_model("vit_nano_hashtags", tmp_path / "full.onnx", pictures=scenes)
    report = export_model(
        "vit_nano_hashtags", tmp_path / "int8.onnx", dtype="int8", pictures=scenes
    )
    assert capfd.readouterr() == ("", "")
    assert (full.kept, full.pictures) == (1, COUNT)
    assert report.kept is not None
    assert report.kept >= 0.99
    assert report.pictures == COUNT, "it has no ranges to measure, so all are checked"
    assert report.size < 0.4 * full.size
    assert report.mean < 0.05
    assert count_right(full.path, scenes) == COUNT
    assert count_right(report.path, scenes) >= COUNT - 3
    assert read_metadata(report.path) == export.Metadata(
        **{**vars(read_metadata(full.path)), "dtype": "int8"}
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full.onnx", "int8.onnx"]


def learn(folder: Path) -> RegNet:
    """A small RegNet that reads the digits of a folder."""
    inputs, targets = read_pictures(folder, Preprocess(32))
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


@pytest.mark.slow
def test_a_regnet_measures_ranges_on_other_pictures_than_it_is_checked_on(
    digits: Path, tmp_path: Path
) -> None:
    report = export_model(
        learn(digits), tmp_path / "int8.onnx", spec=REGNET_SPEC, dtype="int8", pictures=digits
    )
    assert report.kept is not None
    assert report.kept >= 0.99
    assert report.pictures == COUNT - COUNT // 3
    assert count_right(report.path, digits) > 0.7 * COUNT
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert operators >= {"QuantizeLinear", "DequantizeLinear", "Conv"}


def test_features_keep_their_direction_and_few_pictures_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "swag_models"):
        report = export_model(
            randomise(build(SMALL_REGNET, num_classes=None, image_size=64)).eval(),
            tmp_path / "int8.onnx",
            spec=REGNET_SPEC,
            dtype="int8",
            pictures=SCENES,
        )
    assert (report.kept, report.pictures) == (1, 10)
    assert "has only 10 pictures: ranges are measured on those that are checked" in caplog.text


def test_answers_that_hang_by_a_thread_are_refused(scenes: Path, tmp_path: Path) -> None:
    model = swag_models.load_model("vit_nano_hashtags")
    head = model.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():  # all classes nearly the same
        head.weight.sub_(head.weight.mean(dim=0)).mul_(1e-3).add_(torch.randn(96))
        head.bias.zero_()
    message = r"int8\.onnx was not written: \d+\.\d\d% of 300 pictures keep their answer, 99% must"
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "int8.onnx", spec=VIT_SPEC, dtype="int8", pictures=scenes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("count", "calibrated", "checked"), [(20, 10, 10), (300, 100, 200), (5000, 125, 975)]
)
def test_pictures_are_split_evenly(
    count: int, calibrated: int, checked: int, tmp_path: Path
) -> None:
    for index in range(count):
        (tmp_path / f"{index:04}.png").touch()
    (tmp_path / "notes.txt").touch()
    calibration, others = export._split_pictures(tmp_path, ranges=True)
    assert (len(calibration), len(others)) == (calibrated, checked)
    assert not set(calibration) & set(others)
    for part in (calibration, others):
        assert int(Path(part[-1].name).stem) > 0.98 * count - 3, "the whole folder is covered"
