"""The data plan on a small scale: the same checks as at full scale, and each can fail."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from studies.scale import data_plan
from studies.scale.data_plan import DataPlan, simulate
from swag_models.recipe.data import stream as stream_module
from swag_models.recipe.data.shard_lanes import ShardLanes
from swag_models.recipe.data.stream import ShardStream, count_copies

SMALL = DataPlan(
    images=5_000,
    shards=100,
    ranks=(2, 8, 4),
    workers=2,
    batch_size=32,
    buffer=50,
    streams=16,
    steps=10,
)
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_image_is_seen_as_often_as_its_repeat_factor_says(tmp_path: Path) -> None:
    result = simulate(SMALL, tmp_path)
    assert result["index"]["shards"] == 100
    # All 16 streams were read, so these are all samples of an epoch.
    assert result["streams"]["samples"] == pytest.approx(5_000 * 5 / 3.6, rel=0.05)
    assert (result["epoch"]["min_shards"], result["epoch"]["max_shards"]) == (6, 7)
    assert 50 < result["streams"]["shard_span"] < 500
    assert 1 < result["streams"]["shards_per_batch"] < 4
    assert result["resume"]["samples"] == 3 * 10 * 16


def open_thread(workers: int, context: object) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers)


@pytest.mark.parametrize(
    ("owner", "name", "defect", "message"),
    [
        (
            ShardStream,
            "list_shards",
            lambda self, stream, epoch: [self.rank * self.streams + stream],
            "a shard is not read exactly once by 2 ranks",
        ),
        (
            stream_module,
            "count_copies",
            lambda *values: count_copies(*values) + (values[0] == "321"),
            "has other copies of its images",
        ),
        (
            ShardLanes,
            "load_state_dict",
            lambda self, state: None,
            "a run with other numbers of ranks has other batches",
        ),
    ],
)
def test_a_defect_of_the_plan_is_found(
    owner: Any, name: str, defect: Any, message: str, tmp_path: Path
) -> None:
    with (
        mock.patch.object(owner, name, defect),
        # a thread has the same index, without the time to start a process
        mock.patch.object(data_plan, "ProcessPoolExecutor", side_effect=open_thread),
        pytest.raises(AssertionError, match=message),
    ):
        simulate(replace(SMALL, images=4400, shards=44, steps=2, ranks=(2, 4)), tmp_path)
