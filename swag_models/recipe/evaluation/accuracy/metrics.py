"""Accuracy and calibration from the records of images, in percent with 95% intervals.

Axes: n records, C classes that have records, B bins.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from swag_models.recipe.evaluation.results import Bin, Estimate, ImageResult

NUM_BINS = 15  # as in Guo et al. 2017, arXiv 1706.04599
NUM_RESAMPLINGS = 200  # of the bootstrap
Z = NormalDist().inv_cdf(0.975)  # half width of a 95% interval in standard deviations, 1.96


class AccuracyMetrics(NamedTuple):
    """The fields of an `Evaluation` that are computed from records."""

    top1: Estimate
    top5: Estimate
    mean_per_class: Estimate
    ece: Estimate
    bins: tuple[Bin, ...]


def compute_metrics(records: Sequence[ImageResult], num_bins: int = NUM_BINS) -> AccuracyMetrics:
    """Compute all metrics from at least one record.

    An image with several labels is a hit if any of them is predicted. In the mean per class, it
    counts towards its first label.
    """
    hits = np.array([hit_top(record, 1) for record in records])
    probabilities = np.array([record.probability for record in records])
    first_labels = np.array([record.labels[0] for record in records])
    return AccuracyMetrics(
        top1=estimate_share(int(hits.sum()), len(records)),
        top5=estimate_share(sum(hit_top(record, 5) for record in records), len(records)),
        mean_per_class=estimate_mean(first_labels, hits),
        ece=estimate_ece(probabilities, hits, num_bins),
        bins=tuple(make_bins(probabilities, hits, num_bins)),
    )


def hit_top(record: ImageResult, count: int) -> bool:
    """Return whether one of the `count` most probable classes is a label of the image."""
    return not set(record.top[:count]).isdisjoint(record.labels)


def estimate_share(hits: int, count: int) -> Estimate:
    """Estimate a share of hits with its Wilson score interval (Wilson 1927).

    Unlike a normal interval, it stays within 0 and 100% and has a positive width even if none or
    all are hits.
    """
    share, shrinkage = hits / count, 1 + Z**2 / count
    center = (share + Z**2 / (2 * count)) / shrinkage
    half_width = Z / shrinkage * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = max(0.0, center - half_width), min(1.0, center + half_width)
    # Set these ends exactly, because rounding could miss them.
    return Estimate(100 * share, 100 * low if hits else 0.0, 100 * high if hits < count else 100.0)


def estimate_mean(classes: NDArray[Any], hits: NDArray[Any]) -> Estimate:
    """Estimate the mean share of hits over classes, with an interval from binomial variances.

    Args:
        classes: class of each record (n,).
        hits: whether each record is a hit (n,).
    """
    _, class_indices = np.unique(classes, return_inverse=True)
    counts = np.bincount(class_indices)  # (C,)
    rates = np.bincount(class_indices, hits) / counts
    # The rate of a class with one record is 0 or 1, with variance 0: use the rate of all records.
    variance_rates = np.where(counts > 1, rates, hits.mean())
    variances = variance_rates * (1 - variance_rates) / counts
    half_width = Z * math.sqrt(variances.sum()) / len(counts)
    mean = float(rates.mean())
    return Estimate(
        100 * mean, 100 * max(0.0, mean - half_width), 100 * min(1.0, mean + half_width)
    )


def estimate_ece(
    probabilities: NDArray[Any], hits: NDArray[Any], num_bins: int = NUM_BINS
) -> Estimate:
    """Expected calibration error: size-weighted mean over bins of |accuracy - mean probability|.

    The interval ends at the 2.5th and 97.5th percentiles of bootstrap resamplings. Random
    deviations in small bins increase the error, and resampling adds further deviations, so with few
    records the whole interval can be above the value.

    Args:
        probabilities: probability of the first class of each record (n,).
        hits: whether each record is a hit (n,).
        num_bins: number of bins of equal width.
    """
    bins, gaps = _find_bins(probabilities, num_bins), hits - probabilities

    def measure(rows: NDArray[Any] | slice) -> float:
        # The sum of gaps in a bin is its size times (accuracy - mean probability).
        sums = np.bincount(bins[rows], gaps[rows], num_bins)
        return float(100 * np.abs(sums).sum() / len(gaps))

    generator = np.random.default_rng(0)  # fixed seed, for reproducible intervals
    resampled = [
        measure(generator.integers(0, len(gaps), len(gaps))) for _ in range(NUM_RESAMPLINGS)
    ]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Estimate(measure(slice(None)), float(low), float(high))


def make_bins(
    probabilities: NDArray[Any], hits: NDArray[Any], num_bins: int = NUM_BINS
) -> list[Bin]:
    """Make the bins of a reliability diagram; all values of an empty bin are 0.

    Args:
        probabilities: probability of the first class of each record (n,).
        hits: whether each record is a hit (n,).
        num_bins: number of bins of equal width.
    """
    bins = _find_bins(probabilities, num_bins)
    counts = np.bincount(bins, minlength=num_bins)  # (B,)
    nonzero_counts = np.maximum(counts, 1)
    mean_probabilities = 100 * (np.bincount(bins, probabilities, num_bins) / nonzero_counts)
    accuracies = 100 * (np.bincount(bins, hits, num_bins) / nonzero_counts)
    edges = np.linspace(0, 100, num_bins + 1)
    return [
        Bin(float(low), float(high), int(count), float(probability), float(accuracy))
        for low, high, count, probability, accuracy in zip(
            edges[:-1], edges[1:], counts, mean_probabilities, accuracies
        )
    ]


def _find_bins(probabilities: NDArray[Any], num_bins: int) -> NDArray[Any]:
    """Return the index of the bin (low, high] of each probability; 0 is in the first bin."""
    edges = np.linspace(0, 1, num_bins + 1)
    return np.clip(np.searchsorted(edges, probabilities, side="left") - 1, 0, num_bins - 1)
