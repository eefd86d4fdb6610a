"""Which kind of data a path or URL is: packed shards or images with an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.inference.image_sources import TAR_SUFFIXES
from swag_models.recipe.data.datasets import ImageDataset, find_folders, open_image_folder
from swag_models.recipe.data.hf_dataset import TRAIN_SPLITS, is_hf_dataset, open_hf_dataset
from swag_models.recipe.data.shards import MANIFEST, Shards


def find_image_folder(data: Shards) -> Path | None:
    """The folder of an image folder or a dataset on disk; None if the data are shards.

    Args:
        data: what `open_train_loader` takes.

    Raises:
        ConfigError: there is nothing at this path, or a file of another kind.
    """
    if not isinstance(data, (str, os.PathLike)):
        return None
    text = os.fspath(data)
    if "://" in text or text.startswith("pipe:") or text.endswith((*TAR_SUFFIXES, MANIFEST)):
        return None
    root = Path(text)
    if not root.is_dir():
        raise ConfigError(
            f"data {text} is {'a file' if root.exists() else 'not there'}; allowed: packed shards, "
            "paths or URLs of .tar files, a folder with a sub-folder of images for each class, or "
            "a dataset saved with save_to_disk"
        )
    if (root / MANIFEST).is_file():
        return None
    # A .tar beside the folders of an image folder is the archive they were unpacked from.
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
        classes: names of all classes of `owner`, which number the classes of the data set. None:
            the data set's own.
        splits: names of the split to open, in order of preference, if a dataset has several.
        owner: whose `classes` they are, for messages.

    Raises:
        ConfigError: the folder is neither, or has classes that are not among `classes`.
    """
    if is_hf_dataset(root):
        return open_hf_dataset(root, classes, splits, owner)
    if find_folders(root):
        return open_image_folder(root, classes, owner)
    names = sorted(path.name for path in root.iterdir())
    content = f"{', '.join(names[:5]) or 'nothing'}{', ...' if names[5:] else ''}"
    raise ConfigError(
        f"data folder {root} has {content}; allowed: packed shards, a sub-folder of images for each "
        "class, or a dataset saved with save_to_disk"
    )
