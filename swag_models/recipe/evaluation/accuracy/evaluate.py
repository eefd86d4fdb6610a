"""Evaluation of a model on a benchmark.

Every image is read once over all ranks, which makes one record. The records are gathered, and all
metrics are computed from them on one rank, so they do not depend on the number of ranks.

Axes: n images of a batch, K classes, C classes that may be predicted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.evaluation.accuracy.benchmarks import (
    FOLDER,
    MULTILABEL,
    find_published,
    open_benchmark,
)
from swag_models.recipe.evaluation.accuracy.metrics import compute_metrics
from swag_models.recipe.evaluation.model_pass import ModelPass
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.output_files import check_output
from swag_models.recipe.evaluation.results import Evaluation, ImageResult
from swag_models.recipe.training.distributed import DistContext

TOP_CLASSES = 5  # recorded for each image


def evaluate(
    model: EvaluatedModel,
    data: Shards | ImageDataset,
    benchmark: str = FOLDER,
    *,
    dist: DistContext,
    only_present: bool = False,
    skip_unmatched: bool = False,
    output: Path | None = None,
    **options: Any,
) -> Evaluation:
    """Measure the accuracy and calibration of a model; all ranks return the same result.

    Args:
        model: the model.
        data: folder of the release of the benchmark; for "folder", as for `open_eval_loader`.
        benchmark: key of `BENCHMARKS`.
        dist: the ranks that share the work.
        only_present: allow only predictions of classes that have an image. Published results allow
            all classes.
        skip_unmatched: leave out images of classes that the model does not have.
        output: folder for which `check_output` is called before any image is read.
        **options: batch_size, workers and progress of `ModelPass`.

    Raises:
        ConfigError: invalid arguments or data, logits that are not finite, or no readable image.
        OutputError: the output folder cannot be created.
    """
    opened = open_benchmark(benchmark, data, model, only_present, skip_unmatched)
    images = ModelPass(model, opened.data, dist, title=benchmark, **options)
    settings = {
        "preprocess": model.preprocess,
        "dtype": str(model.dtype),
        "only_present": only_present,
    }
    if output:
        dist.run_on_main(
            lambda: check_output(output, model.name, benchmark, images.facts, settings)
        )
    rank_records: list[ImageResult] = []
    for batch, logits in images:
        rank_records += _make_records(logits, batch, opened.competing, model.multi_label)
    records, skipped = images.gather(rank_records)
    # Computed on one rank, so that all ranks return identical numbers.
    metrics = dist.run_on_main(lambda: compute_metrics(records))
    return Evaluation(
        model=model.name,
        benchmark=benchmark,
        facts=images.facts,
        settings=settings,
        skipped=skipped,
        classes=images.classes,
        **metrics._asdict(),
        # The published value is not comparable if fewer classes compete.
        published=None if only_present else find_published(model, benchmark),
        records=records,
    )


def _make_records(
    logits: Tensor, batch: Batch, competing: tuple[int, ...] | None, multi_label: bool
) -> Iterator[ImageResult]:
    """Yield the records of a batch; classes with equal logits are sorted by index."""
    indices = torch.arange(logits.shape[1]) if competing is None else torch.tensor(competing)
    logits = logits[:, indices]  # (n, C), so that the softmax is over the competing classes
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :TOP_CLASSES]
    chances = logits.double().sigmoid() if multi_label else logits.double().softmax(dim=1)
    probabilities = chances.amax(dim=1).tolist()
    predictions = zip(batch.ids, batch.classes, indices[order].tolist(), probabilities)
    for name, image_labels, top, probability in predictions:
        if not image_labels:
            raise ConfigError(
                f"{name} has no class; give images with at least one class each, or use the "
                f"benchmark {MULTILABEL}"
            )
        yield ImageResult(name, image_labels, tuple(top), probability)
