"""Multinomial logistic regression by L-BFGS on scaled features, which need not fit into memory.

Matrix products use numpy, for the reason given in `knn`; the rest of a pass uses torch, for its
threads.

Axes: N images, D feature width, K classes, P classes that have an image, n images of a block.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from swag_models.errors import ConfigError

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[float, Array]]  # x -> value and gradient

CACHE_BYTES = 2**30  # smaller features are converted to float32 once, others in every pass
BLOCK_BYTES = 64 * 2**20  # size of the features or the logits of a block
SCALING_ROWS = 8192  # images of a block while the mean and scale are computed

HISTORY = 10  # number of steps whose curvature L-BFGS uses; scipy's default
# Weak Wolfe conditions of the line search (Nocedal and Wright, Numerical Optimization, 2006, 3.1).
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
# Relative rounding error of the mean loss, because logits are float32. Without this tolerance, the
# line search would reject good steps near the minimum, where the decrease is below the error.
LOSS_NOISE = 1e-7
MAX_TRIALS = 20  # step lengths tried along a direction before giving up


class FeatureRows(Protocol):
    """Anything that returns features (n, D) for a slice: an array, or `ScaledFeatures`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""

    def __getitem__(self, part: slice, /) -> Any: ...


@dataclass(frozen=True)
class ScaledFeatures:
    """Features scaled when read: L2-normalised, then minus `mean`, then divided by `scale`.

    With scaled features, the same penalty C has the same strength for every model, and L-BFGS
    needs few steps.

    Attributes:
        vectors: unscaled features, usually memory-mapped.
        indices: the rows of `vectors` to use (N,).
        mean: mean of the L2-normalised training features (D,).
        scale: root mean square of their entries after the mean is subtracted.
    """

    vectors: NDArray[Any]
    indices: NDArray[np.int64]
    mean: NDArray[np.float32] | float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.indices), self.vectors.shape[1]

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        rows = self.vectors[self.indices[part]].astype(np.float32)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        rows -= self.mean
        rows /= self.scale
        return rows

    def scale_like(
        self, vectors: NDArray[Any], indices: NDArray[np.int64] | None = None
    ) -> "ScaledFeatures":
        """Scale other features, all or those at `indices`, by the mean and scale of this object."""
        if indices is None:
            indices = np.arange(len(vectors))
        return replace(self, vectors=vectors, indices=indices)


def scale_features(vectors: NDArray[Any], indices: NDArray[np.int64]) -> ScaledFeatures:
    """Scale the training features to a mean of 0 and a mean square of 1.

    Args:
        vectors: features of all images.
        indices: rows of the training images.
    """
    normalised = ScaledFeatures(vectors, indices)
    total, squares = np.zeros(vectors.shape[1]), 0.0
    for start in range(0, len(indices), SCALING_ROWS):
        rows = normalised[start : start + SCALING_ROWS]
        total += rows.sum(0, dtype=np.float64)
        squares += float((rows.astype(np.float64) ** 2).sum())
    mean = total / len(indices)
    variance = (squares / len(indices) - float(mean @ mean)) / len(mean)
    # The lower bound makes features that are all equal 0 instead of NaN.
    return replace(normalised, mean=mean.astype(np.float32), scale=max(variance, 1e-12) ** 0.5)


@dataclass(frozen=True)
class LogisticClassifier:
    """A fitted linear classifier.

    Attributes:
        weight: (K, D), float64; zeros for a class without a training image.
        bias: (K,), float64; minus infinity for a class without a training image.
        objective: value of the objective at the end of the fit.
        steps: number of L-BFGS steps.
        converged: whether the gradient fell below the tolerance.
    """

    weight: Array
    bias: Array
    objective: float
    steps: int
    converged: bool

    def predict(self, features: FeatureRows) -> NDArray[np.int64]:
        """Return the most probable class of each image (N,)."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        predicted = [
            (_read_block(features, block) @ weight.T + bias).argmax(1)
            for block in _split_blocks(features, len(bias))
        ]
        return np.concatenate(predicted) if predicted else np.empty(0, np.int64)


def fit_logistic(
    features: FeatureRows,
    labels: NDArray[np.int64],
    num_classes: int,
    C: float,  # noqa: N803
    *,
    start: LogisticClassifier | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> LogisticClassifier:
    """Minimise C * (sum of cross-entropies) + 0.5 ||weight||^2, the objective of scikit-learn.

    The bias is not penalised.

    Args:
        features: (N, D), used without scaling.
        labels: class of each image (N,).
        num_classes: K.
        C: inverse strength of the penalty.
        start: classifier to start from, with the same K and D.
        tolerance: stop when no entry of the gradient of objective / (C * N) is larger.
        max_steps: stop after this number of steps.

    Raises:
        ConfigError: fewer than two classes have an image, or C is not positive.
    """
    present, class_indices = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise ConfigError(
            f"the number of classes with images is {len(present)}; a classifier needs at least 2: "
            "add images of other classes"
        )
    if not C > 0:
        raise ConfigError(f"invalid C {C}: allowed numbers above 0")
    count, width = features.shape
    if 4 * count * width <= CACHE_BYTES:
        features = _read_block(features, slice(None))
    weight, bias = np.zeros((num_classes, width)), np.zeros(num_classes)
    if start:
        # A class that had no image before, with a bias of minus infinity, starts at 0.
        weight, bias = start.weight, np.where(np.isfinite(start.bias), start.bias, 0)
    # Only classes with an image are fitted: the bias of the others has no finite optimum.
    initial = np.concatenate([weight[present], bias[present, None]], 1)  # (P, D + 1)

    def measure(flat: Array) -> tuple[float, Array]:
        """Return objective / (C * N) and its gradient; one tolerance then suits every C and N."""
        parameters = flat.reshape(initial.shape)
        loss, gradient = _sum_losses(features, class_indices, parameters)
        penalised = parameters.copy()
        penalised[:, -1] = 0  # the bias
        penalty = 1 / (C * count)
        value = loss / count + 0.5 * penalty * float((penalised**2).sum())
        return value, (gradient / count + penalty * penalised).ravel()

    flat, value, steps, converged = minimise(measure, initial.ravel(), tolerance, max_steps)
    parameters = flat.reshape(initial.shape)
    weight, bias = np.zeros((num_classes, width)), np.full(num_classes, -np.inf)
    weight[present], bias[present] = parameters[:, :-1], parameters[:, -1]
    return LogisticClassifier(weight, bias, value * C * count, steps, converged)


def minimise(
    objective: Objective, x: Array, tolerance: float, max_steps: int
) -> tuple[Array, float, int, bool]:
    """Minimise a smooth function by L-BFGS (Nocedal and Wright, 2006, algorithms 7.4 and 7.5).

    Step lengths are found by doubling and bisection until they satisfy the weak Wolfe conditions.

    Args:
        objective: returns the value and the gradient at x.
        x: starting point.
        tolerance: stop when no entry of the gradient is larger.
        max_steps: stop after this number of steps.

    Returns:
        The last x, its value, the number of steps, and whether the gradient is within the
        tolerance.
    """
    value, gradient = objective(x)
    history: deque[tuple[Array, Array]] = deque(maxlen=HISTORY)  # changes of x and of the gradient
    for step in range(max_steps):
        if np.abs(gradient).max() <= tolerance:
            return x, value, step, True
        direction = _find_direction(gradient, history)
        slope = float(direction @ gradient)
        length, lower, upper = 1.0, 0.0, np.inf
        for _ in range(MAX_TRIALS):
            new_x = x + length * direction
            new_value, new_gradient = objective(new_x)
            noise = LOSS_NOISE * max(1, abs(value))
            if new_value > value + SUFFICIENT_DECREASE * length * slope + noise:
                upper = length  # too long: the value did not decrease enough
            elif float(direction @ new_gradient) < CURVATURE * slope:
                lower = length  # too short: the function still falls steeply
            else:
                break
            length = 2 * lower if upper == np.inf else (lower + upper) / 2
        else:
            return x, value, step, False
        history.append((length * direction, new_gradient - gradient))
        x, value, gradient = new_x, new_value, new_gradient
    return x, value, max_steps, bool(np.abs(gradient).max() <= tolerance)


def _find_direction(gradient: Array, history: deque[tuple[Array, Array]]) -> Array:
    """Return the L-BFGS direction: -(estimated inverse Hessian) times the gradient."""
    if not history:
        # No curvature is known yet: limit the first step to length 1.
        return -gradient / max(1.0, float(np.linalg.norm(gradient)))
    # The two loops of algorithm 7.4, with its names: s, y, alpha and beta.
    direction, alphas = -gradient, []
    for s, y in reversed(history):
        alphas.append(float(s @ direction) / float(s @ y))
        direction -= alphas[-1] * y
    s, y = history[-1]
    direction *= float(s @ y) / float(y @ y)  # initial inverse Hessian: a multiple of the identity
    for (s, y), alpha in zip(history, reversed(alphas)):
        beta = float(y @ direction) / float(s @ y)
        direction += (alpha - beta) * s
    return direction


def _sum_losses(
    features: FeatureRows, class_indices: NDArray[np.int64], parameters: Array
) -> tuple[float, Array]:
    """Return the sum of cross-entropies and its gradient (P, D + 1) in one pass."""
    weight = parameters[:, :-1].astype(np.float32)
    bias = torch.from_numpy(parameters[:, -1].astype(np.float32))
    loss, gradient = 0.0, np.zeros(parameters.shape)
    for block in _split_blocks(features, len(parameters)):
        rows = _read_block(features, block)
        targets = torch.from_numpy(class_indices[block])[:, None]  # (n, 1)
        logits = torch.from_numpy(rows @ weight.T) + bias  # (n, P)
        log_probs = logits.log_softmax(1)
        # Products are float32 for speed. Sums over images are float64, because float32 rounding
        # errors would stop the fit early.
        loss -= float(log_probs.gather(1, targets).sum(dtype=torch.float64))
        # The gradient with respect to the logits, softmax - one-hot, computed in place.
        errors = log_probs.exp_().scatter_add_(1, targets, logits.new_full(targets.shape, -1.0))
        gradient[:, :-1] += errors.numpy().T @ rows
        gradient[:, -1] += errors.sum(0, dtype=torch.float64).numpy()
    return loss, gradient


def _read_block(features: FeatureRows, block: slice) -> NDArray[np.float32]:
    return np.asarray(features[block], np.float32)


def _split_blocks(features: FeatureRows, num_classes: int) -> list[slice]:
    """Split images into slices whose features (n, D) and logits (n, K) fit into BLOCK_BYTES."""
    count, width = features.shape
    rows = max(1, BLOCK_BYTES // (4 * max(width, num_classes)))
    return [slice(start, start + rows) for start in range(0, count, rows)]
