"""Nearest neighbours equal those of scikit-learn; planted clusters are result, and few others.

Axes: N images, D features.
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


def draw_features() -> np.ndarray:
    return torch.randn(200, 8).numpy()


def test_neighbours_equal_those_of_scikit_learn() -> None:
    features = draw_features()
    expected = (
        NearestNeighbors(n_neighbors=5, metric="cosine")
        .fit(features)
        .kneighbors(return_distance=False)
    )
    np.testing.assert_array_equal(list_neighbours(features, 5), expected)


def test_an_image_is_not_its_own_neighbour_even_among_duplicates() -> None:
    result = list_neighbours(np.ones((6, 3), np.float32), 5)
    assert all(set(row) == set(range(6)) - {index} for index, row in enumerate(result.tolist()))


def test_shares_equal_counts_in_a_loop() -> None:
    features = draw_features()
    result, near = compare(features), list_neighbours(features, 5)
    for row in range(3):
        kinds = [
            CODES[other] for index in range(200) if CODES[index] == row for other in near[index]
        ]
        np.testing.assert_allclose(
            result.share[row], [kinds.count(kind) / len(kinds) for kind in range(3)]
        )
    np.testing.assert_allclose(result.expected.sum(1), 1)
    np.testing.assert_allclose(result.expected[0], [39 / 199, 100 / 199, 60 / 199])


def test_expected_shares_equal_the_mean_over_permutations() -> None:
    near, groups = list_neighbours(draw_features(), 5), Groups(CODES, ("a", "b", "c"))
    shares = [
        compare_neighbours(near, Groups(codes, groups.names), permutations=1).share
        for codes in groups.permute(800, 0)
    ]
    np.testing.assert_allclose(np.mean(shares, 0), compare(draw_features()).expected, atol=0.006)


def test_planted_cluster_is_found() -> None:
    features = draw_features()
    features[:40, 0] += 2
    result = compare(features)
    assert result.share[0, 0] > 1.5 * result.expected[0, 0]
    assert result.p[0, 0] == 0.01
    assert result.p[1, 2] > 0.05


def test_false_findings_occur_at_the_significance_level() -> None:
    """Also where few images are neighbours of many others."""
    seeds, hits = 200, 0
    for seed in range(seeds):
        features = (
            torch.randn(200, 20, generator=torch.Generator().manual_seed(seed)) + 0.5
        ).numpy()
        hits += int((compare(features, seed=seed).p <= 0.05).any())
    low, high = stats.binom.ppf([0.001, 0.999], seeds, 0.05)
    assert low <= hits <= high
