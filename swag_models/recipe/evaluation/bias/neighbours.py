"""Whose pictures are near whose: of which groups the nearest neighbours of a group's pictures are.

Axes: N pictures, D features, k neighbours, G groups, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from swag_models.recipe.evaluation.bias.groups import Groups, adjust
from swag_models.recipe.evaluation.probes.knn import find_neighbours


@dataclass(frozen=True, eq=False)
class Retrieval:
    """share (G, G): of the neighbours of a row's pictures, those of a column. expected: by sizes alone. p: adjusted."""

    groups: Groups
    neighbours: int
    share: NDArray[np.float64]
    expected: NDArray[np.float64]
    p: NDArray[np.float64]


def compare_neighbours(
    neighbours: NDArray[np.int64],
    groups: Groups,
    *,
    permutations: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> Retrieval:
    """The nearest others of each picture (N, k) -> of which groups they are, and whether that is chance.

    Expected are (size - 1) / (N - 1) of the own group and size / (N - 1) of others. p: two-sided, adjusted for all pairs of
    groups by `adjust` over permutations of the groups; each share is studentised by its mean and deviation over them, the
    observed order among them, since what one permutation does depends on which pictures are neighbours of many.
    """
    count, kinds = len(neighbours), len(groups.names)
    totals = np.empty((1 + permutations, kinds, kinds))
    totals[0] = _count_pairs(groups.codes, neighbours, kinds)
    with tqdm(total=permutations, unit=" permutations", disable=not progress) as bar:
        for turn, codes in enumerate(groups.permute(permutations, seed), 1):
            totals[turn] = _count_pairs(codes, neighbours, kinds)
            bar.update()
    spread = totals.std(0)
    scores = np.abs(totals - totals.mean(0)) / np.where(spread > 0, spread, 1)
    sizes = groups.sizes
    return Retrieval(
        groups=groups,
        neighbours=neighbours.shape[1],
        share=totals[0] / totals[0].sum(1, keepdims=True),
        expected=(sizes - np.eye(kinds)) / (count - 1),
        p=adjust(scores[0], scores[1:].max((1, 2))),
    )


def list_neighbours(features: NDArray[np.float32], neighbours: int) -> NDArray[np.int64]:
    """Features (N, D) -> the k nearest others of each picture (N, k), by cosine, the nearest first."""
    _, places = find_neighbours(features, features, neighbours + 1)  # (N, k + 1)
    own = places == np.arange(len(places))[:, None]
    own[~own.any(1), -1] = True  # where more than k others are just as near
    return places[~own].reshape(len(places), neighbours)


def _count_pairs(
    codes: NDArray[np.int64], neighbours: NDArray[np.int64], kinds: int
) -> NDArray[np.int64]:
    """(G, G): neighbours of pictures of a row's group that are of a column's."""
    pairs = codes[:, None] * kinds + codes[neighbours]
    return np.bincount(pairs.ravel(), minlength=kinds * kinds).reshape(kinds, kinds)
