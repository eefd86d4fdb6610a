"""Multi-label metrics equal scikit-learn's; intervals contain the value of the whole data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sklearn

from swag_models.recipe.evaluation.multilabel.metrics import compute_measures
from swag_models.recipe.evaluation.multilabel.results import MEASURES

TOLERANCE = 1e-9


def make(
    count: int, classes: int, levels: int | None = None, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Targets of decreasing frequency, and scores that are higher for positives."""
    generator = np.random.default_rng(seed)
    targets = generator.random((count, classes)) < 0.6 / np.arange(1, classes + 1)
    scores = generator.normal(size=(count, classes)) + 1.5 * targets
    if levels:
        scores = np.floor(scores * levels) / levels
    return scores, scores > 0.8, targets


@pytest.mark.parametrize(
    ("count", "classes", "levels"),
    [(1, 3, None), (2, 1, None), (5, 8, 1), (200, 6, None), (200, 6, 2), (300, 80, None)],
)
def test_they_equal_scikit_learns(count: int, classes: int, levels: int | None) -> None:
    scores, predicted, targets = make(count, classes, levels, seed=count)
    targets[0, 0] = True
    measures, class_results = compute_measures(scores, predicted, targets)
    values = {name: estimate.value / 100 for name, estimate in measures.items()}
    present = np.flatnonzero(targets.any(axis=0))
    options = {"labels": present, "average": "macro", "zero_division": 0}
    # with an empty class: scikit-learn takes a single column for two classes, yes and no
    true, guessed = (np.pad(part, ((0, 0), (0, 1))) for part in (targets, predicted))
    precision = sklearn.precision_score(true, guessed, **options)
    recall = sklearn.recall_score(true, guessed, **options)
    micro = {"average": "micro", "zero_division": 0}
    expected = {
        "mAP": np.mean(
            [sklearn.average_precision_score(targets[:, i], scores[:, i]) for i in present]
        ),
        "CP": precision,
        "CR": recall,
        "CF1": 2 * precision * recall / (precision + recall) if precision + recall else 0,
        "OP": sklearn.precision_score(true, guessed, **micro),
        "OR": sklearn.recall_score(true, guessed, **micro),
        "OF1": sklearn.f1_score(true, guessed, **micro),
    }
    assert values.keys() == expected.keys() == set(MEASURES)
    for name in MEASURES:
        assert abs(values[name] - expected[name]) < TOLERANCE, name
    for index, result in enumerate(class_results):
        assert result.positives == targets[:, index].sum()
        assert result.predictions == predicted[:, index].sum()
        assert (result.average_precision is None) == (index not in present)
    for name in MEASURES:
        assert 0 <= measures[name].low <= measures[name].high <= 100 + 1e-9


def test_constant_scores_and_no_predictions() -> None:
    targets = np.array([[True, False], [False, False], [True, False]])
    measures, (first, second) = compute_measures(
        np.zeros((3, 2)), np.zeros((3, 2), np.bool_), targets
    )
    assert measures["mAP"].value == pytest.approx(200 / 3, abs=1e-9)
    assert [measures[name].value for name in MEASURES[1:]] == [0] * 6
    assert (first.positives, first.precision, first.recall) == (2, 0, 0)
    assert second == (0, 0, None, None, None)


def test_predictions_of_classes_without_positives_count_in_the_overall_precision() -> None:
    targets = np.array([[True, False], [True, False]])
    predicted = np.array([[True, True], [True, True]])
    measures, _ = compute_measures(predicted.astype(float), predicted, targets)
    assert (measures["CP"].value, measures["OP"].value) == (100, 50)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "share", "gap"), [(400, 0.08, 0.7), (200, 0.3, 1.5)])
def test_intervals_contain_the_value_of_many_images_about_as_often_as_they_say(
    count: int, share: float, gap: float
) -> None:
    """Percentiles of resamplings of mAP would do so in 28% of the first case."""

    def draw(count: int, seed: int) -> tuple[Any, ...]:
        generator = np.random.default_rng(seed)
        targets = generator.random((count, 10)) < share
        scores = generator.normal(size=(count, 10)) + gap * targets
        return scores, scores > 1, targets

    truth, _ = compute_measures(*draw(20_000, 0))
    hits = dict.fromkeys(MEASURES, 0)
    for seed in range(1, 61):
        part, _ = compute_measures(*draw(count, seed))
        for name in MEASURES:
            hits[name] += part[name].low <= truth[name].value <= part[name].high
    assert all(rate >= 49 for rate in hits.values()), hits  # of 60; 57 are expected
