"""Average precision of rankings, the area under a curve of precision and recall.

It is the sum over thresholds of precision times the increase of recall, without interpolation, as
scikit-learn and torchmetrics define it. torchmetrics computes it in float32, which differs by 1e-7.

Axes: N images, C classes, B sets of weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def make_indicators(labels: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.bool_]:
    """Whether each image has each class (N, C), from the class numbers of each image."""
    targets = np.zeros((len(labels), num_classes), np.bool_)
    for row, classes in zip(targets, labels, strict=True):
        row[list(classes)] = True
    return targets


def average_precisions(scores: NDArray[Any], targets: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Average precision of each class (C,), from 0 to 1; NaN for a class without positives.

    Args:
        scores: (N, C), finite; higher for images that are more likely to have the class. Only
            their order within a class matters.
        targets: (N, C), whether each image has each class.
    """
    ones = np.ones((1, len(scores)))
    values = [
        weighted_precisions(column, positives, ones)[0]
        for column, positives in zip(scores.T, targets.T, strict=True)
    ]
    return np.array(values, np.float64)


def weighted_precisions(
    scores: NDArray[Any], positives: NDArray[np.bool_], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Average precision of one class for several sets of weights of the images (B,).

    Args:
        scores: of each image (N,), finite.
        positives: whether each image has the class (N,).
        weights: of each image (B, N), 0 or more: how often a resampling contains it.

    Returns:
        (B,); NaN where the weights of all positives are 0.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positives, weights = scores[order], positives[order], weights[:, order]
    # Images with equal scores are ranked together: the precision at each of them is that after the
    # last of them.
    is_last = np.append(scores[1:] != scores[:-1], True)
    last = np.flatnonzero(is_last)[np.cumsum(is_last) - is_last][positives]  # of each positive
    hits = np.cumsum(weights * positives, axis=1)[:, last]
    counts = np.cumsum(weights, axis=1)[:, last]
    precisions = np.divide(hits, counts, out=np.zeros_like(hits), where=counts > 0)
    weights = weights[:, positives]
    totals = weights.sum(axis=1)
    sums = (weights * precisions).sum(axis=1)
    return np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)
