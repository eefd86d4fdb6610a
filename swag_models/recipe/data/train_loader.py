"""Endless batches of training data of any kind, resumable with another number of ranks.

Axes: N samples of a batch, S pixels.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from swag_models.recipe.config import Engine
from swag_models.recipe.data.collate import Batch, Transform
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.indexed_batches import IndexedBatches
from swag_models.recipe.data.shard_lanes import ShardLanes, check_multiple
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.data.sources import ShardSource, describe_source, open_source


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
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._batches.receive()

    @property
    def skipped(self) -> Counter[str]:
        """Message -> number of broken images that this rank replaced by the next sample."""
        return self._batches.skipped

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
    """Open the training data of one rank.

    Args:
        data: packed shards or other shards (see `find_shards`), a folder with a sub-folder of
            images for each class, or a Hugging Face dataset on disk. If the dataset has several
            splits, "train" is opened.
        transform: an upright RGB image -> uint8 (3, S, S). Torch's generator is seeded for each
            image by seed, epoch and sample.
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
    source = open_source(data, classes)
    # Shards are read in sequence, so their order depends on the lanes that read them.
    if isinstance(source, ShardSource):
        lanes = ShardLanes(source, transform, batch_size, seed, rank, world_size, engine)
        return TrainLoader(source, source.samples, lanes)
    workers = engine.workers
    batches = IndexedBatches(source, transform, batch_size, seed, rank, world_size, workers)
    return TrainLoader(source, len(source), batches)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merge the states of the loaders of all ranks into one that any number of ranks can load."""
    merged = dict(states[0])
    # The state of images that are read by index is equal on all ranks.
    if "lanes" in merged:
        merged["lanes"] = {
            lane: lane_state for state in states for lane, lane_state in state["lanes"].items()
        }
    return merged
