"""Logits of a model for all images of a data set, labelled or not.

Axes: N images, K classes.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.hub.cache import cache_folder
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.recipe.classes.class_matching import NamedClasses, relabel_images
from swag_models.recipe.data.annotations import find_annotations
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import ImageDataset, find_folders
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.sources import (
    EVAL_SPLITS,
    find_image_folder,
    is_hf_dataset,
    open_image_dataset,
)
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.row_pass import collect_rows
from swag_models.recipe.evaluation.stored_rows import StoredRows
from swag_models.recipe.training.distributed import SINGLE_PROCESS, DistContext

DataSource = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Logits(NamedTuple):
    """The outputs of a model.

    Attributes:
        values: (N, K), float32, in a temporary file.
        names: names of the images (N).
        labels: class of each image (N); None if the data have no labels.
        facts: description of the data, as `EvalLoader.facts`.
        skipped: number of images that could not be read, by error message.
    """

    values: StoredRows
    names: list[str]
    labels: list[int] | None
    facts: Mapping[str, Any]
    skipped: Mapping[str, int]


def open_unlabelled(data: DataSource) -> ImageDataset:
    """Open images without classes.

    Args:
        data: files, folders (searched to any depth), shell patterns or .tar files.

    Raises:
        ConfigError: a file is missing.
    """
    root = Path(data if isinstance(data, (str, os.PathLike)) else data[0])
    images = find_images(data)
    digest = hashlib.sha256()
    for image in images:
        assert isinstance(image.source, Path)  # `find_images` returns no images in memory
        try:
            # for an image in a .tar, its offset and size are hashed
            # A link that leads nowhere is one broken image, which is reported when it is read.
            size = image.span or image.source.stat(follow_symlinks=image.source.exists()).st_size
        except OSError as error:
            raise ConfigError(
                f"{image.source} cannot be read: {error.strerror}; pass images or folders"
            ) from None
        # the file name only: the same images in another folder have the same hash
        digest.update(f"{json.dumps(Path(image.name).name)} {size}\n".encode())
    return ImageDataset(
        kind="images",
        root=root,
        title=root.resolve().name,
        names=[image.name for image in images],
        labels=[()] * len(images),
        class_names=None,
        num_classes=0,
        sha256=digest.hexdigest(),
        files=[os.path.abspath(str(image.source)) for image in images],
        reader=partial(_read_image, images),
    )


def is_labelled(data: DataSource) -> bool:
    """Whether data have labels: packed shards, annotations, a dataset, a folder with sub-folders.

    Args:
        data: data of any kind; all other kinds are images without labels.
    """
    try:
        if not isinstance(data, (str, os.PathLike)):
            return all(find_image_folder(path) is None for path in data)
        root = find_image_folder(data)
    except ConfigError:  # an image or a pattern
        return False
    return root is None or _names_classes(root) or bool(find_folders(root))


def find_classes(data: DataSource) -> tuple[str, ...] | None:
    """Class names of a folder or dataset on disk; None for other data, which have no names.

    Args:
        data: data of any kind.
    """
    root = find_image_folder(data) if is_labelled(data) else None
    if root is None:
        return None
    # a dataset or annotation file stores the names; in a folder they are the sub-folders
    if _names_classes(root):
        return open_image_dataset(root, splits=EVAL_SPLITS).class_names
    return tuple(find_folders(root))


def _names_classes(root: Path) -> bool:
    """Whether an annotation file or the metadata of a dataset name the classes."""
    return root.is_file() or is_hf_dataset(root) or find_annotations(root) is not None


def read_logits(
    model: EvaluatedModel,
    data: DataSource | ImageDataset,
    classes: NamedClasses | None,
    *,
    skip_unmatched: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
    dist: DistContext = SINGLE_PROCESS,
    scratch: Path | None = None,
) -> Logits:
    """Compute the logits of all images that can be read, in order.

    They are stored in a temporary file of 4 N K bytes, which disappears with the result.

    Args:
        model: a model with classes.
        data: labelled data as for `open_eval_loader`, or images.
        classes: the classes that labels are indices of; names in the data match them in any
            spelling. None to ignore labels.
        skip_unmatched: leave out images of other classes.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        progress: whether to show a progress bar.
        dist: the ranks that share the work; by default this process alone.
        scratch: folder for the temporary file; by default the cache folder of downloads.

    Returns:
        The logits on rank 0; on other ranks, without images.

    Raises:
        OutputError: the temporary file cannot be written.
        ConfigError: an image does not have exactly one label, a class of the data is not among
            `classes`, no image can be read, or logits overflow.
    """
    source: DataSource | ImageDataset = data
    if isinstance(data, ImageDataset):  # opened by `open_unlabelled`, so without labels
        classes, title = None, str(data.root)
    elif classes and is_labelled(data):
        title = str(data)
        if root := find_image_folder(data):
            images = open_image_dataset(root, splits=EVAL_SPLITS)
            if images.class_names is not None:
                source = relabel_images(images, classes, skip_unmatched)
    else:
        source, classes, title = open_unlabelled(data), None, str(data)
    loader = open_eval_loader(
        source,
        model.fit,
        batch_size=batch_size,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=workers,
        classes=classes.names if classes else None,
    )

    def compute(batch: Batch) -> tuple[NDArray[np.float32]]:
        for name, image_labels in zip(batch.ids if classes else (), batch.classes):
            if len(image_labels) != 1:
                raise ConfigError(
                    f"{name} has {count_noun(len(image_labels), 'label')}; use images with one "
                    "label each"
                )
        return (model.classify(batch.images).numpy(),)

    folder = scratch or cache_folder()
    rows = collect_rows(loader, compute, dist, folder, batch_size=batch_size, progress=progress)
    loader.require_images(title)
    assert model.num_classes
    values = rows.outputs[0] if dist.is_main else StoredRows(folder, model.num_classes)
    labels = [image_labels[0] for image_labels in rows.classes] if classes else None
    return Logits(values, rows.names, labels, loader.facts, loader.skipped)


def _read_image(images: Sequence[ImageRef], index: int) -> Image.Image:
    image = images[index].read()
    assert isinstance(image, Image.Image)
    return image
