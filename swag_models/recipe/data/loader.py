"""Load batches from shards for a training loop: reproducible, and resumable after any batch."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from swag_models.errors import ConfigError, ImageError, check_minimum
from swag_models.formatting import count_noun, printable
from swag_models.image_decoding import read_image
from swag_models.image_formats import named_errors
from swag_models.recipe.data.collate import (
    LoadedSample,
    Transform,
    WorkerResult,
    choose_decoder,
    choose_transform,
    make_data_loader,
)
from swag_models.recipe.data.shard_list import ShardList
from swag_models.recipe.data.shards import Sample, Shards, check_shards_exist, find_shards
from swag_models.recipe.data.stream import UNREACHABLE_EPOCH, Position, ShardStream
from swag_models.recipe.limits import check_workers
from swag_models.runtime import read_environment


class Decode:
    """The default decoder: sample -> (image, classes).

    Args:
        transform: applied to the upright RGB image; None to return the image unchanged.
    """

    def __init__(self, transform: Callable[[Any], Any] | None = None) -> None:
        self.transform = transform

    def __call__(self, sample: Sample) -> tuple[Any, tuple[int, ...]]:
        name = f"{sample['__key__']} in {sample['__url__']}"
        if "image" not in sample:
            raise ImageError(f"{name} has no image")
        image: Any = read_image(io.BytesIO(sample["image"]), name, choose_decoder(self.transform))
        with named_errors(name):
            return self.transform(image) if self.transform else image, sample["classes"]


class DecodeLabelled:
    """A decoder for `collate_samples`: sample -> (image, classes, id).

    Args:
        transform: as for `open_train_loader`.
        num_classes: number of classes that the labels may have; None if not known.
    """

    def __init__(self, transform: Transform, num_classes: int | None) -> None:
        self.transform, self.num_classes = transform, num_classes

    def __call__(self, sample: Sample) -> LoadedSample:
        transform = choose_transform(self.transform, sample["step"])
        image, classes = Decode(transform)(sample)
        largest = max(classes, default=-1)
        if self.num_classes is not None and largest >= self.num_classes:
            allowed = f"0 to {self.num_classes - 1}" if self.num_classes else "none"
            raise ConfigError(
                f"{sample['id']} in {sample['__url__']} has class {largest}; allowed: {allowed}"
            )
        return image, classes, printable(sample["id"])


def collate_images(
    samples: list[tuple[Any, tuple[int, ...]]],
) -> tuple[Any, list[tuple[int, ...]]]:
    """Make a batch of results of `Decode`.

    Args:
        samples: N images with their classes.

    Returns:
        The images, as a tensor (N, ...) if they are tensors and as a list otherwise, and the
        classes of each image.
    """
    images, classes = map(list, zip(*samples))
    # A custom transform may return images of unequal sizes, if they are not tensors.
    return default_collate(images) if isinstance(images[0], Tensor) else images, classes


class Loader:
    """Iterable over batches from shards.

    Each `for` yields the batches of one pass. If it is left early, the next `for` resumes after the
    last batch received. See `stream` for the order of the samples.

    Args:
        shards: packed folder, manifest, paths, URLs or patterns; see `find_shards`.
        decode: sample -> decoded sample, of any type; by default `Decode()`. It raises ImageError
            if the sample is broken. A sample has `__key__`, `__url__`, the content of each of its
            files by suffix, and `id`, `classes`, `repeat`, `image` (content), `epoch` and `seed`,
            and unless `steps` is "exact" `step`, the number of its batch, over all passes.
            Torch's generator is seeded with `seed`, which differs for every sample, epoch and
            copy.
        batch_size: samples per batch.
        seed: seed of the order and of `decode`.
        steps: batches per pass. "exact" is one epoch: the last batch of each stream may be smaller,
            and ranks may differ by a few batches. "expected" is the expected number of samples in
            an epoch // (batch_size * world_size). With "expected" or a number, all ranks have the
            same number of batches, as distributed training requires; streams then continue into
            their next epochs, and no sample is lost.
        workers: number of processes that read and decode; 0 to read in this process.
        rank: number of this rank; by default the environment variable RANK, or 0.
        world_size: number of ranks; by default the environment variable WORLD_SIZE, or 1.
        window: number of shards that are shuffled together.
        buffer: number of samples in the shuffle buffer of each stream.
        repeat: classes -> repeat factor; by default the factors of the packed samples, or 1.
        classes: sample -> class numbers; by default those of the packed samples or of `.cls` files.
        skip_broken: count broken samples and shards in `skipped` by message, instead of raising
            ImageError and ShardError. All samples of a truncated shard but its last complete one
            are still used.
        collate: list of decoded samples -> batch.
        **options: other options of `torch.utils.data.DataLoader`.

    Attributes:
        epoch: number of complete passes.
        step: number of batches received in the current pass.
        skipped: message -> number of broken samples and shards.

    Raises:
        ConfigError: an argument is out of range, or there are too few shards.
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
        check_workers(workers=workers)
        urls, manifest = find_shards(shards)
        # torchrun sets both variables.
        rank = read_environment("RANK", 0) if rank is None else rank
        world_size = read_environment("WORLD_SIZE", 1) if world_size is None else world_size
        check_minimum(1, batch_size=batch_size, world_size=world_size, window=window, buffer=buffer)
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"invalid rank {rank}: with world_size {world_size} allowed 0 to {world_size - 1}"
            )
        self.streams = max(1, workers)  # without workers, this process reads one stream
        if isinstance(shards, ShardList):
            # Only a part, because a million files would be looked up by every rank.
            check_shards_exist(shards[rank::world_size])
        # With other repeat factors the number is not known without reading all labels.
        self.samples = manifest["samples"] if manifest and not repeat else None
        self.steps = _count_steps(steps, self.samples, batch_size * world_size)
        if self.steps is not None and len(urls) < world_size * self.streams:
            raise ConfigError(
                f"too few shards, {len(urls)}, for {count_noun(world_size, 'rank')} x "
                f"{count_noun(self.streams, 'worker')}; use fewer or pack smaller shards"
            )
        self._stream = ShardStream(
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
        self._loader = make_data_loader(self._stream, workers, **options)
        # The order of the samples depends on these; a state is valid only for equal values.
        self._identity = {
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "workers": self.streams,
            "window": window,
            "buffer": buffer,
            "exact": self.steps is None,
            # Names only, so that a run can be resumed after the shards were moved.
            "shards": urls.names_sha256[:16],
        }
        self.epoch, self.step = 0, 0
        self.skipped = Counter[str]()
        self._set_start(0, [Position(0)] * self.streams)

    def _set_start(self, turn: int, positions: Sequence[tuple[int, int, int]]) -> None:
        """Set the stream of the next batch and the position of each stream; stop the workers."""
        self._turn, self._positions = turn, list(positions)
        self._results: Iterator[WorkerResult] | None = None

    def __len__(self) -> int:
        if self.steps is None:
            raise TypeError("the number of batches of an exact epoch is known only at its end")
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        while self.step != self.steps:  # always true for an exact epoch, whose `steps` is None
            result = self._receive()
            if result is None:  # all streams have ended
                self._set_start(0, [Position(self.epoch + 1)] * self.streams)
                break
            assert result.position is not None
            self._turn = (result.stream + 1) % self.streams
            self._positions[result.stream] = result.position
            self.skipped.update(result.skipped)
            if result.batch is not None:
                self.step += 1
                yield result.batch
        self.epoch, self.step = self.epoch + 1, 0

    def _receive(self) -> WorkerResult | None:
        if self._results is None:
            stop = self.epoch + 1 if self.steps is None else UNREACHABLE_EPOCH
            step = self.epoch * (self.steps or 0) + self.step
            self._stream.set_start(self._turn, self._positions, stop, step)
            self._results = iter(self._loader)
        try:
            result = next(self._results, None)
            if result and result.error:
                raise result.error
        except BaseException:  # also on Ctrl-C
            self._results = None  # results may be lost, so the next `for` restarts the workers
            raise
        return result

    def close(self) -> None:
        """Stop the worker processes, unless they are persistent; the next `for` restarts them."""
        self._results = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the last batch received, not after those read ahead by workers."""
        return {
            **self._identity,
            "epoch": self.epoch,
            "step": self.step,
            "turn": self._turn,
            "positions": list(map(list, self._positions)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state.

        Args:
            state: from `state_dict`, also after a round trip through JSON.

        Raises:
            ConfigError: the state belongs to other shards or settings, with another order.
        """
        check_state(state, self._identity)
        self.epoch, self.step = state["epoch"], state["step"]
        self._set_start(state["turn"], [Position(*position) for position in state["positions"]])


def check_state(state: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ConfigError unless the state of a loader has the expected entries."""
    for name, value in expected.items():
        if state.get(name) != value:
            raise ConfigError(
                f"the state has {name} {state.get(name)!r}, this loader has {value!r}; resume with "
                "the same data and settings"
            )


def _count_steps(steps: int | str, samples: float | None, batch_size: int) -> int | None:
    """Return the batches per pass, None for an exact epoch; `batch_size` is that of all ranks."""
    if steps == "exact":
        return None
    if steps == "expected":
        if samples is None:
            raise ConfigError(
                "steps 'expected' needs the manifest and repeat factors of packed shards; give a "
                "number of steps"
            )
        steps = int(samples // batch_size)
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(
            f"invalid steps {steps!r}: allowed 'exact', 'expected' (if it is at least one batch), "
            "or a number of at least 1"
        )
    return steps
