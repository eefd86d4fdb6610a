"""Open Hugging Face datasets on disk as labelled images. Imports no torch."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.preprocess import read_image
from swag_models.recipe.data.datasets import (
    ImageDataset,
    Labels,
    check_size,
    hash_file_sizes,
    match_names,
)
from swag_models.runtime import import_extra

SPLITS_FILE = "dataset_dict.json"  # lists the splits, each of which is a sub-folder
# `datasets.load_from_disk` reads a folder that contains one of these files.
DATASET_FILES = (SPLITS_FILE, "dataset_info.json", "state.json")
TRAIN_SPLITS = ("train",)
EVAL_SPLITS = ("validation", "val", "test")  # in order of preference


def open_hf_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = TRAIN_SPLITS,
    owner: str = "the model",
) -> ImageDataset:
    """Open a folder that `datasets.Dataset.save_to_disk` wrote.

    Args:
        root: the folder. Its rows need the columns `image` (an Image, or the bytes of a file) and
            `label` (a ClassLabel, an integer of at least 0, or a list of either).
        classes: as for `open_image_dataset`.
        splits: as for `open_image_dataset`.
        owner: as for `open_image_dataset`.

    Raises:
        ConfigError: `datasets` is not installed, the folder is damaged, or a column is missing.
    """
    datasets = import_extra("datasets", "datasets", "a Hugging Face dataset")
    folder = _choose_split(root, splits)
    try:
        rows = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder} cannot be read as a dataset: {reason}") from None
    if missing := {"image", "label"} - set(rows.column_names):
        raise ConfigError(
            f"{folder} has no column {' and '.join(sorted(missing))}; its columns are "
            f"{', '.join(rows.column_names)}: rename one with Dataset.rename_column"
        )
    if not len(rows):
        raise ConfigError(f"{folder} has no rows; give a dataset with images")
    labels, class_names, num_classes = _read_labels(rows, folder, classes, owner)
    # Keep the bytes, to decode them like other files: size limit, orientation, RGB.
    if isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    return ImageDataset(
        kind="dataset",
        root=folder,
        title="/".join((root.resolve().name, *folder.relative_to(root).parts)),
        names=list(map(str, range(len(rows)))),
        labels=labels,
        class_names=class_names,
        num_classes=num_classes,
        sha256=hash_file_sizes(folder, files),
        files=files,
        reader=partial(_read_row, rows.select_columns("image").with_format(None), folder),
    )


def is_hf_dataset(root: Path) -> bool:
    """Return whether a folder looks like a Hugging Face dataset."""
    return any((root / name).is_file() for name in DATASET_FILES)


def _read_row(rows: Any, folder: Path, index: int) -> Image.Image:
    name, cell = f"row {index} of {folder}", rows[index]["image"]
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if isinstance(content, bytes):
        return check_size(read_image(io.BytesIO(content), name), name)
    if isinstance(cell, dict) and cell["path"]:
        return check_size(read_image(cell["path"], name), name)
    raise ImageError(f"{name} has a {type(content).__name__} instead of an image")


def _read_labels(
    rows: Any, folder: Path, classes: Sequence[str] | None, owner: str
) -> tuple[list[Labels], tuple[str, ...] | None, int]:
    """Return the labels of all rows, the class names if any, and the number of classes."""
    # As one Arrow column: reading a million rows one by one takes minutes.
    cells = rows.select_columns("label").with_format("arrow")[:]["label"].to_pylist()
    labels = [tuple(cell) if isinstance(cell, list) else (cell,) for cell in cells]
    for number, row in enumerate(labels):
        if not all(type(label) is int and label >= 0 for label in row):
            raise ConfigError(
                f"row {number} of {folder} has label {cells[number]!r}; "
                "allowed: integers of at least 0"
            )
    feature = rows.features["label"]
    feature = getattr(feature, "feature", feature)  # the items of a list
    names = getattr(feature, "names", None)
    count = len(names or ()) or max((label for row in labels for label in row), default=-1) + 1
    if names and classes:
        numbers = match_names(names, classes, folder, owner)
        labels = [tuple(numbers[label] for label in row) for row in labels]
    elif classes and count > len(classes):
        raise ConfigError(
            f"{folder} has {count} classes without names; {owner} has {len(classes)}: give the "
            "column label the type ClassLabel"
        )
    names = tuple(classes or names or ()) or None
    return labels, names, len(names or ()) or count


def _choose_split(root: Path, splits: Sequence[str]) -> Path:
    path = root / SPLITS_FILE
    if not path.is_file():
        return root
    try:
        names: Any = json.loads(path.read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    for split in splits:
        if split in names:
            return root / split
    raise ConfigError(
        f"{root} has no split {' or '.join(splits)}; its splits are {', '.join(names)}: give the "
        f"folder of one, for example {root / str(names[0])}"
    )
