"""Which group each picture is of, as its user says, and how the groups would fall if they did not matter.

Axes: N pictures, G groups, P permutations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swag_models.errors import ConfigError

SLACK = 1e-6  # equal statistics of two groups or labels may differ by rounding, and ties must count


@dataclass(frozen=True, eq=False)
class Groups:
    """codes (N,): the group of each picture, an index of `names`."""

    codes: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Pictures of each group (G,)."""
        return np.bincount(self.codes, minlength=len(self.names))

    def keep_large(self, minimum: int) -> tuple[NDArray[np.bool_], Groups, Mapping[str, int]]:
        """Which pictures are of groups of at least that size (N,), the groups of those, and the size of each other group.

        ConfigError unless two groups are left.
        """
        if minimum < 2:
            raise ConfigError(
                f"min_group is {minimum}; groups of fewer than 2 pictures cannot be compared: give 2 or more"
            )
        large = self.sizes >= minimum
        if large.sum() < 2:
            sizes = (
                ", ".join(
                    f"{name} {size}" for name, size in zip(self.names[:10], self.sizes.tolist())
                )
                or "none"
            )
            raise ConfigError(
                f"groups of {minimum} pictures or more: {large.sum()}; two are needed to compare (pictures of each: {sizes}); "
                "give another group column, more pictures, or a smaller min_group"
            )
        mask = large[self.codes]
        names = tuple(name for name, keep in zip(self.names, large) if keep)
        small = {
            name: size
            for name, size, keep in zip(self.names, self.sizes.tolist(), large)
            if not keep
        }
        return mask, Groups((np.cumsum(large) - 1)[self.codes[mask]], names), small

    def permute(self, permutations: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """P times the codes (N,) in a random order."""
        rng = np.random.default_rng(seed)
        for _ in range(permutations):
            yield rng.permutation(self.codes)


def adjust(statistics: NDArray[np.float64], maxima: NDArray[np.float64]) -> NDArray[np.float64]:
    """Statistics of any shape, and the largest of each permutation (P,) -> p-values of that shape, for all of them at once.

    The share of permutations, the observed order among them, whose largest is no smaller: single-step max-T of Westfall and
    Young (1993), which keeps the chance of any false finding, however the statistics hang together. With the observed order
    counted in, no p-value is 0 (Phipson and Smyth, 2010).
    """
    above = len(maxima) - np.searchsorted(np.sort(maxima), statistics - SLACK, "left")
    return (1 + above) / (1 + len(maxima))
