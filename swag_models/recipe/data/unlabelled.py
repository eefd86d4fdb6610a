"""Images without labels, and labels without images, as data sets."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.paths import expand_location
from swag_models.recipe.data.annotation_formats import ANNOTATION_SUFFIXES
from swag_models.recipe.data.datasets import Decoder, ImageDataset, hash_file_sizes
from swag_models.recipe.data.manifest import MANIFEST_FILE
from swag_models.recipe.data.shard_labels import read_shard_labels
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import ShardSource, is_hf_dataset, open_source
from swag_models.recipe.data.urls import is_url


def open_images_only(data: Shards | ImageDataset) -> Shards | ImageDataset:
    """Open images whose labels, if there are any, are not needed.

    Args:
        data: as for `open_train_loader`; or images as for `find_images`, in any folders or in tar
            files.

    Returns:
        A data set; packed shards are returned unchanged, to be streamed.

    Raises:
        ConfigError: there are no images.
    """
    if isinstance(data, ImageDataset):
        return data
    if isinstance(data, (str, os.PathLike)):
        text = expand_location(data)
        root = Path(text)
        if is_url(text) or root.name == MANIFEST_FILE or (root / MANIFEST_FILE).is_file():
            return data
        if is_hf_dataset(root) or (root.suffix in ANNOTATION_SUFFIXES and not root.is_dir()):
            source = open_source(data)
            assert isinstance(source, ImageDataset)
            return source
    refs = find_images(data)
    paths = [str(ref.source) for ref in refs]
    root = Path(os.path.commonpath({os.path.dirname(os.path.abspath(path)) for path in paths}))
    files = list(dict.fromkeys(os.path.relpath(path, root) for path in paths))
    return ImageDataset.from_files(
        root,
        [os.path.relpath(ref.name, root) for ref in refs],
        [()] * len(refs),
        (),
        kind="images",
        files=files,
        sha256=hash_file_sizes(root, files),
        reader=partial(_read_ref, refs),
    )


def open_shard_labels(shards: Shards) -> tuple[ImageDataset, list[tuple[str, ...]]]:
    """Open the labels of packed shards without their images.

    Returns:
        A data set whose images cannot be read, and the names that each may have: its id, and its
        key in the shard.

    Raises:
        ConfigError: the shards are not local, or were not packed by `recipe pack`.
    """
    source = open_source(shards)
    assert isinstance(source, ShardSource)
    if source.num_classes is None:
        raise ConfigError(f"{source.title} has no {MANIFEST_FILE}; give a folder of packed shards")
    labels = list(read_shard_labels(shards))
    dataset = ImageDataset(
        kind="shard labels",
        root=Path(source.urls[0]).parent,
        title=source.title,
        names=[label.id for label in labels],
        labels=[label.classes for label in labels],
        class_names=source.class_names,
        num_classes=source.num_classes,
        sha256=source.sha256,
        files=[os.path.basename(url) for url in source.urls],
        reader=refuse_image,
        repeats=[label.repeat for label in labels],
    )
    return dataset, [(label.id, label.key) for label in labels]


def refuse_image(index: int) -> Image.Image:
    """The reader of labels without images."""
    raise ImageError(f"image {index} has only a label; its pixels were not given")


def _read_ref(refs: Sequence[ImageRef], index: int, decode: Decoder | None = None) -> Any:
    return refs[index].read(decode)
