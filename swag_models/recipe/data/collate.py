"""Batches of labelled images, and data loaders with worker processes that send them.

Axes: N samples of a batch, S pixels.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from swag_models.errors import SwagModelsError
from swag_models.image_formats import named_errors
from swag_models.recipe.data.datasets import ImageDataset, Labels

Transform = Callable[[Image.Image], Tensor]
LoadedSample = tuple[Tensor, Labels, str]  # image (3, S, S), class numbers, id


class Batch(NamedTuple):
    """Labelled images.

    Attributes:
        images: uint8 (N, 3, S, S).
        classes: class numbers of each image.
        ids: id of each image: the id of a packed sample, a path in the folder, or a row number.
    """

    images: Tensor
    classes: list[Labels]
    ids: list[str]

    def select(self, part: slice) -> "Batch":
        """Return a part of the batch."""
        return Batch(self.images[part], self.classes[part], self.ids[part])


class WorkerResult(NamedTuple):
    """What a worker process sends.

    Attributes:
        batch: a batch, or None if the worker has none to send.
        skipped: message -> number of broken images and shards since the last result.
        error: the error that ended the stream. It is sent as a value, because DataLoader would add
            the worker's traceback to the message of an exception that is raised.
        stream: number of the stream of shards that the batch comes from.
        position: position of that stream after the batch.
    """

    batch: Any
    skipped: Mapping[str, int]
    error: SwagModelsError | None = None
    stream: int = 0
    position: tuple[int, int, int] | None = None


def choose_transform(transform: Transform, step: int) -> Transform:
    """The transform of all images of a step: that of its method `at_step`, if it has one."""
    at_step: Callable[[int], Transform] | None = getattr(transform, "at_step", None)
    return transform if at_step is None else at_step(step)


def choose_decoder(transform: object) -> Callable[[Image.Image], Any] | None:
    """The method of a transform that decodes image files at a fraction of their size, if any."""
    decode: Callable[[Image.Image], Any] | None = getattr(transform, "decode", None)
    return decode if getattr(transform, "scaled", False) is True else None


def load_sample(dataset: ImageDataset, index: int, transform: Transform) -> LoadedSample:
    """Read an image with its classes and its name; raise ImageError if it is broken."""
    image, name = dataset.read(index, choose_decoder(transform)), dataset.name(index)
    with named_errors(name):
        return transform(image), dataset.labels[index], name


def collate_samples(samples: Sequence[LoadedSample]) -> Batch:
    """Make a batch of one or more samples."""
    images, classes, ids = zip(*samples)
    return Batch(default_collate(list(images)), list(classes), list(ids))


def concatenate_batches(batches: Sequence[Batch]) -> Batch:
    """Concatenate one or more batches into one."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        torch.cat([batch.images for batch in batches]),
        [classes for batch in batches for classes in batch.classes],
        [identifier for batch in batches for identifier in batch.ids],
    )


def make_data_loader(
    dataset: Dataset[WorkerResult], workers: int, **options: Any
) -> DataLoader[WorkerResult]:
    """Make a DataLoader of a data set whose items are complete batches.

    Args:
        dataset: returns the results.
        workers: number of worker processes; 0 to read in this process.
        **options: other options of `torch.utils.data.DataLoader`.
    """
    with warnings.catch_warnings():
        # It warns in several lines, for every pass, of more workers than CPUs.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        return DataLoader(
            dataset,
            batch_size=None,  # the data set makes batches itself
            num_workers=workers,
            collate_fn=_return_unchanged,
            # By default every pass draws a seed from the global generator, which training uses.
            generator=torch.Generator(),
            **options,
        )


def _return_unchanged(result: Any) -> Any:
    return result
