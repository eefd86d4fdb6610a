"""The training data as a loop takes it: the next batch is fetched while a GPU still computes."""

from collections.abc import Iterator
from typing import Any

import torch

from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.train_loader import TrainLoader
from swag_models.recipe.training.logging import Throughput


class BatchQueue:
    """The batches of a training loop, at most one of them fetched ahead.

    Args:
        loader: the training data.
        device: that the batches are for; for a GPU they are put into pinned memory.
        throughput: counts the time of waiting for the loader.
    """

    def __init__(self, loader: TrainLoader, device: torch.device, throughput: Throughput) -> None:
        self._loader, self._throughput = loader, throughput
        self._pin = device.type == "cuda"
        self._batches: Iterator[Batch] = iter(loader)
        self._next: Batch | Exception | None = None
        self._facts = self._read_facts()

    def _read_facts(self) -> tuple[dict[str, Any], int]:
        return self._loader.state_dict(), sum(self._loader.skipped.values())

    def fetch(self) -> None:
        """Fetch the next batch; an error is raised by the `take` of this batch."""
        if self._next is None:
            try:
                with self._throughput.wait():
                    self._next = self._pin_images(next(self._batches))
            except Exception as error:
                self._next = error

    def _pin_images(self, batch: Batch) -> Batch:
        return batch._replace(images=batch.images.pin_memory()) if self._pin else batch

    def take(self) -> Batch:
        """Return the next batch, which is now part of the state.

        Raises:
            ConfigError: see `TrainLoader`.
        """
        self.fetch()
        batch, self._next = self._next, None
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None
        self._facts = self._read_facts()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state of the loader after the last batch that was taken."""
        return self._facts[0]

    def count_broken(self) -> int:
        """Images that could not be read until the last batch that was taken."""
        return self._facts[1]
