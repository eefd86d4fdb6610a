"""Training data of any kind -> endless batches, the same for any number of ranks, that go on from a small state.

Axes: n the samples of a batch, S pixels.

Pictures with an index (`albums`): an epoch is a permutation by (seed, epoch), the epochs are laid end to end, and batch k of
all ranks together is the slice [k * B, (k + 1) * B), of which each rank takes its part. The state is k.
Shards: L lanes each read their share of the shards as a rank of `data.Loader` does, whatever ranks there are; rank r of R has
lanes r * L / R to (r + 1) * L / R, and its batch is theirs put together. The state is theirs, all ranks' together.
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from swag_models.errors import ConfigError, ImageError, SwagModelsError
from swag_models.recipe.config import Engine
from swag_models.recipe.data.collate import (
    Batch,
    Named,
    Share,
    Transform,
    check_division,
    collate_samples,
    count_classes,
    describe_data,
    run_workers,
    take_sample,
)
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.loader import Loader
from swag_models.recipe.data.shards import Shards, find_shards, hash_shards, name_shards
from swag_models.recipe.data.sources import find_image_folder, open_image_dataset
from swag_models.recipe.data.stream import ENDLESS, hash_seed, seed_torch
from swag_models.recipe.worker_pool import ignore_signals

logger = logging.getLogger("swag_models")

HOPELESS = 100  # broken pictures one after the other, after which a batch is given up


class TrainLoader(ABC):
    """Endless batches; a `for` goes on after the last batch that was received.

    num_classes: None for shards without a manifest. class_names: of all classes, None if they have none.
    samples: in an epoch; of shards the expected number, and None without a manifest.
    facts: of the data, for a card: kind, name, samples, classes, and the SHA-256 of the manifest or of names and sizes.
    skipped: how many broken pictures this rank passed over, by message; the next sample takes the place of each.
    """

    num_classes: int | None
    class_names: tuple[str, ...] | None
    samples: int | None
    facts: dict[str, Any]
    skipped: Counter[str]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._receive()

    @abstractmethod
    def _receive(self) -> Batch: ...

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What to give `load_state_dict`, through `merge_states` if there are several ranks; as JSON too."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. ConfigError if the state is of other data, or of another seed or batch size."""

    @abstractmethod
    def close(self) -> None:
        """End worker processes."""


def open_train_loader(
    data: Shards,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    engine: Engine,
    classes: Sequence[str] | None = None,
) -> TrainLoader:
    """The feed of one rank.

    data: packed shards or whatever `find_shards` takes, a folder with a sub-folder of pictures per class, or a Hugging Face
        dataset on disk, whose split "train" is taken if it has several.
    transform: an upright RGB image -> uint8 (3, S, S); torch's generator is seeded for each by seed, epoch and sample.
    batch_size: samples of all ranks together.
    classes: the names of a model's classes, to which those of the data are mapped by name.
    ConfigError if there is no such data, if a class has no place in `classes`, or if batches cannot be divided.
    """
    assert 0 <= rank < world_size
    check_division("batch_size", batch_size, world_size, "ranks")
    if (root := find_image_folder(data)) is None:
        return ShardFeed(data, transform, batch_size, seed, rank, world_size, engine, classes)
    return AlbumFeed(
        open_image_dataset(root, classes),
        transform,
        batch_size,
        seed,
        rank,
        world_size,
        engine.workers,
    )


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states of all ranks' feeds as one, which any number of ranks can load."""
    merged = dict(states[0])
    if "lanes" in merged:
        merged["lanes"] = {lane: each for state in states for lane, each in state["lanes"].items()}
    return merged


class AlbumFeed(TrainLoader):
    def __init__(
        self,
        album: ImageDataset,
        transform: Transform,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        workers: int,
    ) -> None:
        self.num_classes, self.class_names, self.samples = (
            album.num_classes,
            album.class_names,
            len(album),
        )
        self.facts = describe_data(
            album.kind, album.title, self.samples, self.num_classes, album.sha256
        )
        self.skipped = Counter()
        self.batches = 0  # taken by every rank
        self._identity = {
            "kind": album.kind,
            "seed": seed,
            "batch_size": batch_size,
            "sha256": album.sha256,
        }
        self._reader, self._workers = _Drawing(album, transform, seed), workers
        self._batch_size, self._rank, self._share = batch_size, rank, batch_size // world_size
        self._running: Iterator[Share] | None = None

    def _receive(self) -> Batch:
        if self._running is None:
            start = self.batches * self._batch_size + self._rank * self._share
            self._running = run_workers(
                self._reader, _plan(start, self._share, self._batch_size), self._workers
            )
        try:
            share = next(self._running)
            if share.error:
                raise share.error
        except BaseException:
            self.close()  # what follows is not known to be whole
            raise
        assert share.batch
        self.skipped.update(share.skipped)
        self.batches += 1
        return share.batch

    def state_dict(self) -> dict[str, Any]:
        return {**self._identity, "batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ConfigError(
                    f"the state has {name} {state.get(name)!r}, this feed {value!r}; go on with the same data"
                )
        self.close()
        self.batches = state["batches"]

    def close(self) -> None:
        self._running = None


class ShardFeed(TrainLoader):
    def __init__(
        self,
        shards: Shards,
        transform: Transform,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        engine: Engine,
        classes: Sequence[str] | None,
    ) -> None:
        self._urls, manifest = find_shards(shards)
        self.num_classes, self.class_names = count_classes(manifest, classes, shards)
        self.samples = round(manifest["samples"]) if manifest else None
        self.facts = describe_data(
            "shards", name_shards(shards), self.samples, self.num_classes, hash_shards(shards)
        )
        self._decode = Named(transform, self.num_classes)
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size, self._engine = rank, world_size, engine
        self._open(engine.lanes or world_size, None)

    def _open(self, lanes: int, streams: int | None) -> None:
        """Be at the start, in so many lanes, each of which has a stream for every worker, or `streams` as settled before."""
        check_division("lanes", lanes, self._world_size, "ranks")
        check_division("batch_size", self._batch_size, lanes, "lanes")
        if len(self._urls) < lanes:
            raise ConfigError(
                f"{len(self._urls)} shards cannot feed {lanes} lanes; use fewer or pack smaller shards"
            )
        self._count, each = lanes, lanes // self._world_size
        workers = min(self._engine.workers, len(self._urls) // lanes)  # others would have no shard
        if streams not in (None, max(1, workers)):
            logger.warning(
                "shards are read by %d workers, not %d: the state is of so many", streams, workers
            )
            workers = streams
        self._lanes = {
            lane: Loader(
                self._urls,
                self._decode,
                batch_size=self._batch_size // lanes,
                seed=self._seed,
                steps=ENDLESS,
                workers=workers,
                rank=lane,
                world_size=lanes,
                buffer=self._engine.buffer,
                skip_broken=True,
                collate=collate_samples,
                worker_init_fn=ignore_signals,
            )
            for lane in range(self._rank * each, (self._rank + 1) * each)
        }
        self._state = self._ask_state()

    @property
    def skipped(self) -> Counter[str]:  # type: ignore[override]  # it is not set here
        return sum((loader.skipped for loader in self._lanes.values()), Counter())

    def _receive(self) -> Batch:
        try:
            batches = [next(iter(loader)) for loader in self._lanes.values()]
        except BaseException:
            for lane, loader in self._lanes.items():  # else some would be a batch ahead of others
                loader.load_state_dict(self._state["lanes"][str(lane)])
            raise
        self._state = self._ask_state()
        if len(batches) == 1:
            return batches[0]
        return Batch(
            torch.cat([batch.images for batch in batches]),
            [each for batch in batches for each in batch.classes],
            [each for batch in batches for each in batch.ids],
        )

    def _ask_state(self) -> dict[str, Any]:
        lanes = {str(lane): loader.state_dict() for lane, loader in self._lanes.items()}
        return {
            "kind": "shards",
            "batch_size": self._batch_size,
            "count": self._count,
            "lanes": lanes,
        }

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the merged state of all ranks, in its lanes if `engine.lanes` is None.

        If ranks or batches cannot be divided into them, a new epoch is begun, after any that was read, with a warning.
        """
        for name, value in (("kind", "shards"), ("batch_size", self._batch_size)):
            if state.get(name) != value:
                raise ConfigError(
                    f"the state has {name} {state.get(name)!r}, this feed {value!r}; go on with the same data"
                )
        lanes, saved = state["count"], state["lanes"]
        some = next(iter(saved.values()))
        if self._engine.lanes in (None, lanes) and lanes % self._world_size == 0:
            self._open(lanes, some["workers"])
            for lane, loader in self._lanes.items():
                if str(lane) not in saved:
                    raise ConfigError(
                        f"the state has no lane {lane}; merge the states of all ranks with merge_states"
                    )
                loader.load_state_dict(saved[str(lane)])
        else:
            if len(saved) < lanes:
                raise ConfigError(
                    f"the state has {len(saved)} of {lanes} lanes; merge the states of all ranks with merge_states"
                )
            self._open(self._engine.lanes or self._world_size, None)
            epoch = 1 + max(
                position[0] for each in saved.values() for position in each["positions"]
            )
            for loader in self._lanes.values():
                own = loader.state_dict()
                start = {"turn": 0, "positions": [[epoch, 0, 0]] * own["workers"]}
                loader.load_state_dict(
                    {
                        **some,
                        **{key: own[key] for key in ("rank", "world_size", "workers")},
                        **start,
                    }
                )
            logger.warning(
                "the state has %d lanes, this feed %d for %d ranks: it begins with epoch %d of the shards, and what was left "
                "of the last is not seen; set engine.lanes to a number that all numbers of ranks divide",
                *(lanes, self._count, self._world_size, epoch),
            )
        self._state = self._ask_state()

    def close(self) -> None:
        for loader in self._lanes.values():
            loader.close()


def _plan(start: int, length: int, step: int) -> Iterator[range]:
    """A rank's positions in each batch. It must not know the feed, which could then end only by garbage collection."""
    return (range(each, each + length) for each in itertools.count(start, step))


class _Drawing(Dataset[Share]):
    """Positions in the endless row of epochs -> a full batch."""

    def __init__(self, album: ImageDataset, transform: Transform, seed: int) -> None:
        self.album, self.transform, self.seed = album, transform, seed
        self._orders: dict[int, Any] = {}  # of the last two epochs asked for, (samples,) each

    def __getitem__(self, positions: range) -> Share:
        skipped = Counter[str]()
        try:
            samples = [self._draw(position, skipped) for position in positions]
        except (
            SwagModelsError
        ) as error:  # sent as it is, since the loader would lay a worker's traceback over it
            return Share(None, skipped, error)
        return Share(collate_samples(samples), skipped)

    def _draw(self, position: int, skipped: Counter[str]) -> tuple[Tensor, tuple[int, ...], str]:
        """The sample there, or the first after it that is not broken."""
        for shift in range(HOPELESS):
            epoch, place = divmod(position + shift, len(self.album))
            index = int(self._order(epoch)[place])
            try:
                with seed_torch(hash_seed(self.seed, epoch, index, shift)):
                    return take_sample(self.album, index, self.transform)
            except ImageError as error:
                if not shift:  # the others have positions of their own
                    skipped[str(error)] += 1
                last = error
        raise ConfigError(
            f"{HOPELESS} pictures of {self.album.root} in a row cannot be read; the last: {last}"
        )

    def _order(self, epoch: int) -> Any:
        """The pictures in the order of an epoch: sorted by raw bits, which no version of NumPy will change."""
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            bits = np.random.PCG64(hash_seed(self.seed, epoch, "order")).random_raw(len(self.album))
            self._orders[epoch] = np.argsort(bits, kind="stable")
        return self._orders[epoch]
