"""Streams of samples from shards: repeated, shuffled, split between processes, and resumable.

An epoch depends only on (seed, epoch). Its shards are sorted by hash, and stream s of
S = ranks x workers takes every S-th of them, beginning with the s-th: all streams together read
every shard once, whatever S is. A stream reads a window of `window` shards one after the other,
repeats each sample by its repeat factor (see `count_copies`), and shuffles within a buffer, which
is emptied at the end of the window.

The position of a stream is three numbers: epoch, window, and number of samples taken from the
window. To resume from it, the stream reads the window again and drops that number of samples
without decoding them. This needs no index of the shards, so pipes can be resumed too. Packed shards
are random samples of the whole data, for which a small window shuffles as well as a large one;
sorted shards need a window of many shards.

Decoding is seeded by sample, epoch and copy, so augmentation does not depend on the number of
processes.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError, ImageError, ShardError, SwagModelsError
from swag_models.formatting import count_noun
from swag_models.image_formats import IMAGE_SUFFIXES
from swag_models.recipe.data.collate import WorkerResult
from swag_models.recipe.data.manifest import MAX_CLASSES, MAX_REPEAT
from swag_models.recipe.data.shard_list import ShardList, order_shards
from swag_models.recipe.data.shards import Sample, read_shard

UNREACHABLE_EPOCH = 2**62  # the `stop` of endless streams
MAX_EMPTY_EPOCHS = 100  # an endless stream raises an error after this number without a sample
# Sorted: the order decides which image is taken if a sample has several.
IMAGE_KEYS = sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


class Position(NamedTuple):
    """Position of a stream: after `taken` samples of a window of an epoch."""

    epoch: int
    window: int = 0
    taken: int = 0


@dataclass(eq=False)
class ShardStream(IterableDataset[WorkerResult]):
    """The data set that the workers of a rank iterate; each worker reads one of the streams.

    Args:
        urls: paths or URLs of all shards.
        decode: as for `Loader`, as are all other fields but `streams`.
        streams: number of streams of a rank: one per worker.
    """

    urls: ShardList
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
        # In shared memory, because persistent workers keep their first copy of this object.
        self._start = torch.zeros(3 + 3 * self.streams, dtype=torch.int64)
        self._start.share_memory_()  # type: ignore[no-untyped-call]

    def set_start(
        self, turn: int, positions: Sequence[tuple[int, int, int]], stop: int, step: int
    ) -> None:
        """Set where the next pass starts.

        Args:
            turn: number of the stream that the first worker reads.
            positions: start position of each stream.
            stop: epoch at which all streams end.
            step: number of the first batch.
        """
        numbers = [number for position in positions for number in position]
        self._start.copy_(torch.tensor([turn, stop, step, *numbers]))

    def __iter__(self) -> Iterator[WorkerResult]:
        turn, stop, step, *numbers = self._start.tolist()
        # DataLoader takes results from its workers in turn, beginning with the first.
        first = worker.id if (worker := get_worker_info()) else 0
        stream, step = (first + turn) % self.streams, step + first
        position = Position(*numbers[3 * stream : 3 * stream + 3])
        batch, skipped = list[Any](), Counter[str]()
        try:
            for sample, next_position in self.draw_samples(stream, position, stop, skipped):
                position, sample["step"] = next_position, step
                try:
                    batch.append(self._decode_sample(sample))
                except ImageError as error:
                    if not self.skip_broken:
                        raise
                    skipped[str(error)] += 1
                if len(batch) == self.batch_size:
                    yield WorkerResult(self.collate(batch), dict(skipped), None, stream, position)
                    batch, step = [], step + self.streams
                    skipped.clear()  # in place, because `draw_samples` adds to the same object
            if batch or skipped:
                last_batch = self.collate(batch) if batch else None
                yield WorkerResult(last_batch, dict(skipped), None, stream, Position(stop))
        except SwagModelsError as error:
            yield WorkerResult(None, dict(skipped), error, stream, position)

    def _decode_sample(self, sample: Sample) -> Any:
        with seed_torch(sample["seed"]):
            return self.decode(sample)

    def list_shards(self, stream: int, epoch: int) -> list[int]:
        """Return the numbers of the shards of a stream in an epoch, in their order.

        Args:
            stream: number of the stream, from 0 to `streams`.
            epoch: number of the epoch.
        """
        order = order_shards(len(self.urls), self.seed, epoch)
        numbers: list[int] = order[
            self.rank * self.streams + stream :: self.world_size * self.streams
        ].tolist()
        return numbers

    def draw_samples(
        self, stream: int, start: Position, stop: int, skipped: Counter[str]
    ) -> Iterator[tuple[Sample, Position]]:
        """Yield the samples of a stream before they are decoded, each with the position after it.

        Args:
            stream: number of the stream, from 0 to `streams`.
            start: position to start from.
            stop: epoch at which the stream ends.
            skipped: message -> number of broken samples and shards; is added to.
        """
        (epoch, first_window, taken), empty_epochs = start, 0
        while epoch < stop:
            shards = self.list_shards(stream, epoch)
            empty_epochs += 1
            for window in range(first_window, math.ceil(len(shards) / self.window)):
                window_shards = shards[window * self.window : (window + 1) * self.window]
                samples = self._shuffle_copies(window_shards, epoch, skipped)
                for count, (sample, copy) in enumerate(samples, 1):
                    empty_epochs = 0
                    if count > taken:  # a resumed stream drops samples before its start
                        seed = hash_seed(self.seed, epoch, sample["id"], copy)
                        yield (
                            {**sample, "epoch": epoch, "seed": seed},
                            Position(epoch, window, count),
                        )
                taken = 0
            if empty_epochs == MAX_EMPTY_EPOCHS and stop == UNREACHABLE_EPOCH:
                if reason := next(iter(skipped), None):
                    raise ConfigError(
                        f"none of {count_noun(len(shards), 'shard')} can be read: {reason}"
                    )
                raise ConfigError(
                    f"no sample in {MAX_EMPTY_EPOCHS} epochs of "
                    f"{count_noun(len(shards), 'shard')}, {self.urls[shards[0]]} among them; give "
                    "repeat factors above 0"
                )
            epoch, first_window = epoch + 1, 0

    def _shuffle_copies(
        self, shards: list[int], epoch: int, skipped: Counter[str]
    ) -> Iterator[tuple[Sample, int]]:
        """Yield the samples of a window with their copy numbers, in random order."""
        # Only `random` is guaranteed to give the same numbers in all Python versions.
        random = Random(f"{self.seed}/{epoch}/{shards[0]}").random
        buffer = list[tuple[Sample, int]]()
        for sample in self._read_samples(shards, skipped):
            for copy in range(count_copies(sample["id"], sample["repeat"], epoch, self.seed)):
                if len(buffer) < self.buffer:
                    buffer.append((sample, copy))
                else:
                    slot = int(random() * len(buffer))
                    yield buffer[slot]
                    buffer[slot] = sample, copy
        while buffer:
            slot = int(random() * len(buffer))
            buffer[slot], buffer[-1] = buffer[-1], buffer[slot]
            yield buffer.pop()

    def _read_samples(self, shards: list[int], skipped: Counter[str]) -> Iterator[Sample]:
        for shard in shards:
            try:
                for sample in read_shard(self.urls[shard]):
                    try:
                        labelled = self._add_label(sample)
                    except ImageError as error:
                        if not self.skip_broken:
                            raise
                        skipped[str(error)] += 1
                    else:
                        yield labelled
            except ShardError as error:
                if not self.skip_broken:
                    raise
                skipped[str(error)] += 1

    def _add_label(self, sample: Sample) -> Sample:
        """Add `id`, `classes`, `repeat` and `image`; raise ImageError if the label is invalid."""
        name = f"{sample['__key__']} in {sample['__url__']}"
        try:
            record = parse_json(sample.get("json", b"{}"))
            if not isinstance(record, dict):
                raise ValueError(f"its .json is a {type(record).__name__}, not an object")
            if self.classes:
                sample["classes"] = tuple(self.classes(sample))
            elif (classes := record.get("classes", sample.get("cls"))) is None:
                raise ConfigError(
                    f"{name} has no classes; pass a function classes= that returns them"
                )
            else:
                sample["classes"] = _read_classes(classes)
            sample["id"] = str(record.get("id", sample["__key__"]))
            repeat = self.repeat(sample["classes"]) if self.repeat else record.get("repeat", 1)
            if type(repeat) not in (int, float) or not 0 <= repeat <= MAX_REPEAT:
                raise ValueError(
                    f"repeat is {repeat!r}; allowed: a number from 0 to {MAX_REPEAT:,}"
                )
            sample["repeat"] = float(repeat)
        except ConfigError:
            raise
        except ValueError as error:
            raise ImageError(f"{name} has an invalid label: {error}") from None
        if image := next((sample[key] for key in IMAGE_KEYS if key in sample), None):
            sample["image"] = image
        return sample


def _read_classes(classes: Any) -> tuple[int, ...]:
    """The classes of a sample: a list in a .json file, or the text of a .cls file."""
    numbers = [int(classes)] if isinstance(classes, bytes) else classes
    if not isinstance(numbers, list) or not all(
        type(number) is int and 0 <= number < MAX_CLASSES for number in numbers
    ):
        raise ValueError(f"classes is {classes!r}; allowed: a list of whole numbers of at least 0")
    return tuple(numbers)


def count_copies(identifier: str, repeat: float, epoch: int, seed: int) -> int:
    """Return the number of copies of an image in an epoch.

    This is the integer part of `repeat`, plus 1 with a probability of its fractional part. A hash
    of the arguments decides, so all processes agree without communicating.

    Args:
        identifier: id of the image.
        repeat: repeat factor, 0 or more.
        epoch: number of the epoch.
        seed: seed of the run.
    """
    integer = math.floor(repeat)
    if repeat == integer:
        return integer
    text = f"{seed}/{epoch}/{identifier}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return integer + (int.from_bytes(digest, "big") < (repeat - integer) * 2.0**64)


def hash_seed(*values: object) -> int:
    """Return a seed for generators, 0 <= seed < 2**63, that depends only on these values."""
    return int.from_bytes(_hash_values(*values)[:8], "big") >> 1


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    """Seed torch's global generator within the `with` block, and restore its state afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _hash_values(*values: object) -> bytes:
    text = "/".join(map(str, values))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
