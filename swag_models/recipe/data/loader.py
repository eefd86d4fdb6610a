"""Shards -> batches, for a training loop: the same for a seed wherever it is read, and resumable after any of them."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from swag_models.errors import ConfigError, ImageError
from swag_models.preprocess import read_image
from swag_models.recipe.data.shards import Shards, find_shards
from swag_models.recipe.data.stream import ENDLESS, Entry, Position, Sample, Stream


class Decode:
    """The default decoder: a sample -> (upright RGB image, or what `transform` makes of it; its classes)."""

    def __init__(self, transform: Callable[[Any], Any] | None = None) -> None:
        self.transform = transform

    def __call__(self, sample: Sample) -> tuple[Any, tuple[int, ...]]:
        name = f"{sample['__key__']} in {sample['__url__']}"
        if "image" not in sample:
            raise ImageError(f"{name} has no image")
        image = read_image(io.BytesIO(sample["image"]), name)
        return self.transform(image) if self.transform else image, sample["classes"]


def collate_images(batch: list[tuple[Any, tuple[int, ...]]]) -> tuple[Any, list[tuple[int, ...]]]:
    """What `Decode` gave of N samples -> (images (N, ...), or a list if they are no tensors; the classes of each)."""
    images, classes = [image for image, _ in batch], [each for _, each in batch]
    return default_collate(images) if isinstance(images[0], torch.Tensor) else images, classes


class Loader:
    """Batches from shards; a `for` over it gives one pass, and the next `for` goes on where the last one stopped.

    shards: what `find_shards` takes.
    decode: sample -> anything, ImageError if it is broken. A sample has `__key__`, `__url__`, the content of each of its files
        by suffix, and `id`, `classes`, `repeat`, `image` (content), `epoch` and `seed`. While it runs, torch's generator is
        seeded with `seed`, which differs for every sample, epoch and copy.
    steps: the batches of a pass. "exact": one epoch, until every stream of this rank has come to its end, the last batches of
        streams may be smaller, and ranks may have a few batches more or fewer. A number, or "expected" for samples of an epoch
        // (batch_size * world_size), the same in every rank, as training together needs: streams then run on into their next
        epochs by themselves, and none is cut.
    workers: processes that read and decode; 0 does it in this one.
    rank, world_size: by default RANK and WORLD_SIZE of the environment, or 0 and 1.
    window, buffer: shards and samples; see `stream`.
    repeat: classes -> repeat factor, instead of the packed ones. classes: sample -> classes, for shards that were not packed
        here; their samples have repeat factor 1, and the `id` of the .json or else the key for an id.
    skip_broken: count what cannot be read in `skipped`, by message, instead of raising ImageError and ShardError. Of a shard
        that is cut, what comes before its last sample is seen.
    collate: list of decoded samples -> batch. More options are those of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        shards: Shards,
        decode: Callable[[Sample], Any] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        steps: int | str = "exact",
        workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        window: int = 4,
        buffer: int = 2000,
        repeat: Callable[[Sequence[int]], float] | None = None,
        classes: Callable[[Sample], Sequence[int]] | None = None,
        skip_broken: bool = False,
        collate: Callable[[list[Any]], Any] = collate_images,
        **options: Any,
    ) -> None:
        urls, manifest = find_shards(shards)
        rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        for name, value in (
            ("batch_size", batch_size),
            ("world_size", world_size),
            ("window", window),
            ("buffer", buffer),
        ):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it is at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"rank is {rank}; with world_size {world_size} it goes from 0 to {world_size - 1}"
            )
        self.streams = max(1, workers)
        self.samples = manifest["samples"] if manifest and not repeat else None
        self.steps = self._count_steps(steps, batch_size * world_size)
        if self.steps is not None and len(urls) < world_size * self.streams:
            raise ConfigError(
                f"{len(urls)} shards cannot feed {world_size} ranks x {self.streams} workers; use fewer or pack smaller shards"
            )
        self._stream = Stream(
            urls=urls,
            decode=decode or Decode(),
            collate=collate,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            streams=self.streams,
            window=window,
            buffer=buffer,
            repeat=repeat,
            classes=classes,
            skip_broken=skip_broken,
        )
        generator = (
            torch.Generator()
        )  # else every pass would draw from the generator that training uses
        self._loader = DataLoader(
            self._stream,
            batch_size=None,
            collate_fn=_pass_on,
            num_workers=workers,
            generator=generator,
            **options,
        )
        self._identity = {
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "workers": self.streams,
            "window": window,
            "buffer": buffer,
            "exact": self.steps is None,
            "shards": hashlib.sha256(
                "\n".join(url.rpartition("/")[2] for url in urls).encode()
            ).hexdigest()[:16],
        }
        self.epoch, self.step = 0, 0  # passes that are over, and batches since
        self.skipped = Counter[str]()
        self._start(0, [Position(0)] * self.streams)

    def _count_steps(self, steps: int | str, batch: int) -> int | None:
        if steps == "exact":
            return None
        if steps == "expected":
            if self.samples is None:
                raise ConfigError(
                    "steps 'expected' needs the manifest and repeat factors of packed shards; give a number of steps"
                )
            steps = int(self.samples // batch)
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(
                f"steps is {steps!r}; it is 'exact', 'expected' (at least one full batch), or a number from 1 on"
            )
        return steps

    def _start(self, turn: int, positions: Sequence[Position]) -> None:
        """Be there; streams that are under way are given up."""
        self._turn, self._positions = (
            turn,
            list(positions),
        )  # whose batch is next, and where each stream is, as far as was seen
        self._running: Iterator[Entry] | None = None

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("how many batches an exact epoch has is only known at its end")
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        while self.step != self.steps:
            entry = self._receive()
            if entry is None:  # all streams have ended
                self._start(0, [Position(self.epoch + 1)] * self.streams)
                break
            self._turn, self._positions[entry.number] = (
                (entry.number + 1) % self.streams,
                entry.position,
            )
            self.skipped.update(entry.skipped)
            if entry.batch is not None:
                self.step += 1
                yield entry.batch
        self.epoch, self.step = self.epoch + 1, 0

    def _receive(self) -> Entry | None:
        if self._running is None:
            self._stream.begin(
                self._turn, self._positions, self.epoch + 1 if self.steps is None else ENDLESS
            )
            self._running = iter(self._loader)
        try:
            entry = next(self._running, None)
            if entry and entry.error:
                raise entry.error
        except BaseException:
            self._running = None  # what follows is not known to be whole
            raise
        return entry

    def close(self) -> None:
        """End worker processes, unless they persist; the next `for` starts others, after the last batch received."""
        self._running = None

    def state_dict(self) -> dict[str, Any]:
        """What to give `load_state_dict` to go on after the last batch received; what workers read ahead does not count."""
        return {
            **self._identity,
            "epoch": self.epoch,
            "step": self.step,
            "turn": self._turn,
            "positions": list(map(list, self._positions)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. ConfigError if the state is of other shards or settings, which would make it another stream."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise ConfigError(
                    f"the state has {name} {state.get(name)!r}, this loader {value!r}; make one with the same settings"
                )
        self.epoch, self.step = state["epoch"], state["step"]
        self._start(state["turn"], [Position(*position) for position in state["positions"]])


def _pass_on(entry: Any) -> Any:
    return entry
