"""Fine-tuning on images with several labels: lists of labels, a sigmoid for each class."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest
from image_support import write_images
from PIL import Image

from swag_models.api import get_spec
from swag_models.cli import main
from swag_models.finetuning.folders import open_folder
from swag_models.inference import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")

Capture = pytest.CaptureFixture[str]
COLOURS = {"red": 0, "green": 1, "blue": 2}
SHORT = ["--model", "vit_nano_hashtags", "--image-size", "16", "--device", "cpu", "--quiet"]
SHORT += ["--set", "epochs=none"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images with any of three colours in them, and a list of the colours of each."""
    draw = random.Random(0)
    (tmp_path / "photos").mkdir()
    rows = ["file_name,labels"]
    for number in range(60):
        shown = [name for name in COLOURS if draw.random() < 0.5]
        pixel = tuple(200 if name in shown else draw.randrange(40) for name in COLOURS)
        Image.new("RGB", (16, 16), pixel).save(tmp_path / "photos" / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(shown)}")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows))
    return tmp_path / "photos"


@pytest.mark.parametrize("kind", ["sigmoid", pytest.param("asymmetric", marks=pytest.mark.slow)])
def test_images_with_several_labels_give_a_multi_label_model(
    kind: str, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "model"
    arguments = [*SHORT, "--set", "steps=20", "-o", str(output)]
    if kind != "sigmoid":  # the default for such data
        arguments += ["--set", f"objective.kind={kind}"]
    assert main(["finetune", str(photos), "--labels", "labels.csv", *arguments]) == 0
    printed = capsys.readouterr()
    assert "held-out images: mAP" in printed.err
    assert "OF1" in printed.err
    spec = get_spec(output)
    assert (spec.multi_label, spec.metrics) == (True, None)
    recipe = json.loads((output / "recipe.json").read_text())
    assert recipe["metrics"]["mAP"] > 60, "of guessing about 50"
    assert recipe["run"]["objective"]["kind"] == kind
    assert f"mAP {recipe['metrics']['mAP']:.2f}%" in (output / "README.md").read_text()
    assert not (output / "confusion.png").exists()
    with open(output / "held_out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = (photos / "labels.csv").read_text().split("\n")[1:]
    labels = {name: set(text.split("|")) for name, text in (line.split(",") for line in lines)}
    assert all(labels[row["image"]] == set(row["class"].split(" | ")) for row in rows)
    assert 8 <= len(rows) <= 16
    paths = [photos / row["image"] for row in rows]
    predictions = Classifier(output, threshold=0.5)(paths)
    assert [row["predicted"] for row in rows] == [
        " | ".join(prediction.label for prediction in image) for image in predictions
    ]
    assert main(["finetune", str(photos), "--labels", "labels.csv", *arguments]) == 0
    assert capsys.readouterr().out == printed.out


def test_lists_folders_with_lists_and_lists_elsewhere_are_the_same_data(
    photos: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_text((photos / "labels.csv").read_text())
    first = open_folder(photos, None, 0.2, 0, "labels.csv")
    (photos / "labels.csv").rename(photos / "metadata.csv")
    for other in (
        open_folder(photos, None, 0.2, 0, elsewhere),
        open_folder(photos / "metadata.csv", None, 0.2, 0),
        open_folder(photos, None, 0.2, 0),
    ):
        assert other.multi_label
        assert list(other.train.names) == list(first.train.names)
        assert list(other.train.labels) == list(first.train.labels)
        assert other.held_out is not None
        assert any(labels == () for labels in other.held_out.labels), "some have no label"


def test_one_label_for_each_image_is_a_classifier(photos: Path) -> None:
    rows = [f"{number}.png,{'a' if number % 3 else 'b'}" for number in range(60)]
    (photos / "labels.csv").write_text("\n".join(["file_name,labels", *rows]))
    assert not open_folder(photos, None, 0.2, 0, "labels.csv").multi_label


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file_name,labels\n0.png,\n1.png,\n", "label"),
        ("file_name,labels\nnone.png,a\n", "neither this nor the next images are in"),
        ("file_name,labels\n../0.png,a\n", "relative paths below the folder"),
        ("file_name,labels\n0.png,a\n1.png,a\n", "has one class, a, and a classifier needs two"),
        ("", "cannot be read|has no|lists no"),
        ("\0", "cannot be read|has no|lists no"),
    ],
)
def test_a_list_that_does_not_fit_is_one_line(
    text: str, reason: str, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (photos / "labels.csv").write_text(text)
    arguments = [str(photos), "--labels", "labels.csv", *SHORT, "--set", "steps=2"]
    assert main(["finetune", *arguments, "-o", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(reason, error), error
    assert len(error) < 500
    assert not (tmp_path / "model.work").exists()


@pytest.mark.parametrize("labels", ["0.png", "photos", "none.csv", "labels"])
def test_labels_of_another_kind_are_one_line(labels: str, photos: Path, capsys: Capture) -> None:
    arguments = ["finetune", str(photos), *SHORT, "-o", str(photos.parent / "model")]
    assert main([*arguments, "--labels", labels]) == 2
    assert labels in capsys.readouterr().err.splitlines()[-1]


def test_held_out_images_need_labels(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    write_images(tmp_path / "val", 2)
    (tmp_path / "val" / "labels.csv").write_text("file_name,labels\n0000.png,\n0001.png,\n")
    arguments = ["finetune", str(photos), "--labels", "labels.csv", *SHORT, "--set", "steps=2"]
    for val in (tmp_path / "val" / "labels.csv", photos / "labels.csv", tmp_path / "none.csv"):
        assert main([*arguments, "--val", str(val), "-o", str(tmp_path / "model")]) == 2
        assert len(capsys.readouterr().err.splitlines()[-1]) < 500
