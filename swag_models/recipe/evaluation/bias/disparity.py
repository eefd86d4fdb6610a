"""Label disparities between groups of images: rates, intervals and corrected p-values.

The rate of a label in a group is the share of the group's images with this label. Its disparity is
the rate minus the unweighted mean of the other groups' rates: the label association of Fairness
Indicators (https://arxiv.org/abs/2202.07603).

Axes: N images, K labels of an image (at most), J tested labels, G groups, P permutations,
R resamples.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swag_models.errors import ConfigError
from swag_models.hub.progress import make_bar

SIGNIFICANCE_LEVEL = 0.05  # probability of at least one false finding in a table
# Number of standard errors above the critical value at which 80% of disparities are detected: the
# 80% quantile of the normal distribution.
POWER_QUANTILE = 0.84
LABELS_PER_CHUNK = 256  # resampled at a time, which limits memory to R * G * 256 values
# Equal statistics of two groups or labels may differ by rounding, and ties must count as ties.
TIE_TOLERANCE = 1e-6

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each image.

    Attributes:
        codes: (N,), indices of `names`.
        names: names of the groups (G).
    """

    codes: Integers
    names: tuple[str, ...]

    @property
    def sizes(self) -> Integers:
        """Number of images of each group (G,)."""
        return np.bincount(self.codes, minlength=len(self.names))

    def keep_large(self, min_size: int) -> "tuple[Mask, Groups, Mapping[str, int]]":
        """Drop groups of fewer than `min_size` images.

        Args:
            min_size: number of images, 2 or more.

        Returns:
            Whether each image is kept (N,), the groups of the kept images, and the size of each
            dropped group by name.

        Raises:
            ConfigError: `min_size` is below 2, or fewer than two groups remain.
        """
        if min_size < 2:
            raise ConfigError(
                f"invalid min_group {min_size}: allowed: 2 or more; "
                "a single image cannot be compared with other groups"
            )
        is_large = self.sizes >= min_size
        if is_large.sum() < 2:
            sizes = zip(self.names[:10], self.sizes.tolist())
            text = ", ".join(f"{name} {size}" for name, size in sizes) or "none"
            raise ConfigError(
                f"groups of {min_size} images or more: {is_large.sum()}, but a comparison needs "
                f"two (images of each group: {text}); choose another group column, add images, or "
                "lower min_group"
            )
        mask = is_large[self.codes]
        names = tuple(name for name, large in zip(self.names, is_large) if large)
        small = {
            name: size
            for name, size, large in zip(self.names, self.sizes.tolist(), is_large)
            if not large
        }
        new_codes = np.cumsum(is_large) - 1  # (G,): old code -> code among the large groups
        return mask, Groups(new_codes[self.codes[mask]], names), small

    def permute(self, permutations: int, seed: int) -> Iterator[Integers]:
        """Yield the codes in random orders.

        Args:
            permutations: P, the number of orders.
            seed: the same seed gives the same orders.

        Yields:
            (N,), a permutation of `codes`.
        """
        rng = np.random.default_rng(seed)
        for _ in range(permutations):
            yield rng.permutation(self.codes)


@dataclass(frozen=True, eq=False)
class Disparities:
    """Rates and disparities of the tested labels; see `measure_disparities`.

    Attributes:
        groups: the compared groups.
        labels: (J,), class indices of the tested labels.
        rates: (J, G), from 0 to 1.
        values: (J, G), disparities, from -1 to 1.
        low: (J, G), lower end of the 95% interval of each disparity.
        high: (J, G), upper end.
        p: (J, G), p-values corrected for all labels and groups.
        rare: number of labels that some images have, but too few to be tested.
        critical: studentised disparity from which on a disparity is significant.
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
    def significant(self) -> Mask:
        """Which disparities are beyond chance (J, G)."""
        return self.p <= SIGNIFICANCE_LEVEL

    def rank(self) -> list[tuple[int, int]]:
        """List (row, group) of every disparity: significant ones first, then by size.

        With two groups, the disparities of a label differ only in sign, so only the positive one is
        listed.
        """
        two_groups = len(self.groups.names) == 2
        listed = self.values > 0 if two_groups else np.ones_like(self.significant)
        rows, groups = np.nonzero(listed)
        sizes = np.abs(self.values[rows, groups])
        order = np.lexsort((rows, -sizes, ~self.significant[rows, groups]))
        return [(int(rows[index]), int(groups[index])) for index in order]

    def find_smallest(self, rate: float) -> Floats:
        """Estimate the smallest detectable difference between each group and all other images.

        Args:
            rate: share of all images that have the label.

        Returns:
            (G,), the differences that are significant in 4 of 5 samples.
        """
        sizes = self.groups.sizes
        error = np.sqrt(rate * (1 - rate) * (1 / sizes + 1 / (sizes.sum() - sizes)))
        return (self.critical + POWER_QUANTILE) * error


def measure_disparities(
    labels: Integers,
    groups: Groups,
    *,
    min_images: int = 5,
    permutations: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Disparities:
    """Compare the rates of labels between groups. Images are assumed to be independent.

    The p-values are two-sided, for the hypothesis that a group's images and all other images have
    the label at the same rate, corrected for all labels and groups by `adjust_p_values`.

    Args:
        labels: (N, K), class indices of the labels of each image, without repeats; -1 for none.
        groups: groups of the N images.
        min_images: minimum number of images of a label; rarer ones are not tested.
        permutations: P, the number of permutations of the groups, for the p-values.
        resamples: R, the number of bootstrap samples of the images within each group, for the 95%
            intervals (percentiles, of each disparity separately).
        seed: seed of permutations and resampling.
        progress: whether to show a progress bar.
    """
    images, columns = np.nonzero(labels >= 0)
    image_labels = labels[images, columns]
    totals = np.bincount(image_labels)
    tested = np.flatnonzero(totals >= min_images)
    rows = np.full(len(totals), -1)  # class index -> row of the result, -1 if not tested
    rows[tested] = np.arange(len(tested))
    is_tested = rows[image_labels] >= 0
    images, label_rows = images[is_tested], rows[image_labels[is_tested]]
    sizes = groups.sizes[:, None]

    def count_labels(codes: Integers) -> Integers:
        cells = codes[images] * len(tested) + label_rows
        counts = np.bincount(cells, minlength=len(sizes) * len(tested))
        return counts.reshape(len(sizes), len(tested))

    counts = count_labels(groups.codes)
    compute_ratios = _make_likelihood_ratio(totals[tested], sizes)
    maxima = np.zeros(permutations)
    with make_bar(progress, total=permutations, unit=" permutations") as bar:
        for index, codes in enumerate(groups.permute(permutations, seed)):
            maxima[index] = compute_ratios(count_labels(codes)).max(initial=0)
            bar.update()
    rates = counts / sizes
    low, high = _bootstrap(rates, sizes, resamples, seed)
    p = adjust_p_values(compute_ratios(counts), maxima)
    return Disparities(
        groups=groups,
        labels=tested,
        rates=rates.T,
        values=_subtract_others(rates).T,
        low=low.T,
        high=high.T,
        p=p.T,
        rare=int(((totals > 0) & (totals < min_images)).sum()),
        critical=float(np.sqrt(np.quantile(maxima, 1 - SIGNIFICANCE_LEVEL))),
    )


def adjust_p_values(statistics: Floats, maxima: Floats) -> Floats:
    """P-values corrected for testing many hypotheses at once: Westfall and Young's max-T (1993).

    A p-value is the share of permutations whose largest statistic is at least as large as the
    observed one (single step). This bounds the probability of any false finding, regardless of
    correlations between the statistics.

    Args:
        statistics: observed values, of any shape.
        maxima: (P,), the largest statistic of each permutation.

    Returns:
        P-values of the shape of `statistics`.
    """
    above = len(maxima) - np.searchsorted(np.sort(maxima), statistics - TIE_TOLERANCE, "left")
    # the observed order counts as one permutation, so that no p-value is 0 (Phipson and Smyth 2010)
    return (1 + above) / (1 + len(maxima))


def _subtract_others(rates: Floats) -> Floats:
    """Rates (..., G, J), each minus the mean of the other groups' rates."""
    groups = rates.shape[-2]
    mean_other_rates = (rates.sum(-2, keepdims=True) - rates) / (groups - 1)
    return rates - mean_other_rates


def _make_likelihood_ratio(totals: Integers, sizes: Integers) -> Callable[[Integers], Floats]:
    """Make the test statistic: a function from counts (G, J) to likelihood ratios 2 log L (G, J).

    Each compares a group with all other images: the G statistic of the 2 x 2 table, computed from
    the entropies of its cells. Its root is a studentised difference.

    Args:
        totals: (J,), images with each label.
        sizes: (G, 1), images of each group.
    """
    # A difference divided by its standard error is not suitable: a single image with a rare label
    # in a small group can be many standard errors, which would dominate the maximum over all
    # labels. The root of the ratio is nearly normal, even for rare labels and small groups.
    images = int(sizes.sum())
    numbers = np.arange(images + 1, dtype=np.float64)
    entropy = numbers * np.log(np.maximum(numbers, 1))  # n log n of every possible count
    margins = entropy[images] - entropy[sizes] - entropy[images - sizes]  # (G, 1)
    margins = margins - entropy[totals] - entropy[images - totals]  # (G, J)

    def compute_ratios(counts: Integers) -> Floats:
        cells = entropy[counts] + entropy[totals - counts] + entropy[sizes - counts]
        cells += entropy[images - sizes - totals + counts]
        return 2 * np.maximum(cells + margins, 0)  # rounding may produce a value just below 0

    return compute_ratios


def _bootstrap(rates: Floats, sizes: Integers, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """The 2.5th and 97.5th percentiles (G, J) of disparities over bootstrap samples."""
    rng = np.random.default_rng(seed)
    low, high = np.zeros_like(rates), np.zeros_like(rates)
    for start in range(0, rates.shape[1], LABELS_PER_CHUNK):
        chunk = slice(start, start + LABELS_PER_CHUNK)
        # The number of a group's resampled images with a label is binomial, so this number is
        # drawn, not the images. Labels are drawn independently, because each interval is for one.
        size = (resamples, len(sizes), rates[:, chunk].shape[1])
        resampled = rng.binomial(sizes, rates[:, chunk], size) / sizes  # (R, G, chunk)
        low[:, chunk], high[:, chunk] = np.quantile(
            _subtract_others(resampled), (0.025, 0.975), axis=0
        )
    return low, high
