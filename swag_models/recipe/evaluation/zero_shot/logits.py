"""What a model says of every picture of some data, labelled or not.

Axes: N pictures, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from swag_models.errors import ConfigError
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.recipe.data.datasets import ImageDataset, find_folders
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.hf_dataset import EVAL_SPLITS, is_hf_dataset
from swag_models.recipe.data.sources import find_image_folder, open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel

DataSource = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Logits(NamedTuple):
    """values: float32 (N, K), on the CPU. labels: the class of each picture, None if the data have none.

    facts: of the data, as a `EvalLoader` has them. skipped: broken pictures by message.
    """

    values: Tensor
    names: list[str]
    labels: list[int] | None
    facts: Mapping[str, Any]
    skipped: Mapping[str, int]


def open_unlabelled(data: DataSource) -> ImageDataset:
    """Open files, folders searched to any depth, shell patterns or tar shards, without classes."""
    root, images = (
        Path(data if isinstance(data, (str, os.PathLike)) else data[0]),
        find_images(data),
    )
    digest = hashlib.sha256()
    for image in images:
        assert isinstance(image.source, Path)
        try:
            size = image.span or image.source.stat().st_size
        except OSError as error:
            raise ConfigError(
                f"{image.source} cannot be read: {error.strerror}; give images or folders"
            ) from None
        digest.update(f"{json.dumps(Path(image.name).name)} {size}\n".encode())
    return ImageDataset(
        kind="pictures",
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
    """Whether it is what `open_eval_loader` takes: packed shards, a dataset on disk, or a folder with sub-folders; else pictures."""
    try:
        if not isinstance(data, (str, os.PathLike)):
            return all(find_image_folder(each) is None for each in data)
        root = find_image_folder(data)
    except ConfigError:  # a picture or a pattern
        return False
    return root is None or is_hf_dataset(root) or bool(find_folders(root))


def find_classes(data: DataSource) -> tuple[str, ...] | None:
    """The names of the classes of a folder or dataset, None if it has none."""
    root = find_image_folder(data) if is_labelled(data) else None
    if root is None:
        return None
    return (
        open_image_dataset(root, splits=EVAL_SPLITS).class_names
        if is_hf_dataset(root)
        else tuple(find_folders(root))
    )


def read_logits(
    candidate: EvaluatedModel,
    data: DataSource | ImageDataset,
    classes: Sequence[str] | None,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = True,
) -> Logits:
    """Logits of all pictures that can be read, in order; in memory, which takes 8 N K bytes while they are put together.

    classes: what labels are indices of, or None to leave labels alone and take any pictures. ConfigError if a picture has not
    one label, a folder's name is none of the classes, no picture can be read, or logits overflow.
    """
    known = None if isinstance(data, ImageDataset) or not is_labelled(data) else classes
    if (
        known
        and not isinstance(data, ImageDataset)
        and (others := sorted(set(find_classes(data) or ()).difference(known)))
    ):
        raise ConfigError(
            f"{data} has {len(others)} classes that are no targets, such as {others[0]!r}; targets begin with "
            f"{', '.join(known[:3])}: rename either, or say what a name means, as in: {others[0]} n02084071"
        )
    check = open_eval_loader(
        data if known or isinstance(data, ImageDataset) else open_unlabelled(data),
        candidate.fit,
        batch_size=batch_size,
        rank=0,
        world_size=1,
        workers=workers,
        classes=known,
    )
    values, names, labels = list[Tensor](), list[str](), list[int]()
    with tqdm(total=check.samples, unit=" pictures", disable=not progress) as bar:
        for batch in check:
            values.append(candidate.classify(batch.images))
            names += batch.ids
            for name, each in zip(batch.ids if known else (), batch.classes):
                if len(each) != 1:
                    raise ConfigError(f"{name} has {len(each)} labels; each picture needs one")
                labels += each
            bar.update(len(batch.ids))
    if not values:
        raise ConfigError(
            f"no picture of {data} can be read: {next(iter(check.skipped), 'there are none')}"
        )
    if not all(torch.isfinite(each).all() for each in values):
        raise ConfigError(
            f"logits of {candidate.name} in {candidate.dtype} are not all finite; use dtype float32"
        )
    return Logits(torch.cat(values), names, labels if known else None, check.facts, check.skipped)


def _read_image(images: Sequence[ImageRef], index: int) -> Image.Image:
    image = images[index].read()
    assert isinstance(image, Image.Image)
    return image
