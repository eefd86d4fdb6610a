"""Weights of hashtags for a target, by their positions below a common ancestor in WordNet.

Axes: P hashtags below one synset.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class CommonAncestor(NamedTuple):
    """A synset that is at or above both a target and some hashtags.

    Attributes:
        hashtag_steps: (P,), steps up to it from each of the hashtags.
        target_steps: steps up to it from the target.
        depth: depth of the synset; 1 for a root.
        targets_below: (P,), number of targets below each of the hashtags.
    """

    hashtag_steps: Array
    target_steps: int
    depth: int
    targets_below: Array


def _same(common: CommonAncestor, decay: float) -> Array:
    return ((common.hashtag_steps == 0) & (common.target_steps == 0)).astype(float)


def _hyponyms(common: CommonAncestor, decay: float) -> Array:
    return decay**common.hashtag_steps * (common.target_steps == 0)


def _hypernyms(common: CommonAncestor, decay: float) -> Array:
    divisors = np.maximum(common.targets_below, 1) if common.target_steps else 1
    return decay**common.target_steps * (common.hashtag_steps == 0) / divisors


def _related(common: CommonAncestor, decay: float) -> Array:
    return np.maximum(_hyponyms(common, decay), _hypernyms(common, decay))


def _path(common: CommonAncestor, decay: float) -> Array:
    return 1 / (1 + common.hashtag_steps + common.target_steps)


def _wup(common: CommonAncestor, decay: float) -> Array:
    return 2 * common.depth / (2 * common.depth + common.hashtag_steps + common.target_steps)


MAPPINGS: dict[str, Callable[[CommonAncestor, float], Array]] = {
    "same": _same,
    "hyponyms": _hyponyms,
    "hypernyms": _hypernyms,
    "related": _related,
    "path": _path,
    "wup": _wup,
}
# Without a threshold, each of thousands of hashtags would have a small weight for every target.
DEFAULT_THRESHOLDS = {"path": 1 / 3, "wup": 0.8}
