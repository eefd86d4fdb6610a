"""Parts of labelled pictures, chosen by hash: the same on every machine, whatever the order of the pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from swag_models.errors import ConfigError

Labels = NDArray[np.int64]
HELD_BACK = 0.2  # of the training pictures of each class, to choose settings with


def choose_shots(
    names: Sequence[str],
    labels: Labels,
    shots: float,
    split: int,
    classes: Sequence[str] | None = None,
) -> Labels:
    """The places, rising, of so many pictures of each class; below 1 of that share, and at least one.

    Few shots are among the more of the same split. classes: their names. ConfigError names a class that has not enough.
    """
    if not (0 < shots < 1 or (shots >= 1 and shots == int(shots))):
        raise ConfigError(
            f"shots are {shots}; allowed: whole numbers from 1 on, and shares between 0 and 1"
        )
    counts = np.bincount(labels)
    wanted = (
        np.maximum(1, np.rint(shots * counts)) if shots < 1 else np.full(len(counts), int(shots))
    )
    if len(few := np.flatnonzero((counts > 0) & (counts < wanted))):
        name = classes[few[0]] if classes else few[0]
        raise ConfigError(
            f"class {name} has {counts[few[0]]} pictures; {shots} shots need as many: ask for fewer"
        )
    return np.flatnonzero(_rank(names, labels, f"shots {split}") < wanted[labels])


def hold_back(names: Sequence[str], labels: Labels) -> NDArray[np.bool_]:
    """Which pictures (N,) are to choose settings with: a fifth of each class, rounded, and never all of it."""
    counts = np.bincount(labels)
    wanted = np.minimum(np.rint(HELD_BACK * counts), np.maximum(counts - 1, 0))
    chosen: NDArray[np.bool_] = _rank(names, labels, "validation") < wanted[labels]
    return chosen


def _rank(names: Sequence[str], labels: Labels, salt: str) -> Labels:
    """The place of each picture (N,) among those of its class, in the order of hashes."""
    hashes = np.array(
        [hashlib.sha256(f"{salt} {name}".encode()).digest()[:8] for name in names], "V8"
    ).view(">u8")
    order = np.lexsort((hashes, labels))
    starts = np.cumsum(np.bincount(labels)) - np.bincount(labels)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - starts[labels[order]]
    return ranks
