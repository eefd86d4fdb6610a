"""The numbers are those of scikit-learn, torchmetrics and scipy."""

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

CLASSES = 12


def draw(count: int, seed: int = 0, sharpness: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (n, K) and labels (n,), which they tell something of, in classes of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) ** 2 * CLASSES).long()
    logits = torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += 1
    return (sharpness * logits).softmax(dim=1), labels


def make_records(probabilities: torch.Tensor, labels: torch.Tensor) -> list[ImageResult]:
    top = probabilities.argsort(dim=1, descending=True, stable=True)[:, :5].tolist()
    best = probabilities.amax(dim=1).tolist()
    return [
        ImageResult(str(i), (label,), tuple(top[i]), best[i])
        for i, label in enumerate(labels.tolist())
    ]


@pytest.mark.parametrize(("count", "seed"), [(1000, 0), (37, 1), (1, 2)])
def test_accuracies_and_calibration_are_those_of_the_peers(count: int, seed: int) -> None:
    probabilities, labels = draw(count, seed)
    found = compute_metrics(make_records(probabilities, labels))
    predicted, every = probabilities.argmax(dim=1), list(range(CLASSES))
    assert found.top1.value == pytest.approx(100 * accuracy_score(labels, predicted))
    assert found.top5.value == pytest.approx(
        100 * top_k_accuracy_score(labels, probabilities, k=5, labels=every)
    )
    own = set(labels.tolist())
    if set(predicted.tolist()) <= own:  # else it warns
        assert found.mean_per_class.value == pytest.approx(
            100 * balanced_accuracy_score(labels, predicted)
        )
    per_class = MulticlassAccuracy(CLASSES, average=None)(probabilities, labels)
    assert found.mean_per_class.value == pytest.approx(
        100 * per_class[sorted(own)].mean().item(), rel=1e-5
    )
    error = MulticlassCalibrationError(CLASSES, n_bins=15, norm="l1")(probabilities, labels)
    assert found.ece.value == pytest.approx(100 * error.item(), rel=1e-5)
    assert MulticlassAccuracy(CLASSES, top_k=5, average="micro")(
        probabilities, labels
    ) * 100 == pytest.approx(found.top5.value)


def test_bins_add_up_to_the_error() -> None:
    probabilities, labels = draw(500)
    found = compute_metrics(make_records(probabilities, labels), num_bins=10)
    assert sum(each.images for each in found.bins) == 500
    assert [each.low for each in found.bins] == pytest.approx(range(0, 100, 10))
    assert sum(
        each.images * abs(each.accuracy - each.probability) for each in found.bins
    ) / 500 == pytest.approx(found.ece.value)
    best, hits = probabilities.amax(dim=1), probabilities.argmax(dim=1) == labels
    for each in found.bins:
        inside = (best * 100 > each.low) & (best * 100 <= each.high)
        assert each.images == inside.sum()
        if each.images:
            assert each.accuracy == pytest.approx(100 * hits[inside].double().mean().item())
            assert each.probability == pytest.approx(100 * best[inside].mean().item())


def test_a_bin_has_its_upper_end() -> None:
    records = [
        ImageResult(str(i), (0,), (0,), probability)
        for i, probability in enumerate((0.25, 0.5, 0.75, 1.0))
    ]
    assert [each.images for each in compute_metrics(records, num_bins=4).bins] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 50), (331, 960), (49_999, 50_000)]
)
def test_shares_have_wilsons_interval(hits: int, count: int) -> None:
    value, low, high = estimate_share(hits, count)
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert (value, low, high) == pytest.approx(
        (100 * hits / count, 100 * expected.low, 100 * expected.high), abs=1e-9
    )
    assert 0 <= low <= value <= high <= 100


def test_a_mean_per_class_has_the_interval_that_it_varies_in() -> None:
    """Of many draws of the same classes, about 95% of intervals have the true mean."""
    draws, sizes, rates = (
        np.random.default_rng(0),
        np.array([5, 20, 80, 320]),
        np.array([0.5, 0.3, 0.6, 0.9]),
    )
    classes = np.repeat(np.arange(4), sizes)
    inside = 0
    for _ in range(400):
        _, low, high = estimate_mean(classes, draws.random(len(classes)) < rates[classes])
        inside += low <= 100 * rates.mean() <= high
    assert 0.88 < inside / 400 < 0.98


def test_a_class_of_one_picture_has_the_spread_of_all() -> None:
    classes, hits = (
        np.arange(100),
        np.arange(100) < 30,
    )  # all of one picture: as for a share of them
    value, low, high = estimate_mean(classes, hits)
    half = 196 * np.sqrt(0.3 * 0.7 / 100)
    assert (value, low, high) == pytest.approx((30, 30 - half, 30 + half), abs=0.01)


def test_the_interval_of_the_error_is_the_same_each_time_and_narrows() -> None:
    ends = []
    for count in (200, 20_000):
        probabilities, labels = draw(count, sharpness=4)
        best, hits = (
            probabilities.amax(dim=1).numpy(),
            (probabilities.argmax(dim=1) == labels).numpy(),
        )
        first = estimate_ece(best, hits)
        assert first == estimate_ece(best, hits)
        ends.append(first)
    (_, low, high), (value, lower, higher) = ends
    assert lower < value < higher
    assert 5 < (high - low) / (higher - lower) < 20


def test_any_of_several_labels_is_a_hit_and_the_first_is_the_class() -> None:
    records = [
        ImageResult("a", (3, 1), (1, 0, 2, 4, 5), 0.9),  # a hit, counted for class 3
        ImageResult("b", (3,), (0, 1, 2, 4, 3), 0.4),  # the fifth
        ImageResult("c", (7, 8), (0, 1, 2, 4, 5), 0.4),
    ]
    found = compute_metrics(records)
    assert (found.top1.value, found.top5.value) == pytest.approx((100 / 3, 200 / 3))
    assert found.mean_per_class.value == pytest.approx((50 + 0) / 2)
