"""Groups that are too small go, and a p-value counts the observed order in."""

from __future__ import annotations

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.bias.disparity import Groups, adjust


def test_small_groups_are_left_out_and_named() -> None:
    codes = np.array([2, 0, 1, 2, 0, 2, 3])
    mask, kept, small = Groups(codes, ("a", "b", "c", "d")).keep_large(2)
    assert mask.tolist() == [True, True, False, True, True, True, False]
    assert (kept.codes.tolist(), kept.names, small) == (
        [1, 0, 1, 0, 1],
        ("a", "c"),
        {"b": 1, "d": 1},
    )


def test_fewer_than_two_groups_cannot_be_compared() -> None:
    codes = np.repeat([0, 1], [50, 10])
    with pytest.raises(
        ConfigError,
        match=r"groups of 30 pictures or more: 1; two are needed .*: a 50, b 10.*min_group",
    ):
        Groups(codes, ("a", "b")).keep_large(30)
    with pytest.raises(ConfigError, match="min_group is 1"):
        Groups(codes, ("a", "b")).keep_large(1)
    with pytest.raises(ConfigError, match=r"or more: 0; .*: none"):
        Groups(np.array([], np.int64), ()).keep_large(30)


def test_permutations_keep_sizes_and_are_the_same_again() -> None:
    groups = Groups(np.repeat([0, 1], [50, 10]), ("a", "b"))
    first, second = (list(groups.permute(3, seed=1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert all(codes.sum() == 10 for codes in first)
    assert not np.array_equal(first[0], first[1])


def test_a_p_value_counts_the_observed_order_in() -> None:
    assert adjust(np.array([[0.5, 2.0], [3.0, 9.0]]), np.array([3.0, 1.0, 2.0])).tolist() == [
        [1, 0.75],
        [0.5, 0.25],
    ]


def test_statistics_that_differ_by_rounding_are_equal() -> None:
    assert 0.1 + 0.2 > 0.3
    assert adjust(np.array([0.1 + 0.2]), np.array([0.3, 0.2, 0.1])).tolist() == [0.5]
