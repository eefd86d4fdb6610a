"""Which labels are given more often to the pictures of one group than to those of the others: statistics, and no model.

The rate of a label in a group is the share of the group's pictures that it is given to, and its disparity the rate less the
mean of the other groups' rates, each group alike: the label association of arXiv 2202.07603.

Axes: N pictures, K labels a picture may have, J labels that are judged, G groups, P permutations, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from swag_models.recipe.evaluation.bias.groups import Groups, adjust

LEVEL = 0.05  # of the chance of any false finding
POWER = 0.84  # standard errors beyond the critical value, where 80% of such disparities are found
CHUNK = 256  # labels resampled at a time

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Disparities:
    """labels (J,): the indices of those judged. rates, values, low, high, p (J, G): see `measure_disparities`.

    rare: labels that some pictures have, but too few to be judged. critical: what a studentised disparity must reach.
    """

    groups: Groups
    labels: Integers
    rates: Floats
    values: Floats
    low: Floats
    high: Floats
    p: Floats
    rare: int
    critical: float

    @property
    def found(self) -> NDArray[np.bool_]:
        """What is beyond chance (J, G)."""
        return self.p <= LEVEL

    def rank(self) -> list[tuple[int, int]]:
        """(row, group) of every disparity: findings first, then by size; of two groups, where it is the larger."""
        rows, groups = np.nonzero(
            self.values > 0 if len(self.groups.names) == 2 else np.ones_like(self.found)
        )
        order = np.lexsort((rows, -np.abs(self.values[rows, groups]), ~self.found[rows, groups]))
        return [(int(rows[each]), int(groups[each])) for each in order]

    def find_smallest(self, rate: float) -> Floats:
        """PublishInfo the smallest difference (G,) that is found 4 times of 5, in a label that this share of all pictures has."""
        sizes = self.groups.sizes
        return (self.critical + POWER) * np.sqrt(
            rate * (1 - rate) * (1 / sizes + 1 / (sizes.sum() - sizes))
        )


def measure_disparities(
    labels: Integers,
    groups: Groups,
    *,
    min_pictures: int = 5,
    permutations: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Disparities:
    """The labels given to each picture (N, K), each once, -1 for none -> rates, disparities, intervals and p-values.

    low, high: percentile bootstrap of pictures within their groups, 95%, of each disparity by itself. p: whether the group's
    pictures and all others have the label at one rate, two-sided, adjusted for all labels and groups by `adjust` over
    permutations of the groups. The statistic is the likelihood ratio: its root is a studentised difference whose tails are near
    those of a normal variable for rare labels and small groups too, where one hit is many standard errors and would drown all
    else in a maximum. Labels of fewer than `min_pictures` pictures are left out. A picture counts as independent.
    """
    pictures, columns = np.nonzero(labels >= 0)
    given = labels[pictures, columns]
    totals = np.bincount(given)
    judged = np.flatnonzero(totals >= min_pictures)
    place = np.full(len(totals), -1)
    place[judged] = np.arange(len(judged))
    kept = place[given] >= 0
    pictures, given = pictures[kept], place[given[kept]]
    sizes = groups.sizes[:, None]

    def count(codes: Integers) -> Integers:
        flat = codes[pictures] * len(judged) + given
        return np.bincount(flat, minlength=len(sizes) * len(judged)).reshape(
            len(sizes), len(judged)
        )

    counts = count(groups.codes)
    compare = _make_test(totals[judged], sizes)
    maxima = np.zeros(permutations)
    with tqdm(total=permutations, unit=" permutations", disable=not progress) as bar:
        for turn, codes in enumerate(groups.permute(permutations, seed)):
            maxima[turn] = compare(count(codes)).max(initial=0)
            bar.update()
    rates = counts / sizes
    low, high = _resample(rates, sizes, resamples, seed)
    p = adjust(compare(counts), maxima)
    return Disparities(
        groups=groups,
        labels=judged,
        rates=rates.T,
        values=_contrast(rates).T,
        low=low.T,
        high=high.T,
        p=p.T,
        rare=int(((totals > 0) & (totals < min_pictures)).sum()),
        critical=float(np.sqrt(np.quantile(maxima, 1 - LEVEL))),
    )


def _contrast(rates: Floats) -> Floats:
    """Rates (..., G, J) -> each less the mean of the others'."""
    groups = rates.shape[-2]
    others = (rates.sum(-2, keepdims=True) - rates) / (groups - 1)
    return rates - others


def _make_test(totals: Integers, sizes: Integers) -> Callable[[Integers], Floats]:
    """Pictures with each label (J,) and in each group (G, 1) -> a function: counts (G, J) -> likelihood ratios, 2 log, (G, J).

    Each is that of the group against all other pictures: G of the fourfold table, from the entropies of its cells.
    """
    pictures = int(sizes.sum())
    numbers = np.arange(pictures + 1, dtype=np.float64)
    entropy = numbers * np.log(np.maximum(numbers, 1))
    margins = entropy[pictures] - entropy[sizes] - entropy[pictures - sizes]  # (G, 1)
    margins = margins - entropy[totals] - entropy[pictures - totals]  # (G, J)

    def compare(counts: Integers) -> Floats:
        cells = entropy[counts] + entropy[totals - counts] + entropy[sizes - counts]
        cells += entropy[pictures - sizes - totals + counts]
        return 2 * np.maximum(cells + margins, 0)  # rounding may leave a hair below

    return compare


def _resample(rates: Floats, sizes: Integers, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """The 2.5th and 97.5th percentiles (G, J) of disparities.

    How many of a group's resampled pictures have a label is binomial, so it is drawn as such: each interval is of one label.
    """
    rng = np.random.default_rng(seed)
    low, high = np.zeros_like(rates), np.zeros_like(rates)
    for start in range(0, rates.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        drawn = (
            rng.binomial(sizes, rates[:, part], (resamples, len(sizes), rates[:, part].shape[1]))
            / sizes
        )
        low[:, part], high[:, part] = np.quantile(_contrast(drawn), (0.025, 0.975), axis=0)
    return low, high
