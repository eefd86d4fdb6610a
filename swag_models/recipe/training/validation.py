"""Evaluation of a model during its training.

Axes: N samples of one forward pass on one rank, C classes, S pixels.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swag_models.formatting import count_noun
from swag_models.recipe.average_precision import average_precisions, make_indicators
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.eval_loader import EvalLoader, open_eval_loader
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.training.classes import Classes
from swag_models.recipe.training.losses import count_hits
from swag_models.recipe.training.train_state import TrainState

MAX_SCORES = 1 << 30  # logits of all samples in memory, 4 GB

logger = logging.getLogger("swag_models")


@torch.no_grad()
def validate(state: TrainState, loader: EvalLoader) -> dict[str, float]:
    """Measure a model on validation data; every sample counts once, whatever the number of ranks.

    Returns:
        In percent, "mAP", the mean of the classes' average precision, for a multi-label model;
        otherwise "top1": the best class of a sample must be one of its own. A multi-label model
        whose logits of all samples and classes would not fit into memory has "top1" too, which
        `open_validation` logs.
    """
    model, transform, dist = state.final_model.eval(), state.transform, state.dist
    num_classes = state.spec.num_classes
    assert num_classes is not None
    ranks_images = state.spec.multi_label and _count_scores(loader, num_classes) <= MAX_SCORES
    empty = torch.zeros(1, 3, *transform.preprocess.size, dtype=torch.uint8)
    hits, count = 0, 0
    scores, labels = list[Tensor](), list[Sequence[int]]()
    batches = iter(loader)
    # Sharded weights are gathered in every forward pass, so all ranks must do the same number of
    # them: a rank without a batch sends an empty image.
    while any(dist.all_reduce_sum((batch := next(batches, None)) is not None)):
        images = (batch.images if batch else empty).to(dist.device)
        with state.autocast:
            logits: Tensor = model(transform.normalise(images))  # (N, C)
        if batch and ranks_images:
            scores.append(logits.float().cpu())
            labels += batch.classes
        elif batch:
            hits += count_hits(logits, batch.classes)
            count += len(batch.ids)
    if ranks_images:
        empty_scores = torch.empty(0, num_classes)
        gathered = dist.gather((torch.cat([empty_scores, *scores]).numpy(), labels))
        return {"mAP": dist.run_on_main(lambda: _average_precision(gathered))}
    total_hits, total = dist.all_reduce_sum(hits, count)
    return {"top1": 100 * total_hits / total if total else math.nan}


def _average_precision(gathered: Sequence[tuple[Any, Sequence[Sequence[int]]]]) -> float:
    """The mean average precision in percent, over the classes that a sample has.

    Args:
        gathered: logits (N, C) and classes of the samples of each rank.
    """
    scores = np.concatenate([scores for scores, _ in gathered])
    targets = make_indicators(
        [classes for _, rows in gathered for classes in rows], scores.shape[1]
    )
    if not np.isfinite(scores).all() or not targets.any():
        return math.nan
    present = targets.any(axis=0)
    return 100 * float(average_precisions(scores[:, present], targets[:, present]).mean())


def _count_scores(loader: EvalLoader, num_classes: int) -> int:
    return (loader.samples or 0) * num_classes


def open_validation(val: Shards | ImageDataset, state: TrainState, classes: Classes) -> EvalLoader:
    """Open the validation data, whose classes must be among those of the model."""
    loader = open_eval_loader(
        val,
        state.transform.fit,
        batch_size=state.micro_batch_size,
        rank=state.dist.rank,
        world_size=state.dist.world_size,
        workers=state.run.engine.workers,
        classes=classes.names,
        synsets=classes.synsets,
    )
    num_classes = state.spec.num_classes or 0
    if (
        state.spec.multi_label
        and state.dist.is_main
        and _count_scores(loader, num_classes) > MAX_SCORES
    ):
        logger.warning(
            "validation measures top-1 and not mAP: %s of %s have more than %s scores; give fewer "
            "samples for mAP",
            count_noun(loader.samples, "sample"),
            count_noun(num_classes, "class"),
            f"{MAX_SCORES:,}",
        )
    return loader
