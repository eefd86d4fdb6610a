"""Metrics equal those of scikit-learn, torchmetrics and scipy.

Axes: n records, K classes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from swag_models.recipe.evaluation.accuracy.metrics import (
    compute_metrics,
    estimate_ece,
    estimate_mean,
    estimate_share,
)
from swag_models.recipe.evaluation.results import ImageResult

NUM_CLASSES = 12


def draw_predictions(
    count: int, seed: int = 0, sharpness: float = 1.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (n, K) and correlated labels (n,), in classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) ** 2 * NUM_CLASSES).long()
    logits = torch.randn(count, NUM_CLASSES, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += 1
    return (sharpness * logits).softmax(dim=1), labels


def make_records(probabilities: torch.Tensor, labels: torch.Tensor) -> list[ImageResult]:
    top = probabilities.argsort(dim=1, descending=True, stable=True)[:, :5].tolist()
    highest = probabilities.amax(dim=1).tolist()
    return [
        ImageResult(str(i), (label,), tuple(top[i]), highest[i])
        for i, label in enumerate(labels.tolist())
    ]


@pytest.mark.parametrize(("count", "seed"), [(1000, 0), (37, 1), (1, 2)])
def test_metrics_equal_those_of_other_libraries(count: int, seed: int) -> None:
    probabilities, labels = draw_predictions(count, seed)
    metrics = compute_metrics(make_records(probabilities, labels))
    predicted, classes = probabilities.argmax(dim=1), list(range(NUM_CLASSES))
    top1 = accuracy_score(labels, predicted)
    assert metrics.top1.value == pytest.approx(100 * top1)
    top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=classes)
    assert metrics.top5.value == pytest.approx(100 * top5)
    torch_top5 = MulticlassAccuracy(NUM_CLASSES, top_k=5, average="micro")(probabilities, labels)
    assert torch_top5 * 100 == pytest.approx(metrics.top5.value)
    present = set(labels.tolist())
    if set(predicted.tolist()) <= present:  # scikit-learn warns about other predictions
        balanced = balanced_accuracy_score(labels, predicted)
        assert metrics.mean_per_class.value == pytest.approx(100 * balanced)
    per_class = MulticlassAccuracy(NUM_CLASSES, average=None)(probabilities, labels)
    mean = per_class[sorted(present)].mean().item()
    assert metrics.mean_per_class.value == pytest.approx(100 * mean, rel=1e-5)
    error = MulticlassCalibrationError(NUM_CLASSES, n_bins=15, norm="l1")(probabilities, labels)
    assert metrics.ece.value == pytest.approx(100 * error.item(), rel=1e-5)


def test_bins_sum_to_the_calibration_error() -> None:
    probabilities, labels = draw_predictions(500)
    metrics = compute_metrics(make_records(probabilities, labels), num_bins=10)
    assert sum(bin.images for bin in metrics.bins) == 500
    assert [bin.low for bin in metrics.bins] == pytest.approx(range(0, 100, 10))
    gaps = [bin.images * abs(bin.accuracy - bin.probability) for bin in metrics.bins]
    assert sum(gaps) / 500 == pytest.approx(metrics.ece.value)
    highest, hits = probabilities.amax(dim=1), probabilities.argmax(dim=1) == labels
    for bin in metrics.bins:
        inside = (highest * 100 > bin.low) & (highest * 100 <= bin.high)
        assert bin.images == inside.sum()
        if bin.images:
            assert bin.accuracy == pytest.approx(100 * hits[inside].double().mean().item())
            assert bin.probability == pytest.approx(100 * highest[inside].mean().item())


def test_bins_include_their_upper_end() -> None:
    records = [
        ImageResult(str(i), (0,), (0,), probability)
        for i, probability in enumerate((0.25, 0.5, 0.75, 1.0))
    ]
    assert [bin.images for bin in compute_metrics(records, num_bins=4).bins] == [1, 1, 1, 1]
    records.append(ImageResult("zero", (0,), (0,), 0.0))
    records.append(ImageResult("rounded", (0,), (0,), 1 + 1e-7))  # as a softmax in float32
    assert [bin.images for bin in compute_metrics(records, num_bins=4).bins] == [2, 1, 1, 2]


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 50), (331, 960), (49_999, 50_000)]
)
def test_shares_have_the_wilson_interval(hits: int, count: int) -> None:
    value, low, high = estimate_share(hits, count)
    wilson = binomtest(hits, count).proportion_ci(method="wilson")
    expected = (100 * hits / count, 100 * wilson.low, 100 * wilson.high)
    assert (value, low, high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= low <= value <= high <= 100


def test_interval_of_the_mean_per_class_covers_the_true_mean() -> None:
    """For many draws from the same rates, about 95% of the intervals contain the true mean."""
    generator = np.random.default_rng(0)
    sizes, rates = np.array([5, 20, 80, 320]), np.array([0.5, 0.3, 0.6, 0.9])
    classes = np.repeat(np.arange(4), sizes)
    covered = 0
    for _ in range(400):
        hits = generator.random(len(classes)) < rates[classes]
        _, low, high = estimate_mean(classes, hits)
        covered += low <= 100 * rates.mean() <= high
    assert 0.88 < covered / 400 < 0.98


def test_class_of_one_image_has_the_variance_of_all() -> None:
    # All classes have one image, so the interval is that of the share of hits.
    classes, hits = np.arange(100), np.arange(100) < 30
    value, low, high = estimate_mean(classes, hits)
    half_width = 196 * np.sqrt(0.3 * 0.7 / 100)
    assert (value, low, high) == pytest.approx((30, 30 - half_width, 30 + half_width), abs=0.01)


def test_interval_of_the_calibration_error_is_reproducible_and_narrows() -> None:
    estimates = []
    for count in (200, 20_000):
        probabilities, labels = draw_predictions(count, sharpness=4)
        highest = probabilities.amax(dim=1).numpy()
        hits = (probabilities.argmax(dim=1) == labels).numpy()
        estimate = estimate_ece(highest, hits)
        assert estimate == estimate_ece(highest, hits)
        estimates.append(estimate)
    few, many = estimates
    assert many.low < many.value < many.high
    # 100 times as many records: the width falls to about a tenth.
    assert 5 < (few.high - few.low) / (many.high - many.low) < 20


def test_interval_of_the_calibration_error_has_the_percentiles_of_200_resamplings() -> None:
    probabilities, labels = draw_predictions(40)
    highest = probabilities.amax(dim=1).numpy()
    hits = (probabilities.argmax(dim=1) == labels).numpy()
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(200):
        rows = generator.integers(40, size=40)
        bins = np.ceil(highest[rows] * 15)
        gaps = [(hits[rows] - highest[rows])[bins == number].sum() for number in range(1, 16)]
        errors.append(100 * np.abs(gaps).sum() / 40)
    expected = np.quantile(errors, [0.025, 0.975])
    assert estimate_ece(highest, hits)[1:] == pytest.approx(tuple(expected))


def test_any_label_is_a_hit_and_the_first_is_the_class() -> None:
    records = [
        ImageResult("a", (3, 1), (1, 0, 2, 4, 5), 0.9),  # a hit, counted for class 3
        ImageResult("b", (3,), (0, 1, 2, 4, 3), 0.4),  # a hit among five
        ImageResult("c", (7, 8), (0, 1, 2, 4, 5), 0.4),
    ]
    metrics = compute_metrics(records)
    assert (metrics.top1.value, metrics.top5.value) == pytest.approx((100 / 3, 200 / 3))
    assert metrics.mean_per_class.value == pytest.approx((50 + 0) / 2)
