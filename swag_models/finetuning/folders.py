"""The training and held-out images of a folder with one sub-folder for each class."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swag_models.errors import ConfigError, ImageError
from swag_models.finetuning.split import split_dataset
from swag_models.formatting import count_noun, escape_unprintable, list_names, printable
from swag_models.hub.hf_format import check_printable
from swag_models.paths import expand_path
from swag_models.recipe.data.annotation_formats import ANNOTATION_SUFFIXES
from swag_models.recipe.data.annotations import open_annotations
from swag_models.recipe.data.datasets import ImageDataset, find_folders
from swag_models.recipe.data.sources import find_image_folder, is_hf_dataset, open_image_dataset

# Names of sub-folders that are parts of a data set and not classes, in order of preference
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "dev", "test", "testing")

logger = logging.getLogger("swag_models")


@dataclass(frozen=True)
class FolderData:
    """The images of a fine-tuning run.

    Attributes:
        train: images to train on.
        held_out: images to measure the accuracy on; None if there are none.
        origin: where the held-out images come from, in words.
        multi_label: whether some image has several classes, or none.
    """

    train: ImageDataset
    held_out: ImageDataset | None
    origin: str
    multi_label: bool


def open_folder(
    folder: str | os.PathLike[str],
    val: str | os.PathLike[str] | None,
    holdout: float,
    seed: int,
    labels: str | os.PathLike[str] | None = None,
) -> FolderData:
    """Open a folder of images, and split it unless it has held-out images of its own.

    Args:
        folder: has a sub-folder of images for each class, or the sub-folders `train` and `val`
            (or `test`) with those; or a list of images and labels, a folder with such a list, or a
            Hugging Face dataset on disk.
        val: folder of held-out images of the same classes; None to use those of `folder`.
        holdout: fraction of each class to hold out if there is no folder of held-out images.
        seed: of the choice of these images.
        labels: file with the labels of the images in `folder`.

    Raises:
        ConfigError: a folder is missing or of another kind, there is one class, or no held-out
            image can be read.
    """
    root = _check_folder(folder, "folder")
    train_root, val_root = (root, None) if labels is not None else find_split_folders(root)
    if val is not None:
        val_root = _check_folder(val, "val")
    train = _open_dataset(train_root, labels)
    multi_label = any(len(classes) != 1 for classes in train.labels)
    if not multi_label:
        _check_classes(train, train_root)
    origin = "none"
    held_out: ImageDataset | None
    if val_root is not None:
        names = train.class_names
        held_out = open_image_dataset(val_root, names, VAL_NAMES, f"the data {train_root}")
        _check_apart(train, held_out)
        origin = str(val_root)
    else:
        train, held_out = split_dataset(train, holdout, seed)
        if held_out is not None:
            origin = f"{100 * holdout:.4g}% of each class"
    if held_out is None:
        _notify("no images are held out, so no accuracy is measured")
    else:
        _check_measurable(held_out)
    count = 0 if held_out is None else len(held_out)
    _notify(
        f"{count_noun(len(train), 'image')} of {count_noun(train.num_classes, 'class')} to train "
        f"on, {count:,} held out ({origin})"
    )
    return FolderData(train, held_out, origin, multi_label)


def find_split_folders(root: Path) -> tuple[Path, Path | None]:
    """Return the folder of training images, and that of held-out images if there is one.

    A folder is split if it has `train` with `val` or `test`, or nothing but `train`; otherwise its
    sub-folders are classes, also if one of them has such a name.
    """
    if root.is_file() or is_hf_dataset(root):
        return root, None
    names = {name.lower(): name for name in find_folders(root)}
    train = next((names[name] for name in TRAIN_NAMES if name in names), None)
    val = next((names[name] for name in VAL_NAMES if name in names), None)
    if train is None or (val is None and len(names) > 1):
        return root, None
    if others := sorted(set(names.values()) - {train, val}):
        _notify(f"left out of {root}: {list_names(others)}; {train} and {val} are used")
    return root / train, None if val is None else root / val


def _check_folder(folder: str | os.PathLike[str], option: str) -> Path:
    root = expand_path(folder, option)
    if root.suffix in ANNOTATION_SUFFIXES and root.is_file():
        return root
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise ConfigError(
            f"{option} {root} {kind}; give a folder with a sub-folder of images for each class, or "
            f"a list of images and labels ({' '.join(ANNOTATION_SUFFIXES)})"
        )
    if find_image_folder(root) is None:
        raise ConfigError(
            f"{option} {root} has packed shards; give a folder with a sub-folder of images for "
            "each class, or train on shards with: swag-models recipe train"
        )
    return root


def _check_apart(train: ImageDataset, held_out: ImageDataset) -> None:
    """Raise ConfigError if a held-out image, or the file it is in, is used for training too."""
    used = {os.path.realpath(train.root / file) for file in train.files}
    files = held_out.files
    shared = [file for file in files if os.path.realpath(held_out.root / file) in used]
    if shared:
        raise ConfigError(
            f"{len(shared)} of the held-out images are training images too, for example "
            f"{printable(shared[0])}; accuracy on these means nothing: give others as val"
        )


def _open_dataset(root: Path, labels: str | os.PathLike[str] | None) -> ImageDataset:
    if labels is None:
        dataset = open_image_dataset(root)
    else:
        path = expand_path(labels, "labels")
        inside = root / path
        if not path.exists() and inside.exists():
            path = inside
        if path.suffix not in ANNOTATION_SUFFIXES or path.is_dir():
            raise ConfigError(
                f"invalid labels {path}: allowed: a file {' '.join(ANNOTATION_SUFFIXES)}"
            )
        if not root.is_dir():
            raise ConfigError(f"labels {path} need the folder of their images, not {root}")
        dataset = open_annotations(path, folder=root)
    check_printable(root, *(dataset.class_names or ()))
    if dataset.class_names is None:  # a Hugging Face dataset may have numbers only
        names = [str(number) for number in range(dataset.num_classes)]
        return dataset.relabel(dict(enumerate(dataset.labels)), names, dataset.num_classes)
    return dataset


def _check_classes(dataset: ImageDataset, root: Path) -> None:
    """Raise ConfigError if there is a single class, which is often a folder level too many."""
    names = dataset.class_names or ()
    if len(names) != 1:
        return
    inner = root / names[0]
    hint = "add a sub-folder of images for every other class"
    if inner.is_dir() and (folders := find_folders(inner)):
        hint = f"if {list_names(folders, 3)} are the classes, give {inner}"
    raise ConfigError(f"{root} has one class, {names[0]}, and a classifier needs two; {hint}")


def _check_measurable(dataset: ImageDataset) -> None:
    """Raise ConfigError if no image has a label or can be read, before the time for training."""
    if not any(dataset.labels):
        raise ConfigError(
            f"none of the {count_noun(len(dataset), 'held-out image')} has a label; add some"
        )
    error: ImageError | None = None
    for index in range(len(dataset)):
        try:
            dataset.read(index)
            return
        except ImageError as reason:
            error = error or reason
    raise ConfigError(
        f"none of the {count_noun(len(dataset), 'held-out image')} can be read: {error}"
    )


def _notify(text: str, log: Callable[..., None] = logger.warning) -> None:
    log("%s", escape_unprintable(text, 499))
