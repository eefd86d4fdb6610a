"""Endless batches of training data of any kind, resumable with another number of ranks.

Axes: N samples of a batch, S pixels.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from swag_models.errors import ConfigError, ImageError, SwagModelsError
from swag_models.recipe.config import Engine
from swag_models.recipe.data.collate import (
    Batch,
    LoadedSample,
    Transform,
    WorkerResult,
    choose_transform,
    collate_samples,
    load_sample,
    make_data_loader,
)
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.loader import check_state
from swag_models.recipe.data.shard_lanes import ShardLanes, check_multiple
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import (
    ShardSource,
    describe_source,
    list_local_files,
    open_source,
)
from swag_models.recipe.data.stream import hash_seed, seed_torch
from swag_models.recipe.limits import check_workers
from swag_models.recipe.worker_pool import prepare_loader_worker

MAX_CONSECUTIVE_BROKEN = 100  # an error is raised after this number of broken images in a row


class IndexedBatches:
    """Endless batches of one rank, from images read by index.

    Each epoch is a permutation of the images that depends on (seed, epoch). The epochs are
    concatenated into one endless sequence. Batch k of all ranks together is the slice
    [k * B, (k + 1) * B) of it, and each rank takes its part of the slice. The state is k.

    Args:
        dataset: the images.
        transform: as for `open_train_loader`, as are all other arguments.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        transform: Transform,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        workers: int,
    ) -> None:
        self._reader = _BatchReader(dataset, transform, seed, batch_size)
        self._workers = workers
        self._batch_size, self._rank = batch_size, rank
        self._rank_batch_size = batch_size // world_size
        self._batches = 0  # number received, equal on every rank
        self.skipped = Counter[str]()  # message -> number of broken images
        self._results: Iterator[WorkerResult] | None = None
        self._identity = {
            "kind": dataset.kind,
            "seed": seed,
            "batch_size": batch_size,
            "sha256": dataset.sha256,
        }

    def receive(self) -> Batch:
        """Return the next batch."""
        if self._results is None:
            start = self._batches * self._batch_size + self._rank * self._rank_batch_size
            positions = _list_positions(start, self._rank_batch_size, self._batch_size)
            self._results = iter(
                make_data_loader(
                    self._reader,
                    self._workers,
                    sampler=positions,
                    worker_init_fn=prepare_loader_worker,
                )
            )
        try:
            result = next(self._results)
            if result.error:
                raise result.error
        except BaseException:
            self.close()  # results may be lost, so the next `for` restarts the workers
            raise
        assert isinstance(result.batch, Batch)
        self.skipped.update(result.skipped)
        self._batches += 1
        return result.batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch received; it is equal on all ranks."""
        return {**self._identity, "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state; raises ConfigError if it belongs to other data or settings."""
        check_state(state, self._identity)
        self.close()
        self._batches = state["batches"]

    def close(self) -> None:
        """Stop the worker processes."""
        self._results = None


def _list_positions(start: int, length: int, step: int) -> Iterator[range]:
    """Yield the positions of a rank in each batch."""
    # No reference to the loader: a cycle would keep the workers alive until garbage collection.
    return (range(first, first + length) for first in itertools.count(start, step))


class _BatchReader(Dataset[WorkerResult]):
    """Maps positions in the sequence of all epochs to a batch without broken images.

    A broken image is replaced by the one at the next position that is not broken, so neither other
    ranks nor a resumed run need to know which images are broken.
    """

    def __init__(
        self, dataset: ImageDataset, transform: Transform, seed: int, batch_size: int
    ) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed
        self.batch_size = batch_size
        self._orders: dict[int, NDArray[np.intp]] = {}  # orders (samples,) of the last two epochs

    def __getitem__(self, positions: range) -> WorkerResult:
        skipped = Counter[str]()
        transform = choose_transform(self.transform, positions.start // self.batch_size)
        try:
            samples = [self._load_sample(position, transform, skipped) for position in positions]
        except SwagModelsError as error:
            return WorkerResult(None, skipped, error)
        return WorkerResult(collate_samples(samples), skipped)

    def _load_sample(
        self, position: int, transform: Transform, skipped: Counter[str]
    ) -> LoadedSample:
        for shift in range(MAX_CONSECUTIVE_BROKEN):
            epoch, offset = divmod(position + shift, self.dataset.epoch_size)
            index = int(self._order_images(epoch)[offset])
            try:
                with seed_torch(hash_seed(self.seed, epoch, index, shift)):
                    return load_sample(self.dataset, index, transform)
            except ImageError as error:
                if shift == 0:  # broken images after it are counted at their own positions
                    skipped[str(error)] += 1
                last_error = error
        raise ConfigError(
            f"{MAX_CONSECUTIVE_BROKEN} images of {self.dataset.root} in a row cannot be read; the "
            f"last: {last_error}"
        )

    def _order_images(self, epoch: int) -> NDArray[np.intp]:
        """Return the indices of the images of an epoch in their order, (samples,)."""
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            # Sort by raw bits, because NumPy may change the results of shuffle() between versions.
            generator = np.random.PCG64(hash_seed(self.seed, epoch, "order"))
            size = self.dataset.epoch_size
            order = np.argsort(generator.random_raw(size), kind="stable")
            if (repeats := self.dataset.repeats) is not None:
                order = _draw_repeated(repeats, size, hash_seed(self.seed, epoch, "repeats"))[order]
            self._orders[epoch] = order
        return self._orders[epoch]


def _draw_repeated(repeats: Sequence[float], size: int, seed: int) -> NDArray[np.intp]:
    """Draw the images of an epoch, (size,): each either floor or ceil of its repeats times.

    This is systematic sampling: equal steps along the sum of the repeats, from a random start.
    """
    ends = np.cumsum(np.asarray(repeats, np.float64))
    steps = (np.arange(size) + seed / 2**63) * (ends[-1] / size)
    return np.searchsorted(ends, steps, side="right").clip(max=len(repeats) - 1)


class TrainLoader:
    """Iterable over endless batches of one rank; a `for` resumes after the last batch received.

    Args:
        source: the data.
        samples: number of samples in an epoch, or its expectation for shards; None if not known.
        batches: reads the batches.

    Attributes:
        num_classes: number of classes; None for shards without a manifest.
        class_names: names of all classes; None if they have no names.
        facts: description of the data for reports; see `describe_source`.
    """

    def __init__(
        self,
        source: ImageDataset | ShardSource,
        samples: int | None,
        batches: IndexedBatches | ShardLanes,
    ) -> None:
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.samples, self.facts = samples, describe_source(source, samples)
        self._source, self._batches = source, batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batches.receive()

    @property
    def skipped(self) -> Counter[str]:
        """Message -> number of broken images that this rank replaced by the next sample."""
        return self._batches.skipped

    def count_classes(self) -> Sequence[float] | None:
        """Return the number of samples of an epoch that have each class; None if not known.

        Shards know it if a manifest counts them, and then for the classes of the manifest.
        """
        if isinstance(self._source, ShardSource):
            return self._source.class_samples
        counts: dict[int, float] = defaultdict(float)
        repeats = self._source.repeats or itertools.repeat(1)
        for labels, repeat in zip(self._source.labels, repeats):
            for label in set(labels):
                counts[label] += repeat
        return [counts[label] for label in range(self._source.num_classes)]

    def list_local_files(self) -> Iterator[tuple[str, str]]:
        """Yield the name and path of each local file of the data."""
        return list_local_files(self._source)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch received, as JSON values; see `merge_states`."""
        return self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state.

        Args:
            state: the merged state of all ranks, which for a single rank is its own state.

        Raises:
            ConfigError: the state belongs to other data, or to another seed or batch size.
        """
        self._batches.load_state_dict(state)

    def close(self) -> None:
        """Stop the worker processes; the next `for` restarts them."""
        self._batches.close()


def open_train_loader(
    data: Shards | ImageDataset,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    engine: Engine,
    classes: Sequence[str] | None = None,
) -> TrainLoader:
    """Open the training data of one rank.

    Args:
        data: packed shards or other shards (see `find_shards`), a folder with a sub-folder of
            images for each class, a Hugging Face dataset on disk, or an open data set. If the
            dataset has several splits, "train" is opened.
        transform: an upright RGB image -> uint8 (3, S, S). Torch's generator is seeded for each
            image by seed, epoch and sample. If it has a method `at_step`, that returns the
            transform of all images of a step.
        batch_size: samples per batch of all ranks together.
        seed: seed of the order and of `transform`.
        rank: number of this rank.
        world_size: number of ranks.
        engine: numbers of workers and lanes, and the size of the shuffle buffer.
        classes: names of all classes of a model; the classes of the data are numbered by them. By
            default the data's own.

    Raises:
        ConfigError: the data do not exist, a class is missing from `classes`, or the batch size or
            the number of lanes is not divisible.
    """
    assert 0 <= rank < world_size
    # Checked first, because opening the data can take minutes.
    check_multiple("batch_size", batch_size, world_size, "ranks")
    check_workers(**{"engine.workers": engine.workers})
    source = data if isinstance(data, ImageDataset) else open_source(data, classes)
    # Shards are read in sequence, so their order depends on the lanes that read them.
    if isinstance(source, ShardSource):
        lanes = ShardLanes(source, transform, batch_size, seed, rank, world_size, engine)
        return TrainLoader(source, source.samples, lanes)
    workers = engine.workers
    batches = IndexedBatches(source, transform, batch_size, seed, rank, world_size, workers)
    return TrainLoader(source, source.epoch_size, batches)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the states of the loaders of all ranks into one that any number of ranks can load."""
    merged = dict(states[0])
    # The state of images that are read by index is equal on all ranks.
    if "lanes" in merged:
        merged["lanes"] = {
            lane: lane_state for state in states for lane, lane_state in state["lanes"].items()
        }
    return merged
