"""int8 is smaller and keeps the answers on images; otherwise no file is written."""

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
from swag_models.errors import ExportError
from swag_models.export import Metadata, export_model, read_metadata
from swag_models.export.verification import split_images
from swag_models.image_decoding import read_image
from swag_models.models import RegNet, build
from swag_models.preprocess import Transform
from swag_models.spec import Preprocess

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_IMAGES = 300


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out images with the most certain predictions of the packaged ViT, in their names."""
    folder, (images, _) = tmp_path_factory.mktemp("scenes"), render_scenes()
    best = compute_probabilities(images).topk(2)
    most_certain = (best.values[:, 0] / best.values[:, 1]).topk(NUM_IMAGES).indices.tolist()
    for index in most_certain:
        images[index].save(folder / f"{index:03}_{best.indices[index, 0]}.png")
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of handwritten digits, with the digit in their names."""
    folder, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for index in range(NUM_IMAGES):
        pixels = (digits.images[index] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(folder / f"{index:03}_{digits.target[index]}.png")
    return folder


def count_correct(path: Path, folder: Path) -> int:
    """Number of images whose predicted class is the one in their name."""
    batch, labels = read_folder(folder, read_metadata(path).preprocess)
    (logits,) = onnxruntime.InferenceSession(path).run(None, {"images": batch.numpy()})
    return int((torch.from_numpy(logits).argmax(dim=1) == labels).sum())


def read_folder(folder: Path, preprocess: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (N, 3, H, W) and labels (N,), the ends of the file names."""
    paths = sorted(folder.iterdir())
    transform = Transform(preprocess)
    inputs = torch.stack([transform(read_image(path)) for path in paths])
    return inputs, torch.tensor([int(path.stem.split("_")[1]) for path in paths])


@pytest.mark.slow
def test_an_int8_vit_is_smaller_and_keeps_its_answers(
    scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    full = export_model("vit_nano_hashtags", tmp_path / "full.onnx", images=scenes)
    report = export_model("vit_nano_hashtags", tmp_path / "int8.onnx", dtype="int8", images=scenes)
    assert capfd.readouterr() == ("", "")
    assert (full.agreement, full.num_images) == (1, NUM_IMAGES)
    assert report.agreement is not None
    assert report.agreement >= 0.99
    assert report.num_images == NUM_IMAGES, "a ViT needs no calibration, so all images are checked"
    assert report.size < 0.4 * full.size
    assert report.mean_deviation < 0.05
    assert count_correct(full.path, scenes) == NUM_IMAGES
    assert count_correct(report.path, scenes) >= NUM_IMAGES - 3
    assert read_metadata(report.path) == Metadata(
        **{**vars(read_metadata(full.path)), "dtype": "int8"}
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["full.onnx", "int8.onnx"]


def train_on_digits(folder: Path) -> RegNet:
    """A small RegNet trained on the digits of a folder."""
    inputs, labels = read_folder(folder, Preprocess(32))
    model = build(SMALL_REGNET, num_classes=10, image_size=32)
    assert isinstance(model, RegNet)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        indices = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(model(inputs[indices]), labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_a_regnet_is_calibrated_and_checked_on_different_images(
    digits: Path, tmp_path: Path
) -> None:
    report = export_model(
        train_on_digits(digits),
        tmp_path / "int8.onnx",
        spec=REGNET_SPEC,
        dtype="int8",
        images=digits,
    )
    assert report.agreement is not None
    assert report.agreement >= 0.99
    assert report.num_images == NUM_IMAGES - NUM_IMAGES // 3
    assert count_correct(report.path, digits) > 0.7 * NUM_IMAGES
    operators = {node.op_type for node in onnx.load(report.path).graph.node}
    assert operators >= {"QuantizeLinear", "DequantizeLinear", "Conv"}


@pytest.mark.slow
def test_features_keep_their_direction_and_few_images_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "swag_models"):
        report = export_model(
            randomise(build(SMALL_REGNET, num_classes=None, image_size=64)).eval(),
            tmp_path / "int8.onnx",
            spec=REGNET_SPEC,
            dtype="int8",
            images=SCENES,
        )
    assert (report.agreement, report.num_images) == (1, 10)
    assert "has only 10 images: ranges are calibrated on the images that are checked" in caplog.text


def test_int8_that_changes_many_predictions_is_not_written(scenes: Path, tmp_path: Path) -> None:
    model = swag_models.load_model("vit_nano_hashtags")
    head = model.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():  # all classes have nearly the same score
        head.weight.sub_(head.weight.mean(dim=0)).mul_(1e-3).add_(torch.randn(96))
        head.bias.zero_()
    message = (
        r"int8\.onnx was not written: it agrees with the original on \d+\.\d\d% of 300 images, "
        r"allowed: at least 99%"
    )
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "int8.onnx", spec=VIT_SPEC, dtype="int8", images=scenes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("count", "calibrated", "checked"), [(20, 10, 10), (300, 100, 200), (5000, 125, 975)]
)
def test_images_are_split_evenly(count: int, calibrated: int, checked: int, tmp_path: Path) -> None:
    for index in range(count):
        (tmp_path / f"{index:04}.png").touch()
    (tmp_path / "notes.txt").touch()
    calibration, remaining = split_images(tmp_path, needs_ranges=True)
    assert (len(calibration), len(remaining)) == (calibrated, checked)
    assert not set(calibration) & set(remaining)
    for part in (calibration, remaining):
        assert int(Path(part[-1].name).stem) > 0.98 * count - 3, "the whole folder is covered"
