"""Small groups are dropped, permutations keep group sizes, and p-values are corrected."""

from __future__ import annotations

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.bias.disparity import Groups, adjust_p_values


def test_small_groups_are_dropped_and_listed() -> None:
    codes = np.array([2, 0, 1, 2, 0, 2, 3])
    mask, large, small = Groups(codes, ("a", "b", "c", "d")).keep_large(2)
    assert mask.tolist() == [True, True, False, True, True, True, False]
    assert (large.codes.tolist(), large.names, small) == (
        [1, 0, 1, 0, 1],
        ("a", "c"),
        {"b": 1, "d": 1},
    )


def test_fewer_than_two_large_groups_are_rejected() -> None:
    codes = np.repeat([0, 1], [50, 10])
    with pytest.raises(
        ConfigError,
        match=r"of 30 images or more: 1, but .* two .*of each group: a 50, b 10\).*min_group",
    ):
        Groups(codes, ("a", "b")).keep_large(30)
    with pytest.raises(ConfigError, match="invalid min_group 1: allowed: 2 or more"):
        Groups(codes, ("a", "b")).keep_large(1)
    with pytest.raises(ConfigError, match=r"or more: 0, .*: none"):
        Groups(np.array([], np.int64), ()).keep_large(30)


def test_permutations_keep_group_sizes_and_are_reproducible() -> None:
    groups = Groups(np.repeat([0, 1], [50, 10]), ("a", "b"))
    first, second = (list(groups.permute(3, seed=1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(codes.sum() == 10 for codes in first)
    assert not np.array_equal(first[0], first[1])


def test_p_value_counts_the_observed_order() -> None:
    assert adjust_p_values(
        np.array([[0.5, 2.0], [3.0, 9.0]]), np.array([3.0, 1.0, 2.0])
    ).tolist() == [
        [1, 0.75],
        [0.5, 0.25],
    ]


def test_statistics_equal_up_to_rounding_are_ties() -> None:
    assert 0.1 + 0.2 > 0.3
    assert adjust_p_values(np.array([0.1 + 0.2]), np.array([0.3, 0.2, 0.1])).tolist() == [0.5]
