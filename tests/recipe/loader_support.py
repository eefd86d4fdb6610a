"""Folders, datasets and training loaders for the tests of the data loaders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from decoding import crop_randomly
from image_support import make_pixels
from PIL import Image
from torchvision.datasets import ImageFolder

from swag_models.recipe.config import Engine
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.train_loader import TrainLoader, open_train_loader

CLASSES = {"cat": 9, "dog": 7, "emu": 5}
COUNT = sum(CLASSES.values())


def make_folder(root: Path) -> Path:
    """Write images with different pixels into sub-folders of each class."""
    numbers = itertools.count()
    for name, count in CLASSES.items():
        for index in range(count):
            path = root / name / ("deep" if index % 2 else "") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make_pixels(next(numbers), 10, 12)).save(path)
    (root / ".hidden").mkdir()
    (root / "notes.txt").write_text("not a class")
    return root


def make_dataset(folder: Path) -> Path:
    """Save the images of a folder as a Hugging Face dataset of two splits."""
    datasets = pytest.importorskip("datasets")
    # torchvision's order, the same as that of `open_image_folder`
    peer = ImageFolder(
        str(folder), is_valid_file=lambda path: path.endswith(".png"), allow_empty=True
    )
    names = sorted(CLASSES)
    files = sorted(path for path, _ in peer.samples)
    rows = {
        "image": files,
        "label": [names.index(Path(path).relative_to(folder).parts[0]) for path in files],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    dataset = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(3))}).save_to_disk(
        str(folder.parent / "saved")
    )
    return folder.parent / "saved"


def open_loader(data: Any, rank: int = 0, world_size: int = 1, **options: Any) -> TrainLoader:
    """Open a training loader; `workers` and `lanes` are fields of its engine."""
    engine = Engine(
        **{
            "workers": 0,
            "buffer": 20,
            **{key: options.pop(key) for key in ("workers", "lanes") if key in options},
        }
    )
    defaults = {
        "transform": crop_randomly,
        "batch_size": 8,
        "seed": 3,
        "rank": rank,
        "world_size": world_size,
    }
    return open_train_loader(data, engine=engine, **{**defaults, **options})


def take(loader: TrainLoader, count: int) -> list[Batch]:
    """Take the next batches."""
    return list(itertools.islice(loader, count))
