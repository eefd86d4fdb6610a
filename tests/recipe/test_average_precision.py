"""Average precision equals scikit-learn's, also with weights, ties and few images."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from swag_models.recipe.average_precision import (
    average_precisions,
    make_indicators,
    weighted_precisions,
)

TOLERANCE = 1e-9


@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("levels", [1, 2, 5, None])
def test_it_equals_scikit_learns(count: int, levels: int | None) -> None:
    """With `levels` different scores; 1 makes all of them equal."""
    generator = np.random.default_rng(count)
    for share in (0.01, 0.3, 0.9, 1.0):
        scores = generator.normal(size=(count, 7)) * 100
        if levels:
            scores = generator.integers(0, levels, (count, 7)) / 7.0
        targets = generator.random((count, 7)) < share
        ours = average_precisions(scores, targets)
        for column, positives, value in zip(scores.T, targets.T, ours):
            if positives.any():
                assert abs(value - average_precision_score(positives, column)) < TOLERANCE
            else:
                assert np.isnan(value)


def test_it_equals_scikit_learns_with_weights() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 30, 200) / 30
    positives = generator.random(200) < 0.2
    weights = generator.multinomial(200, np.full(200, 1 / 200), 50).astype(float)
    weights[0, positives] = 0
    ours = weighted_precisions(scores, positives, weights)
    assert np.isnan(ours[0])
    theirs = [average_precision_score(positives, scores, sample_weight=row) for row in weights[1:]]
    assert np.abs(ours[1:] - theirs).max() < TOLERANCE


@pytest.mark.slow  # importing torchmetrics takes seconds
def test_it_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    generator = np.random.default_rng(1)
    scores, targets = generator.random((300, 5)), generator.random((300, 5)) < 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = functional.multilabel_average_precision(
            torch.tensor(scores), torch.tensor(targets).long(), 5, average=None
        )
    # which computes in float32
    np.testing.assert_allclose(average_precisions(scores, targets), theirs.numpy(), atol=1e-6)


def test_numbers_of_classes_become_indicators() -> None:
    assert make_indicators([(2, 0), (), (1, 1)], 3).tolist() == [
        [True, False, True],
        [False, False, False],
        [False, True, False],
    ]
