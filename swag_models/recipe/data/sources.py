"""Open labelled data of any kind: packed shards, image folders or Hugging Face datasets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swag_models.errors import ConfigError
from swag_models.inference.image_sources import TAR_SUFFIXES
from swag_models.recipe.data.datasets import ImageDataset, find_folders, open_image_folder
from swag_models.recipe.data.hf_dataset import TRAIN_SPLITS, is_hf_dataset, open_hf_dataset
from swag_models.recipe.data.shards import (
    MANIFEST_FILE,
    Shards,
    check_vocabulary,
    find_shards,
    hash_shards,
    name_shards,
)
from swag_models.recipe.data.urls import is_url


def find_image_folder(data: Shards) -> Path | None:
    """Return the path of an image folder or a dataset on disk; None if the data are shards.

    Args:
        data: as for `open_train_loader`.

    Raises:
        ConfigError: the path does not exist, or is a file of another kind.
    """
    if not isinstance(data, (str, os.PathLike)):
        return None  # a sequence of shards
    text = os.fspath(data)
    if is_url(text) or text.endswith((*TAR_SUFFIXES, MANIFEST_FILE)):
        return None
    root = Path(text)
    if not root.is_dir():
        raise ConfigError(
            f"data {text} {'is a file' if root.exists() else 'does not exist'}; allowed: packed "
            "shards, paths or URLs of .tar files, a folder with a sub-folder of images for each "
            "class, or a dataset saved with save_to_disk"
        )
    if (root / MANIFEST_FILE).is_file():
        return None
    # A .tar beside class folders is the archive that they were unpacked from, not a shard.
    has_images = is_hf_dataset(root) or bool(find_folders(root))
    return root if has_images or not any(root.glob("*.tar")) else None


def open_image_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = TRAIN_SPLITS,
    owner: str = "the model",
) -> ImageDataset:
    """Open an image folder or a Hugging Face dataset on disk.

    Args:
        root: the folder.
        classes: names of all classes of `owner`; the classes of the data set are numbered by them.
            By default the data set's own.
        splits: names of the split to open, in order of preference, if a dataset has several.
        owner: what has these `classes`, for messages.

    Raises:
        ConfigError: the folder is of another kind, or has classes that are not in `classes`.
    """
    if is_hf_dataset(root):
        return open_hf_dataset(root, classes, splits, owner)
    if find_folders(root):
        return open_image_folder(root, classes, owner)
    # The first names show the user what kind of folder it is.
    names = sorted(path.name for path in root.iterdir())
    content = f"{', '.join(names[:5]) or 'nothing'}{', ...' if names[5:] else ''}"
    raise ConfigError(
        f"data folder {root} has {content}; allowed: packed shards, a sub-folder of images for "
        "each class, or a dataset saved with save_to_disk"
    )


@dataclass(frozen=True)
class ShardSource:
    """Shards with the classes of a model.

    Attributes:
        title: name of the data for reports.
        urls: paths or URLs of all shards.
        num_classes: number of classes; None for shards without a manifest.
        class_names: names of all classes of the model; None if not given.
        sha256: see `hash_shards`.
        samples: expected number of samples in an epoch; None without a manifest.
        count: number of different samples; None without a manifest.
    """

    title: str
    urls: list[str]
    num_classes: int | None
    class_names: tuple[str, ...] | None
    sha256: str
    samples: int | None
    count: int | None
    kind = "shards"


def open_source(
    data: Shards,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = TRAIN_SPLITS,
    synsets: Sequence[str] | None = None,
) -> ImageDataset | ShardSource:
    """Open labelled data of any kind.

    Args:
        data: as for `open_train_loader`.
        classes: names of all classes of a model; by default the data's own.
        splits: names of the split of a dataset to open, in order of preference.
        synsets: synset of each class of a model; a vocabulary beside shards must have the same.

    Raises:
        ConfigError: the data do not exist, or have other classes.
    """
    if root := find_image_folder(data):
        return open_image_dataset(root, classes, splits)
    check_vocabulary(data, synsets)
    urls, manifest = find_shards(data)
    # The classes of shards are numbers, so they cannot be matched by name.
    num_classes = manifest["num_classes"] if manifest else None
    if classes and num_classes and num_classes > len(classes):
        raise ConfigError(
            f"{name_shards(data)} has {num_classes} classes; "
            f"allowed: at most {len(classes)}, as the model has"
        )
    return ShardSource(
        title=name_shards(data),
        urls=urls,
        num_classes=len(classes) if classes else num_classes,
        class_names=tuple(classes) if classes else None,
        sha256=hash_shards(data),
        # Repeat factors may be fractions, so their sum is rounded.
        samples=round(manifest["samples"]) if manifest else None,
        count=manifest["count"] if manifest else None,
    )


def describe_source(source: ImageDataset | ShardSource, samples: int | None) -> dict[str, Any]:
    """Describe data for reports and model cards: kind, name, samples, classes, SHA-256."""
    return {
        "kind": source.kind,
        "name": source.title,
        "samples": samples,
        "classes": source.num_classes,
        "sha256": source.sha256,
    }
