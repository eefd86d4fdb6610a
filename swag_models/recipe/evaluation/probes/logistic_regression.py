"""Multinomial logistic regression by L-BFGS, on more features than memory holds.

Products are numpy's, for the reason that `knn` gives; the rest of a pass is torch's threads.

Axes: N pictures, D width, K classes, P classes that have a picture; n of a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from swag_models.errors import ConfigError

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[float, Array]]

MEMORY = 2**30  # bytes of features that are kept as float32; more are read again in each pass
BLOCK = 64 * 2**20  # bytes of a block of features or logits
HISTORY = 10  # steps whose curvature is remembered, as scipy does
DECREASE, CURVATURE = (
    1e-4,
    0.9,
)  # of the weak Wolfe conditions (Nocedal and Wright, Numerical Optimization, 2006, 3.1)
NOISE = 1e-7  # of a mean of losses whose logits are float32
TRIALS = 20  # of lengths along a direction, after which noise has the last word


class Rows(Protocol):
    """What gives features (n, D) for a slice, such as an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: slice, /) -> Any: ...


@dataclass(frozen=True)
class Logistic:
    """weight (K, D) and bias (K,), float64; a class without a picture has zeros and minus infinity.

    objective: at the end. steps: how many it took. converged: whether the gradient came below the tolerance.
    """

    weight: Array
    bias: Array
    objective: float
    steps: int
    converged: bool

    def predict(self, vectors: Rows) -> NDArray[np.int64]:
        """The most probable class of each feature, (N,)."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        parts = [
            (_read(vectors, part) @ weight.T + bias).argmax(1)
            for part in _list_parts(vectors, len(bias))
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def fit_logistic(
    vectors: Rows,
    labels: NDArray[np.int64],
    num_classes: int,
    C: float,  # noqa: N803
    *,
    start: Logistic | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 1000,
) -> Logistic:
    """The least of C * (sum of cross-entropies) + 0.5 ||weight||^2 over features (N, D) as they are, the bias being free.

    That is scikit-learn's objective. start: of the same shape. tolerance: of the greatest entry of the gradient, for the
    objective divided by C * N, as there. ConfigError if fewer than two classes have a picture, or C is not positive.
    """
    present, places = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise ConfigError(
            f"the pictures are of {len(present)} class; a classifier needs at least 2: add pictures of others"
        )
    if not C > 0:
        raise ConfigError(f"C is {C}; allowed: above 0")
    count, width = vectors.shape
    if 4 * count * width <= MEMORY:
        vectors = _read(vectors, slice(None))
    weight, bias = (
        (start.weight, start.bias)
        if start
        else (np.zeros((num_classes, width)), np.zeros(num_classes))
    )
    bias = np.where(
        np.isfinite(bias), bias, 0
    )  # minus infinity is of a class that had no picture then
    begin = np.concatenate([weight[present], bias[present, None]], 1)  # (P, D + 1)

    def measure(flat: Array) -> tuple[float, Array]:
        loss, gradient = _sum_losses(vectors, places, flat.reshape(begin.shape))
        penalised = flat.reshape(begin.shape).copy()
        penalised[:, -1] = 0
        scale = 1 / (C * count)
        return loss / count + 0.5 * scale * float((penalised**2).sum()), (
            gradient / count + scale * penalised
        ).ravel()

    flat, objective, steps, converged = minimise(measure, begin.ravel(), tolerance, max_steps)
    weight, bias = np.zeros((num_classes, width)), np.full(num_classes, -np.inf)
    weight[present], bias[present] = (
        flat.reshape(begin.shape)[:, :-1],
        flat.reshape(begin.shape)[:, -1],
    )
    return Logistic(weight, bias, objective * C * count, steps, converged)


def minimise(
    measure: Objective, x: Array, tolerance: float, max_steps: int
) -> tuple[Array, float, int, bool]:
    """The x of a smooth function's minimum, the function there, the steps, and whether the gradient is within the tolerance.

    L-BFGS (Nocedal and Wright, algorithms 7.4 and 7.5), with lengths found by doubling and bisection.
    """
    value, gradient = measure(x)
    pairs: deque[tuple[Array, Array]] = deque(maxlen=HISTORY)
    for step in range(max_steps):
        if np.abs(gradient).max() <= tolerance:
            return x, value, step, True
        direction = _find_direction(gradient, pairs)
        slope = float(direction @ gradient)
        length, low, high = 1.0, 0.0, np.inf
        for _ in range(TRIALS):
            there, slopes = measure(x + length * direction)
            if there > value + DECREASE * length * slope + NOISE * max(1, abs(value)):
                high = length
            elif float(direction @ slopes) < CURVATURE * slope:
                low = length
            else:
                break
            length = 2 * low if high == np.inf else (low + high) / 2
        else:
            return x, value, step, False
        pairs.append((length * direction, slopes - gradient))
        x, value, gradient = x + length * direction, there, slopes
    return x, value, max_steps, bool(np.abs(gradient).max() <= tolerance)


def _find_direction(gradient: Array, pairs: deque[tuple[Array, Array]]) -> Array:
    """Down the gradient, as far as the curvature of the last steps makes likely."""
    if not pairs:
        return -gradient / max(1.0, float(np.linalg.norm(gradient)))
    direction, shares = -gradient, []
    for moved, change in reversed(pairs):
        shares.append(float(moved @ direction) / float(moved @ change))
        direction -= shares[-1] * change
    moved, change = pairs[-1]
    direction *= float(moved @ change) / float(change @ change)
    for (moved, change), share in zip(pairs, reversed(shares)):
        direction += (share - float(change @ direction) / float(moved @ change)) * moved
    return direction


def _sum_losses(vectors: Rows, places: NDArray[np.int64], point: Array) -> tuple[float, Array]:
    """The sum of cross-entropies, and its gradient (P, D + 1), in one pass."""
    weight, bias = (
        point[:, :-1].astype(np.float32),
        torch.from_numpy(point[:, -1].astype(np.float32)),
    )
    loss, gradient = 0.0, np.zeros(point.shape)
    for part in _list_parts(vectors, len(point)):
        rows, truth = _read(vectors, part), torch.from_numpy(places[part])[:, None]
        logits = torch.from_numpy(rows @ weight.T) + bias  # (n, P)
        logs = logits.log_softmax(1)
        loss -= float(logs.gather(1, truth).sum(dtype=torch.float64))
        errors = logs.exp_().scatter_add_(1, truth, logs.new_full(truth.shape, -1.0))
        gradient[:, :-1] += errors.numpy().T @ rows
        gradient[:, -1] += errors.sum(0, dtype=torch.float64).numpy()
    return loss, gradient


def _read(vectors: Rows, part: slice) -> NDArray[np.float32]:
    return np.asarray(vectors[part], np.float32)


def _list_parts(vectors: Rows, classes: int) -> list[slice]:
    count, width = vectors.shape
    size = max(1, BLOCK // (4 * max(width, classes)))
    return [slice(first, first + size) for first in range(0, count, size)]
