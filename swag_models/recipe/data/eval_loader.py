"""Validation data of any kind -> batches with every sample once over all ranks.

Axes: n the samples of a batch, S pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset

from swag_models.errors import ConfigError, ImageError
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
from swag_models.recipe.data.hf_dataset import EVAL_SPLITS
from swag_models.recipe.data.loader import Loader
from swag_models.recipe.data.shards import (
    Shards,
    check_vocabulary,
    find_shards,
    hash_shards,
    name_shards,
)
from swag_models.recipe.data.sources import find_image_folder, open_image_dataset
from swag_models.recipe.worker_pool import ignore_signals


class EvalLoader(ABC):
    """Every sample once over all ranks, in a fixed order, in each `for`. DistContext may differ in their number of batches.

    After a pass `seen` and `skipped`, how many broken ones there were by message, add up to `samples` over all ranks; shards
    without a manifest have None, and a shard that is cut counts as one. The other fields are those of `TrainLoader`.
    """

    num_classes: int | None
    class_names: tuple[str, ...] | None
    samples: int | None
    facts: dict[str, Any]

    def __init__(self) -> None:
        self.seen, self.skipped = 0, Counter[str]()

    def __iter__(self) -> Iterator[Batch]:
        self.seen, self.skipped = 0, Counter()
        for batch in self._read():
            self.seen += len(batch.ids)
            yield batch

    @abstractmethod
    def _read(self) -> Iterator[Batch]:
        """A pass, which counts in `skipped`."""


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
    """What to validate one rank on: as `open_train_loader`, but `batch_size` is the rank's own, and repeat factors are ignored.

    synsets: of all classes of a model; ConfigError if shards, whose classes are numbers, have a vocabulary of others. Of a
    dataset with several splits, "validation", "val" or "test" is taken. An album has its classes already. What has an index
    comes in the same batches whatever ranks there are, dealt out in turn.
    """
    assert 0 <= rank < world_size
    check_division("batch_size", batch_size, 1, "ranks")
    if workers < 0:
        raise ConfigError(f"workers is {workers}; allowed: 0 or more")
    if isinstance(data, ImageDataset):
        return AlbumCheck(data, transform, batch_size, rank, world_size, workers)
    if (root := find_image_folder(data)) is None:
        check_vocabulary(data, synsets)
        return ShardCheck(data, transform, batch_size, rank, world_size, workers, classes)
    return AlbumCheck(
        open_image_dataset(root, classes, EVAL_SPLITS),
        transform,
        batch_size,
        rank,
        world_size,
        workers,
    )


class AlbumCheck(EvalLoader):
    def __init__(
        self,
        album: ImageDataset,
        transform: Transform,
        batch_size: int,
        rank: int,
        world_size: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.class_names, self.samples = (
            album.num_classes,
            album.class_names,
            len(album),
        )
        self.facts = describe_data(
            album.kind, album.title, self.samples, self.num_classes, album.sha256
        )
        every = range(self.samples)
        self._parts = [
            every[start : start + batch_size]
            for start in every[rank * batch_size :: world_size * batch_size]
        ]
        self._reader, self._workers = _Listing(album, transform), workers

    def _read(self) -> Iterator[Batch]:
        for share in run_workers(self._reader, self._parts, self._workers):
            self.skipped.update(share.skipped)
            if share.batch:
                yield share.batch


class ShardCheck(EvalLoader):
    def __init__(
        self,
        shards: Shards,
        transform: Transform,
        batch_size: int,
        rank: int,
        world_size: int,
        workers: int,
        classes: Sequence[str] | None,
    ) -> None:
        super().__init__()
        urls, manifest = find_shards(shards)
        self.num_classes, self.class_names = count_classes(manifest, classes, shards)
        self.samples = manifest["count"] if manifest else None
        self.facts = describe_data(
            "shards", name_shards(shards), self.samples, self.num_classes, hash_shards(shards)
        )
        self._loader = Loader(
            urls,
            Named(transform, self.num_classes),
            batch_size=batch_size,
            workers=min(workers, -(-len(urls) // world_size)),
            rank=rank,
            world_size=world_size,
            buffer=1,  # nothing has to be mixed
            repeat=_count_once,
            skip_broken=True,
            collate=collate_samples,
            worker_init_fn=ignore_signals,
        )
        self._start = self._loader.state_dict()

    def _read(self) -> Iterator[Batch]:
        self._loader.load_state_dict(self._start)
        before = self._loader.skipped.copy()
        yield from self._loader
        self.skipped = self._loader.skipped - before


class _Listing(Dataset[Share]):
    """Indices -> a batch of those that are not broken, if there are any."""

    def __init__(self, album: ImageDataset, transform: Transform) -> None:
        self.album, self.transform = album, transform

    def __getitem__(self, indices: range) -> Share:
        samples, skipped = [], Counter[str]()
        for index in indices:
            try:
                samples.append(take_sample(self.album, index, self.transform))
            except ImageError as error:
                skipped[str(error)] += 1
        return Share(collate_samples(samples) if samples else None, skipped)


def _count_once(classes: Sequence[int]) -> float:
    return 1.0
