"""Held-out images: the same ones in every run, some of each class, never copies of the others."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from image_support import write_images
from PIL import Image

from swag_models.errors import ConfigError
from swag_models.finetuning.folders import find_split_folders, open_folder
from swag_models.finetuning.split import split_dataset
from swag_models.recipe.data.datasets import ImageDataset, open_image_folder

SIZES = {"art": 1, "bird": 2, "car": 3, "dog": 10, "egg": 33}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("split") / "images"
    for number, (name, count) in enumerate(SIZES.items()):
        for image in range(count):  # no two files are equal, though many have the same size
            path = root / name / "deep" / f"{image}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, image, 7)).save(path)
    return root


def count_classes(dataset: ImageDataset) -> Counter[str]:
    assert dataset.class_names is not None
    return Counter(dataset.class_names[label] for (label,) in dataset.labels)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.2, {"bird": 1, "car": 1, "dog": 2, "egg": 7}),
        (0.5, {"bird": 1, "car": 2, "dog": 5, "egg": 16}),
        (0.99, {"bird": 1, "car": 2, "dog": 9, "egg": 32}),
    ],
)
def test_a_share_of_each_class_is_held_out_and_one_image_is_trained_on(
    images: Path, share: float, expected: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_image_folder(images)
    train, held_out = split_dataset(dataset, share, 0)
    assert held_out is not None
    assert count_classes(held_out) == expected
    assert count_classes(train) + count_classes(held_out) == Counter(SIZES)
    assert set(train.names).isdisjoint(held_out.names)
    assert train.class_names == held_out.class_names == tuple(SIZES)
    assert "1 of 5 classes with one image, or copies of one" in caplog.text
    assert "art" in caplog.text
    for part in (train, held_out):
        assert part.read(0).size == (4, 4)
        assert images.joinpath(part.names[0]).is_file()


def test_the_split_depends_on_names_and_seed_only(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "elsewhere")
    names = []
    for root, seed in ((images, 0), (tmp_path / "elsewhere", 0), (images, 1)):
        _, held_out = split_dataset(open_image_folder(root), 0.2, seed)
        assert held_out is not None
        names.append(list(held_out.names))
    assert names[0] == names[1] != names[2]


def test_copies_stay_on_one_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(0)
    for name in ("a", "b"):
        write_images(tmp_path / name, 12)
        for path in sorted((tmp_path / name).iterdir()):
            for copy in range(draw.randint(0, 4)):
                shutil.copy(path, path.with_name(f"copy {copy} of {path.name}"))
    shutil.copy(tmp_path / "a" / "0003.png", tmp_path / "b" / "wrong.png")
    dataset = open_image_folder(tmp_path)
    for seed in range(20):
        caplog.clear()
        train, held_out = split_dataset(dataset, 0.3, seed)
        assert held_out is not None
        for name in ("a", "b"):
            contents = [
                {(tmp_path / path).read_bytes() for path in part.names if path.startswith(name)}
                for part in (train, held_out)
            ]
            assert contents[0].isdisjoint(contents[1])
            assert all(contents)
    assert "images are copies of others" in caplog.text
    assert "copies in another class" in caplog.text


def test_a_class_of_copies_is_not_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 5)
    for number in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "b" / "0000.png", tmp_path / "a" / f"{number}.png")
    _, held_out = split_dataset(open_image_folder(tmp_path), 0.5, 0)
    assert held_out is not None
    assert count_classes(held_out).keys() == {"b"}


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan"), "x", None])
def test_an_invalid_share_is_rejected(images: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=r"holdout is .*allowed: from 0 to below 1"):
        split_dataset(open_image_folder(images), share, 0)


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (("train", "val"), "train", "val"),
        (("Train", "Validation", "test"), "Train", "Validation"),
        (("training", "test"), "training", "test"),
        (("train", "valid", "labels"), "train", "valid"),
        (("train",), "train", None),
        (("train", "car", "plane"), "", None),  # vehicles
        (("val", "test"), "", None),
        (("cat", "dog"), "", None),
    ],
)
def test_a_folder_of_parts_is_told_from_one_of_classes(
    names: tuple[str, ...], train: str, val: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    assert find_split_folders(tmp_path) == (tmp_path / train, tmp_path / val if val else None)


def test_own_held_out_images_are_used_as_they_are(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "test", "extra"):
        shutil.copytree(images, tmp_path / part)
    shutil.rmtree(tmp_path / "test" / "car")
    data = open_folder(tmp_path, None, 0.2, 0)
    assert data.held_out is not None
    assert (len(data.train), len(data.held_out)) == (49, 46)
    assert count_classes(data.held_out) == Counter(SIZES) - Counter(car=3)
    assert f"left out of {tmp_path}: extra" in caplog.text
    assert "49 images of 5 classes to train on, 46 held out" in caplog.text
    other = open_folder(images, tmp_path / "test", 0.2, 0)
    assert other.held_out is not None
    assert (other.train.root, len(other.held_out)) == (images, 46)
