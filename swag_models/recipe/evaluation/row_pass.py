"""One pass of a model over images, which all ranks share; rank 0 stores the outputs in order.

Axes: n images of a batch, N all images, D width of an output.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as torch_dist
from numpy.typing import NDArray

from swag_models.errors import ConfigError, SwagModelsError
from swag_models.hub.progress import make_bar
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import Labels
from swag_models.recipe.data.eval_loader import EvalLoader
from swag_models.recipe.evaluation.model_pass import pad_batch
from swag_models.recipe.evaluation.stored_rows import StoredRows
from swag_models.recipe.training.distributed import DistContext

Outputs = tuple[NDArray[Any], ...]  # each (n, D)


@dataclass
class CollectedRows:
    """The outputs for all images on rank 0; empty on other ranks.

    Attributes:
        names: name of each image (N).
        classes: class numbers of each image (N).
        outputs: the outputs, each (N, D); none if no image could be read.
    """

    names: list[str] = field(default_factory=list)
    classes: list[Labels] = field(default_factory=list)
    outputs: list[StoredRows] = field(default_factory=list)


class _Turn(NamedTuple):
    """What a rank has computed in its turn, as the other ranks see it.

    Attributes:
        ids: name of each image.
        classes: class numbers of each image.
        kinds: shape and dtype of each output.
        ended: whether the rank has read all its images before this turn.
        error: the error that ends the pass.
    """

    ids: Sequence[str] = ()
    classes: Sequence[Labels] = ()
    kinds: Sequence[tuple[tuple[int, ...], str]] = ()
    ended: bool = False
    error: SwagModelsError | None = None


def collect_rows(
    loader: EvalLoader,
    compute: Callable[[Batch], Outputs],
    dist: DistContext,
    folder: Path,
    *,
    batch_size: int,
    progress: bool = False,
    title: str = "",
) -> CollectedRows:
    """Compute outputs of all images on all ranks, and store them on rank 0.

    Ranks take turns with their batches, and rank 0 holds one batch of another rank at a time, so
    its memory does not depend on the numbers of images and ranks. Images that are read by index
    are stored in this order. Shards have no such order for all numbers of ranks and workers, so
    their images are sorted by name, then by classes and output. Afterwards, `loader.seen` and
    `loader.skipped` count the images of all ranks.

    Args:
        loader: the images of this rank.
        compute: batch -> outputs of its n images. For images in shards, the batch is padded to
            `batch_size`, because kernels may sum in another order for another size.
        dist: the ranks that share the work.
        folder: for temporary files of rank 0, which have the size of the outputs.
        batch_size: images of a full batch.
        progress: show a progress bar.
        title: of the progress bar.

    Raises:
        ConfigError: the ranks have different data.
        SwagModelsError: the error of any rank, on every rank.
    """
    _check_equal_data(loader, dist)
    turns, collected = loader.read_turns(), CollectedRows()
    digests = list[bytes]()
    failure: SwagModelsError | None = None  # of storing the outputs of the last turn
    total = loader.samples
    with make_bar(progress and dist.is_main, total=total, desc=title, unit=" images") as bar:
        while True:
            turn, outputs = _take_turn(turns, compute, 0 if loader.by_index else batch_size)
            turn = turn._replace(error=failure or turn.error)
            gathered: list[_Turn] = dist.gather(turn)
            if errors := [other.error for other in gathered if other.error]:
                raise errors[0]
            if all(other.ended for other in gathered):
                break
            for rank, other in enumerate(gathered):
                received = _receive(other, outputs, rank, dist) if other.ids else ()
                if not received or failure:
                    continue
                try:
                    _store(collected, other, received, folder)
                except SwagModelsError as error:  # the other ranks see it in the next turn
                    failure = error
                if not loader.by_index:
                    digests += [hashlib.blake2b(row.tobytes()).digest() for row in received[0]]
            bar.update(sum(len(other.ids) for other in gathered))
    counts = dist.gather((loader.seen, loader.skipped))
    loader.seen = sum(seen for seen, _ in counts)
    skipped = sum((part for _, part in counts), Counter[str]())
    loader.skipped = Counter(dict(sorted(skipped.items())))
    if not loader.by_index:
        _sort(collected, digests)
    return collected


def _check_equal_data(loader: EvalLoader, dist: DistContext) -> None:
    """Raise ConfigError unless all ranks have the same images, which they number alike."""
    gathered = dist.gather((loader.facts["sha256"], loader.facts["name"]))
    first, name = gathered[0]
    for rank, (digest, _) in enumerate(gathered):
        if digest != first:
            raise ConfigError(
                f"rank {rank} finds other images of {name} than rank 0; give all machines the same "
                "files"
            )


def _take_turn(
    turns: Iterator[Batch | None], compute: Callable[[Batch], Outputs], padding: int
) -> tuple[_Turn, Outputs]:
    """Compute the outputs of the next batch of this rank."""
    try:
        batch = next(turns)
    except StopIteration:
        return _Turn(ended=True), ()
    except SwagModelsError as error:
        return _Turn(error=error), ()
    if batch is None:
        return _Turn(), ()
    try:
        count = len(batch.ids)
        padded = batch._replace(images=pad_batch(batch.images, padding))
        outputs = tuple(np.ascontiguousarray(rows[:count]) for rows in compute(padded))
    except SwagModelsError as error:
        return _Turn(error=error), ()
    kinds = [(rows.shape, rows.dtype.str) for rows in outputs]
    return _Turn(batch.ids, batch.classes, kinds), outputs


def _receive(turn: _Turn, outputs: Outputs, rank: int, dist: DistContext) -> Outputs:
    """Move the outputs of a rank to rank 0; returns them there, and nothing on other ranks."""
    if rank == 0:
        return outputs if dist.is_main else ()
    if dist.is_main:
        outputs = tuple(np.empty(shape, dtype) for shape, dtype in turn.kinds)
        for rows in outputs:
            torch_dist.recv(torch.from_numpy(rows), src=rank)
        return outputs
    if rank == dist.rank:
        for rows in outputs:
            torch_dist.send(torch.from_numpy(rows), dst=0)
    return ()


def _store(collected: CollectedRows, turn: _Turn, outputs: Outputs, folder: Path) -> None:
    if not collected.outputs:
        collected.outputs = [StoredRows(folder, rows.shape[1], rows.dtype) for rows in outputs]
    for stored, rows in zip(collected.outputs, outputs, strict=True):
        stored.append(rows)
    collected.names += turn.ids
    collected.classes += turn.classes


def _sort(collected: CollectedRows, digests: list[bytes]) -> None:
    """Sort images by name, classes and digest of the output."""
    keys = list(zip(collected.names, collected.classes, digests))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    collected.names = [collected.names[index] for index in order]
    collected.classes = [collected.classes[index] for index in order]
    indices = np.array(order, np.int64)
    collected.outputs = [rows.select(indices) for rows in collected.outputs]
