"""Endless batches from shards, in an order that need not depend on the number of ranks."""

import logging
from collections import Counter
from typing import Any

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.recipe.config import Engine
from swag_models.recipe.data.collate import Batch, Transform, collate_samples, concatenate_batches
from swag_models.recipe.data.loader import DecodeLabelled, Loader, check_state
from swag_models.recipe.data.sources import ShardSource
from swag_models.recipe.data.stream import UNREACHABLE_EPOCH
from swag_models.recipe.worker_pool import prepare_loader_worker

logger = logging.getLogger("swag_models")


class ShardLanes:
    """Endless batches of one rank from shards, read in lanes.

    A lane is a virtual rank: each of the L lanes reads its share of the shards with its own
    `Loader`. Rank r of R reads the lanes from r * L / R up to, but not including, (r + 1) * L / R,
    and concatenates their batches. The state is that of all lanes of all ranks. The number of lanes
    can stay the same when the number of ranks changes, and then so does the order.

    Args:
        source: the shards.
        transform: as for `open_train_loader`, as are all other arguments.
    """

    def __init__(
        self,
        source: ShardSource,
        transform: Transform,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        engine: Engine,
    ) -> None:
        self._urls, self._decode = source.urls, DecodeLabelled(transform, source.label_classes)
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size, self._engine = rank, world_size, engine
        self._open_lanes(engine.lanes or world_size)

    def _open_lanes(self, count: int, streams: int | None = None) -> None:
        """Open this rank's lanes at the start of the data.

        Args:
            count: number of lanes of all ranks.
            streams: number of streams of each lane, from a state; by default one per worker.
        """
        check_multiple("lanes", count, self._world_size, "ranks")
        check_multiple("batch_size", self._batch_size, count, "lanes")
        if len(self._urls) < count:
            raise ConfigError(
                f"too few shards, {len(self._urls)}, for {count_noun(count, 'lane')}; use fewer "
                "lanes or pack smaller shards"
            )
        workers = min(self._engine.workers, len(self._urls) // count)  # more would get no shard
        if streams not in (None, max(1, workers)):
            logger.warning(
                "shards are read by %s instead of %d, as in the state",
                *(count_noun(streams, "worker"), workers),
            )
            workers = streams  # the state has one position per stream
        self._count, rank_lanes = count, count // self._world_size
        self._lanes = {
            lane: Loader(
                self._urls,
                self._decode,
                batch_size=self._batch_size // count,
                seed=self._seed,
                steps=UNREACHABLE_EPOCH,  # a pass never ends
                workers=workers,
                rank=lane,
                world_size=count,
                buffer=self._engine.buffer,
                skip_broken=True,
                collate=collate_samples,
                worker_init_fn=prepare_loader_worker,
            )
            for lane in range(self._rank * rank_lanes, (self._rank + 1) * rank_lanes)
        }
        self._state = self._get_state()

    @property
    def skipped(self) -> Counter[str]:
        """Message -> number of broken images and shards."""
        return sum((loader.skipped for loader in self._lanes.values()), Counter())

    def receive(self) -> Batch:
        """Return the next batch."""
        try:
            batches = [next(iter(loader)) for loader in self._lanes.values()]
        except BaseException:
            # Otherwise some lanes would be one batch ahead of the others.
            for lane, loader in self._lanes.items():
                loader.load_state_dict(self._state["lanes"][str(lane)])
            raise
        # Stored, because after an error all lanes are reset to the last batch that was delivered.
        self._state = self._get_state()
        return concatenate_batches(batches)

    def _get_state(self) -> dict[str, Any]:
        lanes = {str(lane): loader.state_dict() for lane, loader in self._lanes.items()}
        return {
            "kind": "shards",
            "batch_size": self._batch_size,
            "count": self._count,
            "lanes": lanes,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this rank's lanes after the last batch received."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the merged state of all ranks, with the same number of lanes if possible.

        If `engine.lanes` or the number of ranks does not allow that number, start with the next
        epoch and log a warning.
        """
        check_state(state, {"kind": "shards", "batch_size": self._batch_size})
        count = state["count"]
        if self._engine.lanes in (None, count) and count % self._world_size == 0:
            self._resume_lanes(count, state["lanes"])
        else:
            self._start_next_epoch(count, state["lanes"])
        self._state = self._get_state()

    def _resume_lanes(self, count: int, states: dict[str, Any]) -> None:
        self._open_lanes(count, next(iter(states.values()))["workers"])
        for lane, loader in self._lanes.items():
            if str(lane) not in states:
                raise ConfigError(
                    f"the state has no lane {lane}; merge the states of all ranks with merge_states"
                )
            loader.load_state_dict(states[str(lane)])

    def _start_next_epoch(self, count: int, states: dict[str, Any]) -> None:
        if len(states) < count:
            raise ConfigError(
                f"the state has {len(states)} of {count_noun(count, 'lane')}; merge the states of "
                "all ranks with merge_states"
            )
        self._open_lanes(self._engine.lanes or self._world_size)
        # Start after every epoch that any stream has begun, so that no epoch repeats a sample.
        epoch = 1 + max(position[0] for state in states.values() for position in state["positions"])
        settings = next(iter(states.values()))  # checked by the loaders: seed, shards, ...
        for loader in self._lanes.values():
            lane_state = loader.state_dict()
            loader.load_state_dict(
                {
                    **settings,
                    **{name: lane_state[name] for name in ("rank", "world_size", "workers")},
                    "turn": 0,
                    "positions": [[epoch, 0, 0]] * lane_state["workers"],
                }
            )
        logger.warning(
            "the state has %s, this loader has %d for %s: it starts with epoch %d of "
            "the shards, and the rest of the last epoch is skipped; set engine.lanes to a common "
            "multiple of all numbers of ranks",
            count_noun(count, "lane"),
            self._count,
            count_noun(self._world_size, "rank"),
            epoch,
        )

    def close(self) -> None:
        """Stop the worker processes."""
        for loader in self._lanes.values():
            loader.close()


def check_multiple(name: str, value: int, divisor: int, unit: str) -> None:
    """Raise ConfigError unless `value` is a positive multiple of `divisor`, the number of units."""
    if value < 1 or value % divisor:
        nearest = max(1, round(value / divisor)) * divisor
        allowed = (
            f"a positive multiple of {divisor} with {divisor} {unit}, for example {nearest}"
            if divisor > 1
            else "1 or more"
        )
        raise ConfigError(f"invalid {name} {value}: allowed {allowed}")
