"""Multi-label metrics in percent, with 95% intervals.

CP and CR are the means over classes of precision and recall, and CF1 is their harmonic mean; OP,
OR and OF1 are precision, recall and F1 of all predictions together (Wang et al. 2016, arXiv
1604.04573, section 4; so in later work on MS-COCO). Precision is 0 without a prediction. Classes
without positives have no recall and no average precision: they are left out of the means over
classes, and their number is stated. Their predictions count in OP.

Axes: N images, C classes, B resamplings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swag_models.recipe.average_precision import weighted_precisions
from swag_models.recipe.evaluation.accuracy.metrics import NUM_RESAMPLINGS
from swag_models.recipe.evaluation.multilabel.results import MEASURES, ClassResult
from swag_models.recipe.evaluation.results import Estimate

MAX_WEIGHTS = 1 << 23  # of resamplings in memory at a time


def compute_measures(
    scores: NDArray[Any], predicted: NDArray[np.bool_], targets: NDArray[np.bool_]
) -> tuple[dict[str, Estimate], tuple[ClassResult, ...]]:
    """Compute all measures of at least one image, of which at least one has a class.

    The intervals of precision, recall and F1 end at the 2.5th and 97.5th percentiles of resamplings
    of the images. Average precision is too high on few positives, and resamplings, which repeat
    some positives, increase it once more. The interval of mAP is therefore that of the basic
    bootstrap (Davison and Hinkley 1997, section 5.2.1), which mirrors these percentiles at the
    value, extended to contain the value.

    Args:
        scores: (N, C), finite; only their order within a class matters.
        predicted: (N, C), whether each class is predicted for each image.
        targets: (N, C), whether each image has each class.

    Returns:
        The estimate of each of MEASURES, and the results of each class.
    """
    count = len(scores)
    values = _measure(scores, predicted, targets, np.ones((1, count)))
    generator = np.random.default_rng(0)  # fixed seed, for reproducible intervals
    size = max(1, min(NUM_RESAMPLINGS, MAX_WEIGHTS // count))
    resampled: dict[str, list[NDArray[Any]]] = {name: [] for name in MEASURES}
    for start in range(0, NUM_RESAMPLINGS, size):
        weights = np.stack(
            [
                np.bincount(generator.integers(0, count, count), minlength=count)
                for _ in range(min(size, NUM_RESAMPLINGS - start))
            ]
        )
        part = _measure(scores, predicted, targets, weights.astype(np.float64))
        for name in MEASURES:
            resampled[name].append(part[name])
    estimates = {}
    for name in MEASURES:
        # a resampling without any class has no measures
        low, high = np.nanpercentile(np.concatenate(resampled[name]), (2.5, 97.5))
        value = values[name][0]
        if name == "mAP":
            low, high = max(0, min(value, 2 * value - high)), min(100, max(value, 2 * value - low))
        estimates[name] = Estimate(float(value), float(low), float(high))
    return estimates, tuple(_list_classes(values))


def _measure(
    scores: NDArray[Any],
    predicted: NDArray[np.bool_],
    targets: NDArray[np.bool_],
    weights: NDArray[Any],
) -> dict[str, NDArray[Any]]:
    """Measures (B,) and numbers of each class (B, C) for sets of weights of the images (B, N)."""
    positives, predictions = weights @ targets, weights @ predicted
    hits = weights @ (targets & predicted)
    present = positives > 0
    counted = np.where(present, 1.0, np.nan)
    precision, recall = _divide(hits, predictions) * counted, _divide(hits, positives) * counted
    average = np.full_like(positives, np.nan)
    for index in np.flatnonzero(targets.any(axis=0)):
        average[:, index] = weighted_precisions(scores[:, index], targets[:, index], weights)
    is_empty = ~present.any(axis=1)  # also without a class that has positives
    means = {
        name: np.where(
            is_empty, np.nan, np.nansum(part, axis=1) / np.maximum(present.sum(axis=1), 1)
        )
        for name, part in {"mAP": average, "CP": precision, "CR": recall}.items()
    }
    total_hits, total = hits.sum(axis=1), positives.sum(axis=1)
    means["OP"] = np.where(is_empty, np.nan, _divide(total_hits, predictions.sum(axis=1)))
    means["OR"] = np.where(is_empty, np.nan, _divide(total_hits, total))
    for kind in "CO":
        p, r = means[f"{kind}P"], means[f"{kind}R"]
        means[f"{kind}F1"] = _divide(2 * p * r, p + r)
    percent = {name: 100 * means[name] for name in MEASURES}
    per_class = {"AP": average, "precision": precision, "recall": recall}
    return {
        **percent,
        "positives": positives,
        "predictions": predictions,
        **{name: 100 * values for name, values in per_class.items()},
    }


def _divide(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[Any]:
    """Divide, with 0 for a division by 0, and NaN where both are NaN."""
    zero = denominator == 0
    return np.where(zero, 0.0, numerator / np.where(zero, 1, denominator))


def _list_classes(values: dict[str, NDArray[Any]]) -> Sequence[ClassResult]:
    names = ("positives", "predictions", "AP", "precision", "recall")
    columns = [values[name][0].tolist() for name in names]
    return [
        ClassResult(
            int(positives),
            int(predictions),
            *(None if np.isnan(value) else value for value in measures),
        )
        for positives, predictions, *measures in zip(*columns, strict=True)
    ]
