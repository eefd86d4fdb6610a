"""Evaluation of a model on images with any number of labels each.

Axes: n images of a batch, N all images, C classes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swag_models.errors import ConfigError, check_types
from swag_models.inference.thresholds import Thresholds, read_thresholds
from swag_models.recipe.average_precision import make_indicators
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards
from swag_models.recipe.evaluation.accuracy.benchmarks import MULTILABEL, open_benchmark
from swag_models.recipe.evaluation.model_pass import ModelPass
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.evaluation.multilabel.metrics import compute_measures
from swag_models.recipe.evaluation.multilabel.results import LabelledImage, MultilabelEvaluation
from swag_models.recipe.evaluation.output_files import check_output
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.validation import MAX_SCORES


def evaluate_multilabel(
    model: EvaluatedModel,
    data: Shards | ImageDataset,
    *,
    dist: DistContext,
    threshold: Thresholds = 0.5,
    only_present: bool = False,
    skip_unmatched: bool = False,
    output: Path | None = None,
    **options: Any,
) -> MultilabelEvaluation:
    """Measure average precision, and precision and recall at a threshold.

    The probability of a class is the sigmoid of its logit for a multi-label model, and otherwise
    the softmax. All ranks return the same result.

    Args:
        model: the model.
        data: as for `open_eval_loader`; images without a label are allowed.
        dist: the ranks that share the work.
        threshold: smallest probability of a predicted class, as for `Classifier`.
        only_present: not possible; classes without positives are left out of the means anyway.
        skip_unmatched: leave out images of classes that the model does not have.
        output: folder for which `check_output` is called before any image is read.
        **options: batch_size, workers and progress of `ModelPass`.

    Raises:
        ConfigError: invalid arguments or data, logits that are not finite, no readable image, or
            no image with a label.
        OutputError: the output folder cannot be created.
    """
    check_types(bool, only_present=only_present)
    if only_present:
        raise ConfigError(
            f"only_present is not possible with the benchmark {MULTILABEL}, which leaves classes "
            "without images out of its means; leave it out"
        )
    opened = open_benchmark(MULTILABEL, data, model, skip_unmatched=skip_unmatched)
    images = ModelPass(model, opened.data, dist, **options)
    limits = read_thresholds(threshold, images.classes)
    if (images.samples or 0) * len(images.classes) > MAX_SCORES:
        raise ConfigError(
            f"too many scores, of {images.samples:,} images for each of {len(images.classes):,} "
            f"classes; allowed: {MAX_SCORES:,} in all; give fewer images"
        )
    settings = {
        "preprocess": model.preprocess,
        "dtype": str(model.dtype),
        "probability": "sigmoid" if model.multi_label else "softmax",
        # JSON of one number is easier to read than that of one for each class
        "threshold": limits[0] if len(set(limits)) == 1 else list(limits),
    }
    if output:
        dist.run_on_main(
            lambda: check_output(output, model.name, MULTILABEL, images.facts, settings)
        )
    thresholds = torch.tensor(limits, dtype=torch.float64)
    records = list[tuple[LabelledImage, bytes]]()
    for batch, logits in images:
        records += _record(batch, logits, thresholds, multi_label=model.multi_label)
    gathered, skipped = images.gather(records)
    rows = tuple(record for record, _ in gathered)
    num_classes = len(images.classes)
    targets = make_indicators([record.labels for record in rows], num_classes)
    if not targets.any():
        raise ConfigError(
            f"no image of {images.facts['name']} has a label; nothing can be measured"
        )
    predicted = make_indicators([record.predicted for record in rows], num_classes)
    # Computed on one rank, so that all ranks return identical numbers.
    measures, class_results = dist.run_on_main(
        lambda: compute_measures(
            np.stack([np.frombuffer(scores) for _, scores in gathered]), predicted, targets
        )
    )
    return MultilabelEvaluation(
        model=model.name,
        benchmark=MULTILABEL,
        facts=images.facts,
        settings=settings,
        skipped=skipped,
        classes=images.classes,
        measures=measures,
        class_results=class_results,
        records=rows,
    )


def _record(
    batch: Batch, logits: Tensor, thresholds: Tensor, *, multi_label: bool
) -> Iterator[tuple[LabelledImage, bytes]]:
    """Yield the record of each image of a batch, and its scores (C) as float64.

    Args:
        batch: the images.
        logits: of them (n, C).
        thresholds: smallest probability of a predicted class (C).
        multi_label: whether probabilities are sigmoids.
    """
    # Logits and logarithms do not round to 0 and 1 as probabilities do.
    scores = logits.double() if multi_label else logits.double().log_softmax(dim=1)
    probabilities = scores.sigmoid() if multi_label else scores.exp()  # (n, C)
    for name, labels, row, chances in zip(batch.ids, batch.classes, scores, probabilities):
        above = torch.nonzero(chances >= thresholds).flatten()
        above = above[chances[above].argsort(descending=True, stable=True)]
        values = tuple(chances[above].tolist())
        record = LabelledImage(name, tuple(sorted(set(labels))), tuple(above.tolist()), values)
        yield record, row.numpy().tobytes()
