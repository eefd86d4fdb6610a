"""Features as a linear classifier likes them: at length 1, then around zero, then of unit size.

So the same penalty means the same for every model, and few steps do.

Axes: N features, D width, n of a part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 8192  # features that are read at a time


@dataclass(frozen=True)
class Scaled:
    """Rows (N, D) of features, or those at `places` only, each divided by its length, less `mean`, over `scale`; float32."""

    vectors: NDArray[Any]
    places: NDArray[np.int64]
    mean: NDArray[np.float32] | float = 0.0
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.places), self.vectors.shape[1]

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        rows = self.vectors[self.places[part]].astype(np.float32)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        rows -= self.mean
        rows /= self.scale
        return rows


def scale(train: NDArray[Any], places: NDArray[np.int64]) -> Scaled:
    """Those of the training features, by their own mean and with entries of mean square 1."""
    rows = Scaled(train, places)
    total, square = np.zeros(train.shape[1]), 0.0
    for first in range(0, len(places), STEP):
        part = rows[first : first + STEP]
        total += part.sum(0, dtype=np.float64)
        square += float((part.astype(np.float64) ** 2).sum())
    mean = total / len(places)
    spread = (square / len(places) - float(mean @ mean)) / len(mean)
    return replace(rows, mean=mean.astype(np.float32), scale=max(spread, 1e-12) ** 0.5)


def scale_like(scaled: Scaled, vectors: NDArray[Any]) -> Scaled:
    """All of other features, by the mean and scale of these."""
    return replace(scaled, vectors=vectors, places=np.arange(len(vectors)))
