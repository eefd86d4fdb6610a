"""Disparities agree with plain computations; planted associations are found, and few others.

Axes: N images, K labels of an image at most, J labels, G groups.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from studies.scenes.scene import plan_post
from studies.scenes.things import NAMES, PLANTED
from swag_models.recipe.evaluation.bias.disparity import Disparities, Groups, measure_disparities

Array = NDArray[Any]


def list_labels(has: Array) -> Array:
    """Whether each image has each label (N, J) -> labels of each image (N, K = J), -1 for none."""
    return np.where(has, np.arange(has.shape[1]), -1)


def make_groups(*sizes: int) -> Groups:
    return Groups(np.repeat(np.arange(len(sizes)), sizes), tuple("abcdef"[: len(sizes)]))


def measure(has: Array, groups: Groups, **options: Any) -> Disparities:
    return measure_disparities(
        list_labels(has), groups, **{"permutations": 99, "resamples": 20, **options}
    )


def list_statistics(has: Array, codes: Array) -> Array:
    """(J, G): the likelihood ratio of every 2 x 2 table, by SciPy."""
    statistics = np.zeros((has.shape[1], codes.max() + 1))
    for label, group in np.ndindex(*statistics.shape):
        table = np.histogram2d(has[:, label], codes == group, bins=2, range=[[0, 1], [0, 1]])[0]
        if table.sum(0).all() and table.sum(1).all():
            statistics[label, group] = stats.chi2_contingency(
                table, correction=False, lambda_="log-likelihood"
            )[0]
    return statistics


def draw_null(rng: np.random.Generator, images: int) -> Array:
    """12 labels independent of groups: some rare, the last six nearly equal to the first."""
    base = rng.random((images, 6)) < [0.5, 0.2, 0.1, 0.05, 0.02, 0.01]
    return np.concatenate([base, base ^ (rng.random(base.shape) < 0.02)], 1)


def test_rates_and_disparities_equal_those_of_pandas() -> None:
    rng = np.random.default_rng(0)
    has, groups = rng.random((500, 4)) < [0.5, 0.3, 0.1, 0.05], make_groups(100, 250, 150)
    result = measure(has, groups)
    rates = pd.DataFrame(has).groupby(groups.codes).mean()
    for group in range(3):
        np.testing.assert_allclose(result.rates[:, group], rates.loc[group])
        np.testing.assert_allclose(
            result.values[:, group], rates.loc[group] - rates.drop(index=group).mean()
        )
    assert ((result.low <= result.values) & (result.values <= result.high)).all()


def test_p_values_count_permutations_with_a_larger_maximum() -> None:
    rng = np.random.default_rng(1)
    has, groups = rng.random((40, 5)) < 0.3, make_groups(12, 18, 10)
    has[:12, 0] |= rng.random(12) < 0.3
    result = measure(has, groups, permutations=60, seed=3)
    maxima = np.array([list_statistics(has, codes).max() for codes in groups.permute(60, 3)])
    observed = list_statistics(has, groups.codes)
    expected = (1 + (maxima[:, None, None] >= observed - 1e-9).sum(0)) / 61
    np.testing.assert_allclose(result.p, expected)
    assert len(np.unique(expected)) > 3


def test_p_values_approach_those_of_all_orders() -> None:
    rng = np.random.default_rng(2)
    has, groups = rng.random((10, 3)) < 0.5, make_groups(5, 5)
    orders = [np.isin(np.arange(10), chosen).astype(int) for chosen in combinations(range(10), 5)]
    maxima = np.array([list_statistics(has, codes).max() for codes in orders])
    exact = (maxima[:, None, None] >= list_statistics(has, groups.codes) - 1e-9).mean(0)
    result = measure(has, groups, permutations=4000, min_images=1)
    np.testing.assert_allclose(result.p, exact, atol=4 * 0.5 / np.sqrt(4000))


def test_intervals_equal_those_of_resampled_images() -> None:
    rng = np.random.default_rng(3)
    has, groups = rng.random((300, 2)) < [0.3, 0.1], make_groups(100, 200)
    result = measure(has, groups, resamples=4000)
    drawn = []
    for _ in range(4000):
        first, second = has[rng.integers(0, 100, 100)], has[100 + rng.integers(0, 200, 200)]
        drawn.append(first.mean(0) - second.mean(0))
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    np.testing.assert_allclose(result.low[:, 0], low, atol=0.012)
    np.testing.assert_allclose(result.high[:, 0], high, atol=0.012)


def test_intervals_cover_the_true_disparity_at_about_the_nominal_rate() -> None:
    rng, rates = np.random.default_rng(4), np.array([0.3, 0.2, 0.4])
    groups, covered = make_groups(150, 200, 250), 0
    for seed in range(150):
        has = rng.random((600, 1)) < rates[groups.codes][:, None]
        result = measure(has, groups, permutations=1, resamples=400, seed=seed)
        covered += int(((result.low <= [0, -0.15, 0.15]) & (result.high >= [0, -0.15, 0.15])).sum())
    assert 0.90 < covered / 450 < 0.98


def test_false_findings_occur_at_the_significance_level() -> None:
    """Not much more rarely either: a test that never finds anything would be useless."""
    groups, seeds = make_groups(60, 140, 300), 200
    hits = sum(
        measure(draw_null(np.random.default_rng(seed), 500), groups, seed=seed).significant.any()
        for seed in range(seeds)
    )
    low, high = stats.binom.ppf([0.001, 0.999], seeds, 0.05)
    assert low <= hits <= high


def test_planted_association_is_found_among_correlated_labels() -> None:
    groups = make_groups(300, 700)
    for seed in range(5):
        has = draw_null(np.random.default_rng(seed), 1000)
        has[:300, 3] |= np.random.default_rng(100 + seed).random(300) < 0.12
        result = measure(has, groups, seed=seed)
        assert result.significant[3].all()
        row, group = result.rank()[0]
        assert result.groups.names[group] == "a"
        assert row in (3, 9)  # the planted label, or the one that is nearly equal to it


def test_rare_labels_in_a_tiny_group_do_not_hide_others() -> None:
    """One of 40 images with a label that 10 of 20,000 have: 7 standard errors, chance 1 in 50."""
    rng, groups = np.random.default_rng(5), make_groups(10_000, 9_960, 40)
    has = rng.random((20_000, 150)) < 0.0005
    has[:, 0] = rng.random(20_000) < np.where(groups.codes == 0, 0.012, 0.005)
    has[-40:, 1] |= rng.random(40) < 0.2
    result = measure(has, groups)
    assert 3 < result.critical < 5.5
    assert set(zip(*map(list, np.nonzero(result.significant)))) == {(0, 0), (0, 1), (1, 2)}


def test_rare_labels_are_not_tested_but_counted() -> None:
    has = np.zeros((100, 5), bool)
    for label, count in enumerate((0, 4, 5, 100, 1)):
        has[:count, label] = True
    result = measure(has, make_groups(50, 50), permutations=500)
    assert result.labels.tolist() == [2, 3]
    assert result.rare == 2
    assert result.p[1].tolist() == [1, 1]
    assert result.p[0, 0] < 0.5
    empty = measure(np.zeros((100, 5), bool), make_groups(50, 50))
    assert (empty.labels.size, empty.rare, empty.rank()) == (0, 0, [])


def test_smallest_detectable_difference_is_found_in_about_4_of_5_samples() -> None:
    groups, rng = make_groups(400, 600), np.random.default_rng(6)
    rates = np.array([0.3, 0.15, 0.1, 0.05])
    smallest = measure(rng.random((1000, 4)) < rates, groups).find_smallest(0.15)[0]
    split = 0.15 + smallest * np.array([0.6, -0.4])  # 15% of all images
    hits = 0
    for seed in range(60):
        has = rng.random((1000, 4)) < rates
        has[:, 1] = rng.random(1000) < split[groups.codes]
        hits += measure(has, groups, seed=seed).significant[1, 0]
    assert 0.6 < hits / 60 < 0.95


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Array, Groups]]:
    """For each of 20 seeds: what 6,000 posts show (N, J), and the club of each post."""
    samples = []
    for seed in range(20):
        posts = [plan_post(seed, number) for number in range(6_000)]
        has = np.array([[name in post.things for name in NAMES] for post in posts])
        samples.append(
            (has, Groups(np.array(["ab".index(post.group) for post in posts]), ("a", "b")))
        )
    return samples


def test_planted_associations_of_scenes_are_found_and_few_others(
    scenes: list[tuple[Array, Groups]],
) -> None:
    invented = missed = 0
    for seed, (has, groups) in enumerate(scenes):
        result = measure(has, groups, permutations=200, seed=seed)
        named = {
            (NAMES[result.labels[row]], groups.names[group])
            for row, group in result.rank()
            if result.significant[row, group]
        }
        missed += len(PLANTED.items() - named)
        invented += bool(named - PLANTED.items())
    assert missed <= 2
    assert invented <= stats.binom.ppf(0.999, len(scenes), 0.05)


def test_findings_are_rare_when_clubs_are_shuffled(
    scenes: list[tuple[Array, Groups]],
) -> None:
    has, groups = scenes[0]
    shuffled = [Groups(codes, groups.names) for codes in groups.permute(20, 7)]
    hits = sum(
        measure(has, permuted, seed=seed).significant.any()
        for seed, permuted in enumerate(shuffled)
    )
    assert hits <= stats.binom.ppf(0.999, len(shuffled), 0.05)
