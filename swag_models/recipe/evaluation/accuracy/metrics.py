"""Records -> accuracies and calibration, each with its 95% interval, in percent.

Axes: n records, C classes that have records, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from swag_models.recipe.evaluation.results import Bin, Estimate, ImageResult

BINS = 15  # of Guo et al., arXiv 1706.04599
RESAMPLINGS = 200
Z = NormalDist().inv_cdf(0.975)


class Measures(NamedTuple):
    """The numbers of an `Evaluation`."""

    top1: Estimate
    top5: Estimate
    mean_per_class: Estimate
    ece: Estimate
    bins: tuple[Bin, ...]


def compute_metrics(records: Sequence[ImageResult], num_bins: int = BINS) -> Measures:
    """All of them, of one record at least.

    A record is a hit if any of its labels is among the first, or the first five. For the mean per class it counts under its
    first label. The calibration error is the sum over equal bins of share x |accuracy - mean probability|.
    """
    hits = np.array([hit_top(record, 1) for record in records])
    probabilities = np.array([record.probability for record in records])
    return Measures(
        estimate_share(int(hits.sum()), len(records)),
        estimate_share(sum(hit_top(record, 5) for record in records), len(records)),
        estimate_mean(np.array([record.labels[0] for record in records]), hits),
        estimate_ece(probabilities, hits, num_bins),
        tuple(make_bins(probabilities, hits, num_bins)),
    )


def hit_top(record: ImageResult, count: int) -> bool:
    """Whether one of the first classes is true."""
    return not set(record.top[:count]).isdisjoint(record.labels)


def estimate_share(hits: int, count: int) -> Estimate:
    """So many of so many, and Wilson's interval (1927)."""
    share, shrink = hits / count, 1 + Z**2 / count
    middle = (share + Z**2 / (2 * count)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Estimate(100 * share, 100 * low if hits else 0.0, 100 * high if hits < count else 100.0)


def estimate_mean(classes: NDArray[Any], hits: NDArray[Any]) -> Estimate:
    """The mean over classes (n,) of their shares of hits (n,), with a normal interval from the classes' binomial variances.

    A class with one record, which has no variance of its own, is given that of all records.
    """
    _, places = np.unique(classes, return_inverse=True)
    counts = np.bincount(places)  # (C,)
    rates = np.bincount(places, hits) / counts
    spread = np.where(counts > 1, rates, hits.mean())
    half = Z * math.sqrt((spread * (1 - spread) / counts).sum()) / len(counts)
    mean = rates.mean()
    return Estimate(
        100 * float(mean), 100 * float(max(0, mean - half)), 100 * float(min(1, mean + half))
    )


def estimate_ece(probabilities: NDArray[Any], hits: NDArray[Any], num_bins: int = BINS) -> Estimate:
    """The expected calibration error of best classes with these probabilities (n,), and percentiles of resamplings.

    Chance parts accuracy from probability in small bins, and in resamplings once more: with few records all of the interval
    may lie above the value.
    """
    places, gaps = _find_bins(probabilities, num_bins), hits - probabilities

    def measure(chosen: NDArray[Any] | slice) -> float:
        return float(
            100 * np.abs(np.bincount(places[chosen], gaps[chosen], num_bins)).sum() / len(gaps)
        )

    draw = np.random.default_rng(0)
    resampled = [measure(draw.integers(0, len(gaps), len(gaps))) for _ in range(RESAMPLINGS)]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(measure(slice(None)), float(low), float(high))


def make_bins(probabilities: NDArray[Any], hits: NDArray[Any], num_bins: int = BINS) -> list[Bin]:
    """What a reliability diagram shows; a bin without records has zeros."""
    places = _find_bins(probabilities, num_bins)
    counts = np.bincount(places, minlength=num_bins)  # (B,)
    sums = (
        np.bincount(places, values, num_bins) / np.maximum(counts, 1)
        for values in (probabilities, hits)
    )
    edges = np.linspace(0, 100, num_bins + 1)
    rows = zip(edges[:-1], edges[1:], counts, *(100 * each for each in sums))
    return [
        Bin(float(low), float(high), int(count), *map(float, rest))
        for low, high, count, *rest in rows
    ]


def _find_bins(probabilities: NDArray[Any], num_bins: int) -> NDArray[Any]:
    """The bin (low, high] of each."""
    edges = np.linspace(0, 1, num_bins + 1)
    return np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, num_bins - 1)
