"""One pass of a model over labelled images, which all ranks share.

Axes: n images of a batch, K classes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.hub.progress import make_bar
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import open_eval_loader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.training.distributed import DistContext

R = TypeVar("R", bound=tuple[Any, ...])


class ModelPass:
    """Iterable over the batches of this rank with their logits; every image is read once.

    Args:
        model: the model.
        data: images that are labelled with its classes.
        dist: the ranks that share the work.
        batch_size: images per forward pass of a rank.
        workers: number of processes per rank that read images.
        progress: show a progress bar.
        title: of the progress bar.

    Attributes:
        classes: name of each class of the model; its number if it has none.
        samples: number of images over all ranks; None if not known.
        facts: description of the data; see `EvalLoader`.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        data: ImageDataset | Shards,
        dist: DistContext,
        *,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = True,
        title: str = "",
    ) -> None:
        assert model.num_classes is not None
        self.classes = model.classes or tuple(map(str, range(model.num_classes)))
        if isinstance(data, ImageDataset):
            # Batches are padded to `batch_size`, which would waste work on a small data set.
            batch_size = min(batch_size, len(data))
        self._model, self._data, self._dist, self._batch_size = model, data, dist, batch_size
        self._shown, self._title = progress and dist.is_main, title
        self._loader = open_eval_loader(
            data,
            model.fit,
            batch_size=batch_size,
            rank=dist.rank,
            world_size=dist.world_size,
            workers=workers,
            classes=self.classes,
        )
        self.samples, self.facts = self._loader.samples, self._loader.facts

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        """Yield each batch and its logits (n, K), which are finite."""
        # The progress bar counts the images of one rank, so estimate its share.
        total = None if self.samples is None else -(-self.samples // self._dist.world_size)
        with make_bar(self._shown, total=total, desc=self._title, unit=" images") as bar:
            for batch in self._loader:
                images = pad_batch(batch.images, self._batch_size)
                logits = self._model.classify(images)[: len(batch.ids)]
                yield batch, logits
                bar.update(len(batch.ids))

    def gather(self, records: Sequence[R]) -> tuple[tuple[R, ...], dict[str, int]]:
        """Collect the records of all ranks, and the counts of broken images by message.

        Returns:
            The records sorted, so that their order does not depend on the numbers of ranks and
            workers; and the counts.

        Raises:
            ConfigError: no image could be read.
        """
        gathered = self._dist.gather((records, self._loader.skipped))
        skipped = sum((counts for _, counts in gathered), Counter[str]())
        ordered = tuple(sorted(record for part, _ in gathered for record in part))
        if not ordered:
            reason = next(iter(skipped), "the data have none")
            name = self._data.root if isinstance(self._data, ImageDataset) else self._data
            raise ConfigError(f"no image in {name} can be read: {reason}")
        return ordered, dict(sorted(skipped.items()))


def pad_batch(images: Tensor, batch_size: int) -> Tensor:
    """Repeat the last image until the batch has `batch_size` images, if it has fewer.

    For another batch size, kernels may sum in another order. Which images are in the last, smaller
    batch of a shard depends on the numbers of ranks and workers, which must not change logits.
    """
    missing = batch_size - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing > 0 else images
