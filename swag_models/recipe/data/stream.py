"""The order of samples: resampled, shuffled, split between processes, and continued anywhere from a small state.

An epoch is a function of (seed, epoch) alone. Its shards are put in an order by hash, and stream s of S = ranks x workers takes
every S-th of them from the s-th on: all streams together see every shard once, whatever S is. A stream reads `window` shards
one after the other, takes each sample as often as its repeat factor says (`count_copies`: a hash again, so that no two streams
have to agree on anything), and shuffles within a buffer, which is emptied at the window's end. So a stream's position is three
numbers: epoch, window, and how many samples of the window were taken. To go on from there the window is read again and as many
samples are dropped undecoded; no index of the shards is needed, and pipes will do. Packed shards are random samples of the
whole, so that a small window mixes no worse than a large one; shards that are sorted want a window of many.

What is random about decoding is seeded by sample, epoch and copy. It does not change with the number of processes either.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from swag_models.errors import ConfigError, ImageError, ShardError, SwagModelsError
from swag_models.inference.image_sources import IMAGE_SUFFIXES
from swag_models.recipe.data.shards import read_shard

Sample = dict[str, Any]
ENDLESS = 2**62  # an epoch that no stream comes to
BARREN = 100  # epochs without a sample, after which a stream that has to go on gives up
IMAGES = [suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES]


class Position(NamedTuple):
    """Where a stream is: `taken` samples into a window of an epoch."""

    epoch: int
    window: int = 0
    taken: int = 0


class Entry(NamedTuple):
    """What a stream sends: a batch, or what ended it; where the stream is then; and what was skipped since the last."""

    batch: Any
    number: int
    position: Position
    skipped: dict[str, int]
    error: SwagModelsError | None = None


@dataclass(eq=False)
class Stream(IterableDataset[Entry]):
    """What one rank's workers run: each its own stream of entries, from the position that `begin` gave it.

    The fields are those of `Loader`, `streams` its workers.
    """

    urls: list[str]
    decode: Callable[[Sample], Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    seed: int
    rank: int
    world_size: int
    streams: int
    window: int
    buffer: int
    repeat: Callable[[Sequence[int]], float] | None
    classes: Callable[[Sample], Sequence[int]] | None
    skip_broken: bool

    def __post_init__(self) -> None:
        # Shared, because workers that persist keep the copy of this object that they began with.
        self._begin = torch.zeros(2 + 3 * self.streams, dtype=torch.int64)
        self._begin.share_memory_()  # type: ignore[no-untyped-call]

    def begin(self, turn: int, positions: Sequence[Position], stop: int) -> None:
        """Let the first worker be stream `turn`, and all run from their positions up to epoch `stop`."""
        self._begin.copy_(
            torch.tensor([turn, stop, *(number for position in positions for number in position)])
        )

    def __iter__(self) -> Iterator[Entry]:
        turn, stop, *numbers = self._begin.tolist()
        info = get_worker_info()
        number = (
            (info.id if info else 0) + turn
        ) % self.streams  # the loader asks its workers in turn, from the first
        position, batch, skipped = (
            Position(*numbers[3 * number : 3 * number + 3]),
            list[Any](),
            Counter[str](),
        )
        try:
            for sample, after in self._draw(number, position, stop, skipped):
                position = after
                try:
                    batch.append(self._decode(sample))
                except ImageError as error:
                    if not self.skip_broken:
                        raise
                    skipped[str(error)] += 1
                if len(batch) == self.batch_size:
                    yield Entry(self.collate(batch), number, position, dict(skipped))
                    batch = []
                    skipped.clear()  # it is shared with the reader
            if batch or skipped:
                yield Entry(
                    self.collate(batch) if batch else None, number, Position(stop), dict(skipped)
                )
        except (
            SwagModelsError
        ) as error:  # sent as it is, since the loader would lay a worker's traceback over it
            yield Entry(None, number, position, dict(skipped), error)

    def _decode(self, sample: Sample) -> Any:
        with seed_torch(sample["seed"]):
            return self.decode(sample)

    def _draw(
        self, number: int, start: Position, stop: int, skipped: Counter[str]
    ) -> Iterator[tuple[Sample, Position]]:
        """A stream's samples, each with the position after it."""
        (epoch, first, taken), barren = start, 0
        while epoch < stop:
            mine = self._order(epoch)[
                self.rank * self.streams + number :: self.world_size * self.streams
            ]
            barren += 1
            for window in range(first, -(-len(mine) // self.window)):
                shards = mine[window * self.window : (window + 1) * self.window]
                for count, (sample, copy) in enumerate(self._shuffle(shards, epoch, skipped), 1):
                    barren = 0
                    if count > taken:
                        seed = hash_seed(self.seed, epoch, sample["id"], copy)
                        yield (
                            {**sample, "epoch": epoch, "seed": seed},
                            Position(epoch, window, count),
                        )
                taken = 0
            if barren == BARREN and stop == ENDLESS:
                raise ConfigError(
                    f"no sample in {BARREN} epochs of {len(mine)} shards, {self.urls[mine[0]]} among them; check repeat"
                )
            epoch, first = epoch + 1, 0

    def _shuffle(
        self, shards: list[int], epoch: int, skipped: Counter[str]
    ) -> Iterator[tuple[Sample, int]]:
        """The copies of a window's samples, numbered, in random order."""
        random = Random(
            f"{self.seed}/{epoch}/{shards[0]}"
        ).random  # the one method whose numbers never change
        held = list[tuple[Sample, int]]()
        for sample in self._read(shards, skipped):
            for copy in range(count_copies(sample["id"], sample["repeat"], epoch, self.seed)):
                if len(held) < self.buffer:
                    held.append((sample, copy))
                else:
                    place = int(random() * len(held))
                    yield held[place]
                    held[place] = sample, copy
        while held:
            place = int(random() * len(held))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()

    def _read(self, shards: list[int], skipped: Counter[str]) -> Iterator[Sample]:
        for shard in shards:
            try:
                for sample in read_shard(self.urls[shard]):
                    yield self._label(sample)
            except ShardError as error:
                if not self.skip_broken:
                    raise
                skipped[str(error)] += 1

    def _label(self, sample: Sample) -> Sample:
        """The sample with `id`, `classes`, `repeat` and `image`."""
        record = json.loads(sample.get("json", b"{}"))
        if self.classes:
            classes = self.classes(sample)
        elif (classes := record.get("classes", sample.get("cls"))) is None:
            raise ConfigError(
                f"{sample['__key__']} in {sample['__url__']} has no classes; say with classes= where they are"
            )
        sample["classes"] = (int(classes),) if isinstance(classes, bytes) else tuple(classes)
        sample["id"] = str(record.get("id", sample["__key__"]))
        sample["repeat"] = (
            self.repeat(sample["classes"]) if self.repeat else float(record.get("repeat", 1))
        )
        if image := next((sample[suffix] for suffix in IMAGES if suffix in sample), None):
            sample["image"] = image
        return sample

    def _order(self, epoch: int) -> list[int]:
        """The shards in the order of an epoch."""
        return sorted(
            range(len(self.urls)), key=lambda shard: _hash(self.seed, epoch, "shard", shard)
        )


def count_copies(identifier: str, repeat: float, epoch: int, seed: int) -> int:
    """How many times an image is seen in an epoch: the whole part of `repeat`, and once more for its fraction of all epochs.

    Decided by a hash of the arguments alone, so that any worker anywhere finds the same.
    """
    whole = math.floor(repeat)
    if repeat == whole:
        return whole
    digest = hashlib.blake2b(
        f"{seed}/{epoch}/{identifier}".encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    return whole + (int.from_bytes(digest, "big") < (repeat - whole) * 2.0**64)


def hash_seed(*what: object) -> int:
    """A seed for generators, from 0 to below 2**63, that follows from these values alone."""
    return int.from_bytes(_hash(*what)[:8], "big") >> 1


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    """Let torch's generator begin with this seed, and afterwards go on as if nothing had been drawn."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _hash(*what: object) -> bytes:
    return hashlib.blake2b(
        "/".join(map(str, what)).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()
