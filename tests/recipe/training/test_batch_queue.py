"""Batches that are fetched ahead: order, state, errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from swag_models.errors import ConfigError
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.training.batch_queue import BatchQueue
from swag_models.recipe.training.logging import Throughput

CPU = torch.device("cpu")


class CountingLoader:
    """Three batches, each with one broken image, and then an error."""

    def __init__(self) -> None:
        self.received = 0
        self.skipped = Counter[str]()

    def __iter__(self) -> Iterator[Batch]:
        for number in range(3):
            self.received += 1
            self.skipped[f"image {number}"] += 1
            yield Batch(torch.full((1,), number), [(number,)], [str(number)])
        raise ConfigError("no more images")

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.received}


def open_queue(loader: CountingLoader) -> BatchQueue:
    return BatchQueue(loader, CPU, Throughput(1, CPU, "fp32"))  # type: ignore[arg-type]


def test_the_state_is_that_of_the_batch_taken_and_not_of_the_one_fetched_ahead() -> None:
    loader = CountingLoader()
    queue = open_queue(loader)
    assert (queue.state_dict(), queue.count_broken()) == ({"batches": 0}, 0)
    for number in range(3):
        assert queue.take().ids == [str(number)]
        assert loader.received == number + 1
        for _ in range(2):  # a second call fetches nothing
            queue.fetch()
        assert loader.received == min(number + 2, 3)
        assert queue.state_dict() == {"batches": number + 1}
        assert queue.count_broken() == number + 1


def test_an_error_while_fetching_ahead_is_raised_by_the_next_take() -> None:
    queue = open_queue(CountingLoader())
    for _ in range(3):
        queue.take()
    queue.fetch()
    assert queue.state_dict() == {"batches": 3}
    with pytest.raises(ConfigError, match="no more images"):
        queue.take()
