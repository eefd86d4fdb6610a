"""Logistic regression ends where scikit-learn's does, on features of any size.

Axes: N pictures, D width, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.probes import logistic_regression
from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32), labels


def measure(
    vectors: Any, labels: Any, weight: Any, bias: Any, strength: float
) -> tuple[float, Any, Any]:
    """The objective, and its gradients, in float64."""
    weight, bias, vectors = (np.asarray(each, np.float64) for each in (weight, bias, vectors))
    logits = vectors @ weight.T + bias
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    errors = np.exp(logs)
    errors[np.arange(len(labels)), labels] -= 1
    objective = -strength * logs[np.arange(len(labels)), labels].sum() + 0.5 * (weight**2).sum()
    return objective, strength * errors.T @ vectors + weight, strength * errors.sum(0)


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_the_minimum_is_that_of_scikit_learn(strength: float, digits: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, labels = digits
    peer = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(
        vectors.astype(np.float64), labels
    )
    best = measure(vectors, labels, peer.coef_, peer.intercept_, strength)[0]
    ours = fit_logistic(vectors, labels, 10, strength, tolerance=1e-7)
    value, *gradients = measure(vectors, labels, ours.weight, ours.bias, strength)
    assert value == pytest.approx(best, rel=5e-7)
    assert ours.objective == pytest.approx(value, rel=5e-7)
    assert ours.converged
    assert max(np.abs(each).max() for each in gradients) < 5e-7 * strength * len(labels)
    np.testing.assert_allclose(ours.weight, peer.coef_, atol=1e-3 * np.abs(peer.coef_).max())
    assert (ours.predict(vectors) == peer.predict(vectors)).mean() > 0.999
    usual = LogisticRegression(C=strength, max_iter=10_000).fit(vectors, labels)
    loose = fit_logistic(vectors, labels, 10, strength)
    assert (
        loose.objective
        < 1.001 * measure(vectors, labels, usual.coef_, usual.intercept_, strength)[0]
    )
    assert loose.steps < 2 * usual.n_iter_[0] + 10


def test_two_classes_are_scikit_learns_with_half_the_penalty(digits: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    vectors, labels = digits[0], (digits[1] > 4).astype(np.int64)
    peer = LogisticRegression(C=2.0, tol=1e-8, max_iter=10_000).fit(
        vectors.astype(np.float64), labels
    )
    ours = fit_logistic(vectors, labels, 2, 1.0, tolerance=1e-6)
    np.testing.assert_allclose(
        ours.weight[1] - ours.weight[0], peer.coef_[0], atol=0.01 * np.abs(peer.coef_).max()
    )


def test_blocks_of_a_mapped_file_give_what_one_piece_does(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = digits
    whole = fit_logistic(vectors, labels, 10, 1.0, tolerance=1e-6)
    np.save(tmp_path / "vectors.npy", vectors)
    monkeypatch.setattr(logistic_regression, "BLOCK", 4 * 64 * 100)
    monkeypatch.setattr(logistic_regression, "MEMORY", 0)
    parts = fit_logistic(
        np.load(tmp_path / "vectors.npy", mmap_mode="r"), labels, 10, 1.0, tolerance=1e-6
    )
    assert parts.objective == pytest.approx(whole.objective, rel=1e-7)
    np.testing.assert_allclose(parts.weight, whole.weight, atol=2e-3)
    assert (parts.predict(vectors) == whole.predict(vectors)).all()


def test_a_start_saves_steps_and_changes_nothing_else(digits: Any) -> None:
    cold = fit_logistic(*digits, 10, 1.0, tolerance=1e-6)
    near = fit_logistic(*digits, 10, 0.8, tolerance=1e-6)
    warm = fit_logistic(*digits, 10, 1.0, start=near, tolerance=1e-6)
    assert warm.steps < cold.steps
    assert warm.objective == pytest.approx(cold.objective, rel=1e-6)
    assert fit_logistic(*digits, 10, 1.0, start=cold, tolerance=2e-6).steps == 0


def test_classes_that_can_be_separated_have_an_end() -> None:
    vectors = np.array([[-1.0], [0.0], [1.0]], np.float32)
    fitted = fit_logistic(vectors, np.array([0, 1, 2]), 3, 1e3)
    assert fitted.converged
    assert fitted.predict(vectors).tolist() == [0, 1, 2]


def test_a_class_without_a_picture_is_never_the_answer(digits: Any) -> None:
    vectors, labels = digits
    few = labels < 5
    lacking = fit_logistic(vectors[few], labels[few] * 2, 10, 1.0)
    assert np.isfinite(lacking.objective)
    assert set(lacking.predict(vectors)) <= {0, 2, 4, 6, 8}
    full = fit_logistic(vectors, labels, 10, 1.0, start=lacking)  # which may now have it
    assert (full.predict(vectors) == labels).mean() > 0.97


def test_an_early_end_is_told(digits: Any) -> None:
    short = fit_logistic(*digits, 10, 1.0, max_steps=3)
    assert (short.steps, short.converged) == (3, False)


def test_what_cannot_be_fitted_is_refused(digits: Any) -> None:
    vectors, labels = digits
    with pytest.raises(ConfigError, match="of 1 class; a classifier needs at least 2"):
        fit_logistic(vectors[labels == 3], labels[labels == 3], 10, 1.0)
    with pytest.raises(ConfigError, match="C is 0"):
        fit_logistic(vectors, labels, 10, 0)
