"""Batches of validation data, in which every sample occurs once over all ranks.

Axes: N samples of a batch, S pixels.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from swag_models.errors import ConfigError, ImageError, check_minimum
from swag_models.formatting import count_noun, list_names
from swag_models.recipe.data.collate import (
    Batch,
    Transform,
    WorkerResult,
    collate_samples,
    load_sample,
    make_data_loader,
)
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.loader import DecodeLabelled, Loader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import EVAL_SPLITS, ShardSource, describe_source, open_source
from swag_models.recipe.limits import check_limits, check_workers
from swag_models.recipe.worker_pool import prepare_loader_worker

logger = logging.getLogger("swag_models")


class EvalLoader:
    """Iterable over batches: each `for` yields every sample once over all ranks, in a fixed order.

    The ranks may differ in their number of batches. After a pass, `seen` plus the counts in
    `skipped`, summed over all ranks, equal `samples`.

    Args:
        source: the data.
        samples: number of samples over all ranks; None for shards without a manifest.
        read_pass: starts a pass over the samples of this rank.

    Attributes:
        num_classes: number of classes; None for shards without a manifest.
        class_names: names of all classes; None if they have no names.
        facts: description of the data for reports; see `describe_source`.
        by_index: whether images are read by index, so that their order and batches are the same for
            any number of ranks.
        seen: number of samples since the pass began.
        skipped: message -> number of broken images since the pass began; a truncated shard counts
            as one.
    """

    def __init__(
        self,
        source: ImageDataset | ShardSource,
        samples: int | None,
        read_pass: Callable[[], Iterator[WorkerResult]],
    ) -> None:
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.samples, self.facts = samples, describe_source(source, samples)
        self.by_index = isinstance(source, ImageDataset)
        self.seen, self.skipped = 0, Counter[str]()
        self._read_pass = read_pass

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self.read_turns() if batch is not None)

    def read_turns(self) -> Iterator[Batch | None]:
        """Yield a batch for each turn of this rank, None if none of its images can be read.

        For images that are read by index, turn n of rank r of R is batch r + n R of the data.
        """
        self.seen, self.skipped = 0, Counter()
        for result in self._read_pass():
            self.skipped.update(result.skipped)
            if result.batch is not None:
                self.seen += len(result.batch.ids)
            yield result.batch

    def require_images(self, title: object) -> None:
        """Raise ConfigError if the last pass read no image.

        Args:
            title: what the message calls the data.
        """
        if not self.seen:
            reason = next(iter(self.skipped), "it has no images")
            raise ConfigError(f"no image of {title} can be read: {reason}")


def log_skipped(title: str, skipped: Mapping[str, int]) -> None:
    """Log how many images of the data called `title` could not be read, and two of the reasons."""
    if skipped:
        logger.warning(
            "left out %s of %s that could not be read: %s",
            count_noun(sum(skipped.values()), "image or shard", "images or shards"),
            title,
            list_names([*skipped], 2),
        )


def open_eval_loader(
    data: Shards | ImageDataset,
    transform: Transform,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int,
    classes: Sequence[str] | None = None,
    synsets: Sequence[str] | None = None,
) -> EvalLoader:
    """Open the validation data of one rank.

    Images that are read by index form the same batches for any number of ranks, and the ranks take
    these batches in turn. Repeat factors of shards are ignored.

    Args:
        data: as for `open_train_loader`, or an open data set. If a dataset has several splits, the
            first of "validation", "val" and "test" is opened.
        transform: an upright RGB image -> uint8 (3, S, S).
        batch_size: samples per batch of this rank.
        rank: number of this rank.
        world_size: number of ranks.
        workers: number of processes that read images; 0 to read in this process.
        classes: names of all classes of a model; the classes of the data are numbered by them.
        synsets: synset of each class of a model, to compare with the vocabulary beside shards.

    Raises:
        ConfigError: the data do not exist, or have other classes.
    """
    assert 0 <= rank < world_size
    check_minimum(1, batch_size=batch_size)
    check_minimum(0, workers=workers)
    check_limits(batch_size=batch_size)
    check_workers(workers=workers)
    source = (
        data if isinstance(data, ImageDataset) else open_source(data, classes, EVAL_SPLITS, synsets)
    )
    if isinstance(source, ImageDataset):
        indices = range(len(source))
        # Rank r of R reads batches r, r + R, r + 2 R, ...
        starts = indices[rank * batch_size :: world_size * batch_size]
        make_pass: Callable[[], Any] = partial(
            make_data_loader,
            _BatchReader(source, transform),
            workers,
            sampler=[indices[start : start + batch_size] for start in starts],
            worker_init_fn=prepare_loader_worker,
        )
        return EvalLoader(source, len(source), lambda: iter(make_pass()))
    loader = Loader(
        source.urls,
        DecodeLabelled(transform, source.label_classes),
        batch_size=batch_size,
        workers=min(workers, -(-len(source.urls) // world_size)),  # more would get no shard
        rank=rank,
        world_size=world_size,
        buffer=1,  # no shuffling
        repeat=_return_one,  # instead of the packed factors
        skip_broken=True,
        collate=collate_samples,
        worker_init_fn=prepare_loader_worker,
    )
    return EvalLoader(source, source.count, partial(_read_shards, loader, loader.state_dict()))


def _read_shards(loader: Loader, start: dict[str, Any]) -> Iterator[WorkerResult]:
    loader.load_state_dict(start)
    loader.skipped.clear()  # counts of the last pass
    for batch in loader:
        yield WorkerResult(batch, {})
    # The counts of all workers are known only at the end.
    yield WorkerResult(None, loader.skipped)


def _return_one(classes: Sequence[int]) -> float:
    return 1.0


class _BatchReader(Dataset[WorkerResult]):
    """Maps a range of indices to a batch of its images, without broken ones."""

    def __init__(self, dataset: ImageDataset, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, indices: range) -> WorkerResult:
        samples, skipped = [], Counter[str]()
        for index in indices:
            try:
                samples.append(load_sample(self.dataset, index, self.transform))
            except ImageError as error:
                skipped[str(error)] += 1
        return WorkerResult(collate_samples(samples) if samples else None, skipped)
