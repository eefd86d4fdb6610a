"""Neighbours are those of scikit-learn, and clusters are found where they were planted, and seldom where not.

Axes: N pictures, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from swag_models.recipe.evaluation.bias.disparity import Groups
from swag_models.recipe.evaluation.bias.neighbours import (
    NeighbourShares,
    compare_neighbours,
    list_neighbours,
)

CODES = np.repeat([0, 1, 2], [40, 100, 60])


def compare(
    features: np.ndarray, codes: np.ndarray = CODES, permutations: int = 99, seed: int = 0
) -> NeighbourShares:
    groups = Groups(codes, ("a", "b", "c"))
    return compare_neighbours(
        list_neighbours(features, 5), groups, permutations=permutations, seed=seed
    )


def draw() -> np.ndarray:
    return torch.randn(200, 8).numpy()


def test_neighbours_are_those_of_scikit_learn() -> None:
    features = draw()
    theirs = (
        NearestNeighbors(n_neighbors=5, metric="cosine")
        .fit(features)
        .kneighbors(return_distance=False)
    )
    np.testing.assert_array_equal(list_neighbours(features, 5), theirs)


def test_a_picture_is_not_its_own_neighbour_though_others_are_the_same() -> None:
    found = list_neighbours(np.ones((6, 3), np.float32), 5)
    assert all(set(row) == set(range(6)) - {index} for index, row in enumerate(found.tolist()))


def test_shares_are_those_of_counting_one_by_one() -> None:
    features = draw()
    found, near = compare(features), list_neighbours(features, 5)
    for row in range(3):
        kinds = [
            CODES[other] for index in range(200) if CODES[index] == row for other in near[index]
        ]
        np.testing.assert_allclose(
            found.share[row], [kinds.count(kind) / len(kinds) for kind in range(3)]
        )
    np.testing.assert_allclose(found.expected.sum(1), 1)
    np.testing.assert_allclose(found.expected[0], [39 / 199, 100 / 199, 60 / 199])


def test_expected_shares_are_the_mean_of_permutations() -> None:
    near, groups = list_neighbours(draw(), 5), Groups(CODES, ("a", "b", "c"))
    shares = [
        compare_neighbours(near, Groups(codes, groups.names), permutations=1).share
        for codes in groups.permute(800, 0)
    ]
    np.testing.assert_allclose(np.mean(shares, 0), compare(draw()).expected, atol=0.006)


def test_a_planted_cluster_is_found() -> None:
    features = draw()
    features[:40, 0] += 2
    found = compare(features)
    assert found.share[0, 0] > 1.5 * found.expected[0, 0]
    assert found.p[0, 0] == 0.01
    assert found.p[1, 2] > 0.05


def test_without_clusters_any_finding_is_as_rare_as_promised() -> None:
    """Also where few pictures are the neighbours of many."""
    seeds, hits = 200, 0
    for seed in range(seeds):
        features = (
            torch.randn(200, 20, generator=torch.Generator().manual_seed(seed)) + 0.5
        ).numpy()
        hits += int((compare(features, seed=seed).p <= 0.05).any())
    low, high = stats.binom.ppf([0.001, 0.999], seeds, 0.05)
    assert low <= hits <= high
