"""What a feed and a check share: batches, what makes them of samples, and what is known of data before any is read.

Axes: n the samples of a batch, S pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from swag_models.errors import ConfigError, SwagModelsError
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.loader import Decode
from swag_models.recipe.data.shards import Shards, name_shards
from swag_models.recipe.data.stream import Sample
from swag_models.recipe.worker_pool import ignore_signals

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


def take_sample(
    dataset: ImageDataset, index: int, transform: Transform
) -> tuple[Tensor, tuple[int, ...], str]:
    """What `collate_samples` takes; ImageError if the picture is broken."""
    return transform(dataset.read(index)), dataset.labels[index], dataset.name(index)


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
    return iter(DataLoader(reader, batch_size=None, worker_init_fn=ignore_signals, **options))


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
