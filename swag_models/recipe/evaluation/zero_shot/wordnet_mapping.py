"""From hashtags to targets: how much each hashtag speaks for each target, by where both lie in WordNet.

Axes: K hashtags, T targets, P pairs of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.zero_shot.targets import Target
from swag_models.recipe.wordnet import WordNet

Array = NDArray[np.float64]


class CommonAncestor(NamedTuple):
    """A synset at or above a target, where hashtags meet it.

    hashtag: steps up to it from each of them, (P,). target: from the target. targets: how many each hashtag lies above, (P,).
    """

    hashtag: Array
    target: int
    depth: int
    targets: Array


@dataclass(frozen=True)
class HashtagMapping:
    """How hashtags speak for targets.

    kind:
      "same"       those of the target's own synset, with weight 1
      "hyponyms"   these, and those d steps below it, with decay ** d
      "hypernyms"  these, and those d steps above it, with decay ** d, shared equally among all targets below the hashtag
      "related"    both
      "path"       all, by 1 / (1 + steps of the shortest way through a synset above both)
      "wup"        all, by Wu and Palmer (1994): 2 m / (2 m + steps), m the depth of that synset; the root has depth 1, and
                   depth is along the longest way; of several synsets above both, the one that gives most counts
    Steps are the fewest. threshold: a weight below it counts nothing, by default 0.8 for "wup", 1/3 for "path". best: only so
    many hashtags with the greatest weights count for a target, by default all.
    """

    kind: str = "related"
    decay: float = 0.5
    threshold: float | None = None
    best: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in MAPPINGS:
            raise ConfigError(
                f"mapping {self.kind!r} is not known; it is one of: {', '.join(MAPPINGS)}"
            )
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay is {self.decay:g}; it is above 0 and at most 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold:g}; it is from 0 to 1")
        if self.best is not None and self.best < 1:
            raise ConfigError(f"best is {self.best}; it is 1 or more")

    def weigh(self, wordnet: WordNet, hashtags: Sequence[str], targets: Sequence[Target]) -> Tensor:
        """Weights, float64 (K, T), sparse: of synsets and targets; of several synsets of a target, the nearest counts."""
        below = _index(wordnet, hashtags)
        targets_below = _count_targets(wordnet, hashtags, targets)
        depths: dict[str, int] = {}
        pairs = []
        for column, target in enumerate(targets):
            weights = np.zeros(len(hashtags))
            for synset in target.synsets:
                for above, steps in _climb(wordnet, synset):
                    if above in below:
                        near, up = below[above]
                        met = CommonAncestor(
                            up, steps, _measure_depth(wordnet, above, depths), targets_below[near]
                        )
                        weights[near] = np.maximum(
                            weights[near], MAPPINGS[self.kind](met, self.decay)
                        )
            pairs += [(row, column, weights[row]) for row in self._choose(weights)]
        table = torch.tensor(pairs, dtype=torch.float64).view(-1, 3)
        size = (len(hashtags), len(targets))
        return torch.sparse_coo_tensor(
            table[:, :2].T.long(), table[:, 2], size, check_invariants=True
        ).coalesce()

    def _choose(self, weights: Array) -> list[int]:
        threshold = THRESHOLDS.get(self.kind, 0.0) if self.threshold is None else self.threshold
        order = np.argsort(-weights, kind="stable")[: self.best]
        return [
            row for row in order.tolist() if weights[row] > 0 and weights[row] >= threshold - 1e-9
        ]


def _same(met: CommonAncestor, decay: float) -> Array:
    return ((met.hashtag == 0) & (met.target == 0)).astype(float)


def _hyponyms(met: CommonAncestor, decay: float) -> Array:
    return decay**met.hashtag * (met.target == 0)


def _hypernyms(met: CommonAncestor, decay: float) -> Array:
    shares = np.maximum(met.targets, 1) if met.target else 1
    return decay**met.target * (met.hashtag == 0) / shares


def _related(met: CommonAncestor, decay: float) -> Array:
    return np.maximum(_hyponyms(met, decay), _hypernyms(met, decay))


def _path(met: CommonAncestor, decay: float) -> Array:
    return 1 / (1 + met.hashtag + met.target)


def _wup(met: CommonAncestor, decay: float) -> Array:
    return 2 * met.depth / (2 * met.depth + met.hashtag + met.target)


MAPPINGS: dict[str, Callable[[CommonAncestor, float], Array]] = {
    "same": _same,
    "hyponyms": _hyponyms,
    "hypernyms": _hypernyms,
    "related": _related,
    "path": _path,
    "wup": _wup,
}
THRESHOLDS = {"path": 1 / 3, "wup": 0.8}


def _climb(wordnet: WordNet, synset: str) -> Iterable[tuple[str, int]]:
    """A synset and all above it, with the steps up to each."""
    return [(synset, 0), *wordnet.ancestors(synset).items()]


def _index(wordnet: WordNet, hashtags: Sequence[str]) -> dict[str, tuple[NDArray[np.int64], Array]]:
    """For each synset, the hashtags at or below it and the steps from each up to it."""
    found: dict[str, list[tuple[int, int]]] = {}
    for row, synset in enumerate(hashtags):
        for above, steps in _climb(wordnet, synset):
            found.setdefault(above, []).append((row, steps))
    return {
        above: (
            np.array([row for row, _ in each]),
            np.array([steps for _, steps in each], dtype=float),
        )
        for above, each in found.items()
    }


def _count_targets(wordnet: WordNet, hashtags: Sequence[str], targets: Sequence[Target]) -> Array:
    """How many targets each hashtag lies above, (K,)."""
    counts = Counter(
        above
        for target in targets
        for above in {a for each in target.synsets for a in wordnet.ancestors(each)}
    )
    return np.array([counts[synset] for synset in hashtags], dtype=float)


def _measure_depth(wordnet: WordNet, synset: str, known: dict[str, int]) -> int:
    """1 for the root, else 1 more than the deepest parent's."""
    if synset not in known:
        parents = [
            parent for parent in wordnet.synsets[synset].parents if parent in wordnet.synsets
        ]
        known[synset] = 1 + max(
            (_measure_depth(wordnet, parent, known) for parent in parents), default=0
        )
    return known[synset]
