"""Logistic regression reaches the same minimum as scikit-learn, with features of any size.

Results of two solvers are compared only at tight tolerances. At loose ones, the point where a
solver stops depends on rounding, and therefore on the CPU.

Axes: N images, D feature width, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.probes import logistic_regression
from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic, scale_features

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    """Features (1797, 64) from 0 to 1, and labels."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32), labels


def measure(
    features: Any,
    labels: Any,
    weight: Any,
    bias: Any,
    C: float,  # noqa: N803
) -> tuple[float, float]:
    """Return the objective and the largest entry of its gradient, in float64."""
    features, weight, bias = (np.asarray(array, np.float64) for array in (features, weight, bias))
    logits = features @ weight.T + bias
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    errors = np.exp(log_probs)
    errors[np.arange(len(labels)), labels] -= 1
    loss = -log_probs[np.arange(len(labels)), labels].sum()
    gradients = (C * errors.T @ features + weight, C * errors.sum(0))
    return C * loss + 0.5 * (weight**2).sum(), max(np.abs(part).max() for part in gradients)


def fit_peer(features: Any, labels: Any, C: float) -> Any:  # noqa: N803
    """Fit with scikit-learn at a tight tolerance, in float64."""
    from sklearn.linear_model import LogisticRegression

    peer = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
    return peer.fit(features.astype(np.float64), labels)


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_minimum_equals_scikit_learn(C: float, digits: Any) -> None:  # noqa: N803
    features, labels = digits
    peer = fit_peer(features, labels, C)
    best, _ = measure(features, labels, peer.coef_, peer.intercept_, C)
    ours = fit_logistic(features, labels, 10, C, tolerance=1e-7)
    value, gradient = measure(features, labels, ours.weight, ours.bias, C)
    assert value == pytest.approx(best, rel=5e-7)
    assert ours.objective == pytest.approx(value, rel=5e-7)
    assert ours.converged
    assert gradient < 5e-7 * C * len(labels)
    np.testing.assert_allclose(ours.weight, peer.coef_, atol=1e-3 * np.abs(peer.coef_).max())
    assert (ours.predict(features) == peer.predict(features)).mean() > 0.999
    assert ours.steps < 2 * peer.n_iter_[0] + 10


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_default_tolerance_bounds_the_gradient(C: float, digits: Any) -> None:  # noqa: N803
    features, labels = digits
    fitted = fit_logistic(features, labels, 10, C)
    value, gradient = measure(features, labels, fitted.weight, fitted.bias, C)
    assert fitted.converged
    assert gradient <= 1.01e-4 * C * len(labels)  # 1% for rounding: the fit measures it in float32
    best = fit_logistic(features, labels, 10, C, tolerance=1e-7)
    minimum, _ = measure(features, labels, best.weight, best.bias, C)
    assert fitted.steps < best.steps
    # The objective is convex: it exceeds the minimum by at most the gradient times the distance.
    distance = np.abs(fitted.weight - best.weight).sum() + np.abs(fitted.bias - best.bias).sum()
    assert minimum < value < minimum + gradient * distance


def test_two_classes_equal_scikit_learn_with_half_the_penalty(digits: Any) -> None:
    """scikit-learn fits one weight vector for two classes; two opposite ones have half its norm."""
    features, labels = digits[0], (digits[1] > 4).astype(np.int64)
    peer = fit_peer(features, labels, 2.0)
    ours = fit_logistic(features, labels, 2, 1.0, tolerance=1e-7)
    difference = ours.weight[1] - ours.weight[0]
    np.testing.assert_allclose(difference, peer.coef_[0], atol=1e-3 * np.abs(peer.coef_).max())


def test_mapped_file_in_blocks_gives_the_same_minimum(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = digits
    in_memory = fit_logistic(features, labels, 10, 1.0, tolerance=1e-7)
    np.save(tmp_path / "features.npy", features)
    monkeypatch.setattr(logistic_regression, "BLOCK_BYTES", 4 * 64 * 100)
    monkeypatch.setattr(logistic_regression, "CACHE_BYTES", 0)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    in_blocks = fit_logistic(mapped, labels, 10, 1.0, tolerance=1e-7)
    assert in_blocks.objective == pytest.approx(in_memory.objective, rel=1e-7)
    np.testing.assert_allclose(in_blocks.weight, in_memory.weight, atol=2e-3)
    assert (in_blocks.predict(features) == in_memory.predict(features)).all()


def test_warm_start_saves_steps_and_reaches_the_same_minimum(digits: Any) -> None:
    cold = fit_logistic(*digits, 10, 1.0, tolerance=1e-7)
    near = fit_logistic(*digits, 10, 0.8, tolerance=1e-7)
    warm = fit_logistic(*digits, 10, 1.0, start=near, tolerance=1e-7)
    assert warm.steps < cold.steps
    assert warm.objective == pytest.approx(cold.objective, rel=1e-6)
    assert fit_logistic(*digits, 10, 1.0, start=cold, tolerance=2e-7).steps == 0


def test_separable_classes_converge() -> None:
    features = np.array([[-1.0], [0.0], [1.0]], np.float32)
    fitted = fit_logistic(features, np.array([0, 1, 2]), 3, 1e3)
    assert fitted.converged
    assert fitted.predict(features).tolist() == [0, 1, 2]


def test_class_without_images_is_never_predicted(digits: Any) -> None:
    features, labels = digits
    few = labels < 5
    even_only = fit_logistic(features[few], labels[few] * 2, 10, 1.0)
    assert np.isfinite(even_only.objective)
    assert set(even_only.predict(features)) <= {0, 2, 4, 6, 8}
    full = fit_logistic(features, labels, 10, 1.0, start=even_only)  # classes that had no image
    assert (full.predict(features) == labels).mean() > 0.97


def test_step_limit_is_reported(digits: Any) -> None:
    short = fit_logistic(*digits, 10, 1.0, max_steps=3)
    assert (short.steps, short.converged) == (3, False)


def test_invalid_input_is_rejected(digits: Any) -> None:
    features, labels = digits
    with pytest.raises(ConfigError, match="with images is 1; a classifier needs at least 2"):
        fit_logistic(features[labels == 3], labels[labels == 3], 10, 1.0)
    with pytest.raises(ConfigError, match="invalid C 0: allowed numbers above 0"):
        fit_logistic(features, labels, 10, 0)


def test_scaled_features_keep_only_the_direction() -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)) + 3
    scaled = scale_features(vectors, np.arange(0, 50, 2))
    rows = scaled[:]
    assert rows.shape == scaled.shape == (25, 8)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-5)
    assert (rows**2).mean() == pytest.approx(1, abs=1e-4)
    longer = scale_features(vectors * 7, scaled.indices).scale_like(vectors * 7)
    np.testing.assert_allclose(longer[0:50:2], rows, atol=1e-4)
