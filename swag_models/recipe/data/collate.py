"""What a feed and a check share: batches, what makes them of samples, and what is known of data before any is read.

Axes: n the samples of a batch, S pixels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from swag_models.errors import ConfigError, SwagModelsError
from swag_models.inference.image_sources import TAR_SUFFIXES
from swag_models.recipe.data.datasets import ImageDataset, find_folders, is_dataset
from swag_models.recipe.data.loader import Decode
from swag_models.recipe.data.shards import MANIFEST, Shards, find_vocabulary, read_vocabulary
from swag_models.recipe.data.stream import Sample
from swag_models.recipe.worker_pool import outlast_signals

Transform = Callable[[Image.Image], Tensor]


class Batch(NamedTuple):
    """Images, uint8 (n, 3, S, S); the classes of each; and what names each: a shard's id, a path in the folder, or a row."""

    images: Tensor
    classes: list[tuple[int, ...]]
    ids: list[str]


class Share(NamedTuple):
    """What a worker sends: a rank's part of a batch, or what ended it; and what was broken."""

    batch: Batch | None
    skipped: Counter[str]
    error: SwagModelsError | None = None


class Named:
    """A sample of a shard -> what `collate_samples` takes; ConfigError if it has a class that the model has not."""

    def __init__(self, transform: Transform, num_classes: int | None) -> None:
        self.decode, self.num_classes = Decode(transform), num_classes

    def __call__(self, sample: Sample) -> tuple[Tensor, tuple[int, ...], str]:
        image, classes = self.decode(sample)
        greatest = max(classes, default=0)
        if self.num_classes is not None and greatest >= self.num_classes:
            raise ConfigError(
                f"{sample['id']} in {sample['__url__']} has class {greatest}; there are {self.num_classes}, from 0 on"
            )
        return image, classes, sample["id"]


def find_folder(data: Shards) -> Path | None:
    """The folder of an album, or None if the data are shards; ConfigError if they are neither."""
    if not isinstance(data, (str, os.PathLike)):
        return None
    text = os.fspath(data)
    if "://" in text or text.startswith("pipe:") or text.endswith((*TAR_SUFFIXES, MANIFEST)):
        return None
    root = Path(text)
    if not root.is_dir():
        raise ConfigError(
            f"data {text} is {'a file' if root.exists() else 'not there'}; allowed: packed shards, paths or URLs of .tar "
            "files, a folder with a sub-folder of pictures for each class, or what save_to_disk of datasets wrote"
        )
    if (root / MANIFEST).is_file():
        return None
    bare = not is_dataset(root) and not find_folders(
        root
    )  # beside pictures, a .tar is what they were unpacked from
    return None if bare and any(root.glob("*.tar")) else root


def take_sample(
    album: ImageDataset, index: int, transform: Transform
) -> tuple[Tensor, tuple[int, ...], str]:
    """What `collate_samples` takes; ImageError if the picture is broken."""
    return transform(album.read(index)), album.classes(index), album.name(index)


def collate_samples(samples: list[tuple[Tensor, tuple[int, ...], str]]) -> Batch:
    """At least one (image (3, S, S), classes, id) -> a batch."""
    images, classes, ids = zip(*samples)
    return Batch(default_collate(list(images)), list(classes), list(ids))


def run_workers(reader: Dataset[Share], parts: Iterable[range], workers: int) -> Iterator[Share]:
    """What the reader makes of each part, in order; the processes end with the iterator."""
    generator = (
        torch.Generator()
    )  # else every pass would draw from the generator that training uses
    options: dict[str, Any] = {
        "sampler": parts,
        "num_workers": workers,
        "collate_fn": _pass_on,
        "generator": generator,
    }
    return iter(DataLoader(reader, batch_size=None, worker_init_fn=outlast_signals, **options))


def _pass_on(share: Any) -> Any:
    return share


def count_classes(
    manifest: dict[str, Any] | None, classes: Sequence[str] | None, shards: Shards
) -> tuple[int | None, tuple[str, ...] | None]:
    """How many classes there are, and their names if they were given."""
    count = manifest["num_classes"] if manifest else None
    if classes and count and count > len(classes):
        raise ConfigError(
            f"{name_shards(shards)} has {count} classes; the model has {len(classes)}"
        )
    return (len(classes), tuple(classes)) if classes else (count, None)


def check_vocabulary(shards: Shards, synsets: Sequence[str] | None) -> None:
    """ConfigError if a vocabulary beside the shards has other classes than these, or has them in another order."""
    path = find_vocabulary(shards)
    if (
        path
        and synsets is not None
        and [row["synset"] for row in read_vocabulary(path)] != list(synsets)
    ):
        raise ConfigError(
            f"{path} is not the vocabulary of the model; give shards of the curation it learns from"
        )


def name_shards(shards: Shards) -> str:
    """What to call them where others read it, so without folders, commands and the keys that URLs may have."""
    if not isinstance(shards, (str, os.PathLike)):
        return (
            f"{name_shards(shards[0])} and {len(shards) - 1} more"
            if len(shards) > 1
            else name_shards(shards[0])
        )
    text = os.fspath(shards)
    if text.startswith("pipe:"):
        return "pipe"
    return Path(text.partition("?")[0].removesuffix(MANIFEST)).resolve().name


def describe_data(
    kind: str, name: str, samples: int | None, classes: int | None, sha256: str
) -> dict[str, Any]:
    """The `facts` of a feed or check."""
    return {"kind": kind, "name": name, "samples": samples, "classes": classes, "sha256": sha256}


def check_division(name: str, value: int, by: int, what: str) -> None:
    """ConfigError unless a positive number can be divided by so many of `what`."""
    if value < 1 or value % by:
        near = max(1, round(value / by)) * by
        allowed = (
            f"with {by} {what} it is a positive multiple of {by}, for example {near}"
            if by > 1
            else "allowed: 1 or more"
        )
        raise ConfigError(f"{name} is {value}; {allowed}")
