"""Repeat factors: how often an image is seen in an epoch, from the frequency of its hashtags.

Sources: Mahajan et al. 2018 (arXiv 1805.00932), section 2.2, and Singh et al. 2022
(arXiv 2201.08371), section 3. The papers do not state how factors are scaled to the length of an
epoch, or how shares of tail and head are reached; both are choices of this library.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swag_models.errors import ConfigError

# The weight of a hashtag of f images is f to the power of minus this.
EXPONENTS = {"natural": 0.0, "sqrt": 0.5, "uniform": 1.0}
# Samples in an epoch per unique image. Singh et al.: "about 5 billion samples" of 3.6 billion
# images.
EPOCH_RATIO = 5 / 3.6
TAIL_BELOW = 5000  # images; hashtags with fewer belong to the tail (not from the papers)
# Factors are multiples of 1 / FACTOR_STEPS, which float64 adds without rounding, so that sums
# are equal in any order, in Python, DuckDB and Spark.
FACTOR_STEPS = 2**16


@dataclass(frozen=True)
class Sampling:
    """How images are resampled.

    Args:
        kind: weight of a hashtag of f images: "natural" (1), "sqrt" (1 / sqrt(f)) or "uniform"
            (1 / f).
        epoch_ratio: samples in an epoch per unique image; all factors are scaled to it. An image
            with a factor below 1 is seen in that share of the epochs.
        threshold: number of images t, with "sqrt" only. The factor of a hashtag of f images is
            then max(1, sqrt(t / f)), without scaling.
        tail_share: share of an epoch for images of the tail, whose rarest hashtag has fewer than
            `tail_below` images; None to leave the share unchanged.
        tail_below: number of images below which a hashtag belongs to the tail.

    Raises:
        ConfigError: a value is out of range, or two of them cannot be combined.
    """

    kind: str = "sqrt"
    epoch_ratio: float = EPOCH_RATIO
    threshold: float | None = None
    tail_share: float | None = None
    tail_below: int = TAIL_BELOW

    def __post_init__(self) -> None:
        if self.kind not in EXPONENTS:
            raise ConfigError(f"invalid sampling {self.kind!r}: allowed: {', '.join(EXPONENTS)}")
        if not (math.isfinite(self.epoch_ratio) and self.epoch_ratio > 0):
            raise ConfigError(
                f"invalid epoch_ratio {self.epoch_ratio}: allowed: a positive number of samples "
                "per image"
            )
        if self.threshold is not None and not (
            math.isfinite(self.threshold) and self.threshold > 0
        ):
            raise ConfigError(
                f"invalid threshold {self.threshold}: allowed: a positive number of images"
            )
        if self.threshold is not None and self.kind != "sqrt":
            raise ConfigError(
                f"threshold is allowed with sampling 'sqrt' only, not {self.kind!r}; "
                "omit one of them"
            )
        if self.tail_share is not None and not 0 <= self.tail_share <= 1:
            raise ConfigError(f"invalid tail_share {self.tail_share}: allowed: 0 to 1")
        if self.threshold is not None and self.tail_share is not None:
            raise ConfigError(
                "threshold and tail_share cannot be combined, since factors are not scaled with a "
                "threshold; omit one of them"
            )


def repeat_factors(counts: Sequence[int], rarest: Sequence[int], sampling: Sampling) -> list[float]:
    """Compute the repeat factor of every class.

    An image's factor is that of its rarest class, which is the largest of its classes' factors.

    Args:
        counts: number of images of each class, in descending order.
        rarest: for each class, the number of images whose rarest class (the last in this order)
            is this one.
        sampling: how images are resampled.

    Returns:
        A factor for each class, a multiple of 1 / FACTOR_STEPS.

    Raises:
        ConfigError: `tail_share` cannot be reached, since no image belongs to the tail or the head.
    """
    exponent, images = EXPONENTS[sampling.kind], sum(rarest)
    if not images:
        return [0.0] * len(counts)
    if sampling.threshold is not None:
        return [_round_factor(max(1.0, math.sqrt(sampling.threshold / count))) for count in counts]
    weights = [count**-exponent for count in counts]
    epoch_length = sampling.epoch_ratio * images  # samples
    if sampling.tail_share is None:
        scale = epoch_length / _sum_products(weights, rarest)
        return [_round_factor(weight * scale) for weight in weights]
    in_tail = [count < sampling.tail_below for count in counts]
    scales = {}  # scales of tail (True) and head (False)
    for tail, share in ((True, sampling.tail_share), (False, 1 - sampling.tail_share)):
        total = _sum_products(
            weights,
            [number if part == tail else 0 for number, part in zip(rarest, in_tail, strict=True)],
        )
        if not total and share:
            bound = "fewer than" if tail else "at least"
            raise ConfigError(
                f"tail_share {sampling.tail_share} cannot be reached: no image's rarest hashtag "
                f"has {bound} {sampling.tail_below} images; change tail_below"
            )
        scales[tail] = share * epoch_length / total if total else 0.0
    return [
        _round_factor(weight * scales[tail]) for weight, tail in zip(weights, in_tail, strict=True)
    ]


def _sum_products(weights: Sequence[float], numbers: Sequence[int]) -> float:
    return math.fsum(weight * number for weight, number in zip(weights, numbers, strict=True))


def _round_factor(factor: float) -> float:
    """Round to a multiple of 1 / FACTOR_STEPS that is not 0, so that no class disappears."""
    return max(1, round(factor * FACTOR_STEPS)) / FACTOR_STEPS
