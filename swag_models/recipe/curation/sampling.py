"""Repeat factors: how often an image is seen in an epoch, from the frequency of its hashtags.

Sources: Mahajan et al. 2018 (arXiv 1805.00932), section 2.2, and Singh et al. 2022
(arXiv 2201.08371), section 3. The papers do not state how factors are scaled to the length of an
epoch, or how shares of tail and head are reached; both are choices of this library. "metaclip" is
the balancing of Xu et al. 2023 (arXiv 2309.16671), whose code keeps an image with the probability
1 - product(1 - min(1, t / f)) over its hashtags, of f images each: that some of them keeps it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swag_models.errors import ConfigError

# The weight of a hashtag of f images is f to the power of minus this.
EXPONENTS = {"natural": 0.0, "sqrt": 0.5, "uniform": 1.0}
KINDS = (*EXPONENTS, "metaclip")
# Samples in an epoch per unique image. Singh et al.: "about 5 billion samples" of 3.6 billion
# images.
EPOCH_RATIO = 5 / 3.6
TAIL_BELOW = 5000  # images; hashtags with fewer belong to the tail (not from the papers)
# Factors are multiples of 1 / FACTOR_STEPS, which float64 adds without rounding, so that sums
# are equal in any order, in Python, DuckDB and Spark.
FACTOR_STEPS = 2**16
# Share of all labels below the threshold of "metaclip", if none is given. MetaCLIP's 20,000 leaves
# 0.32 of its 5.67 billion matches (6%) below it, and for larger pools it keeps that share.
METACLIP_TAIL = 0.06
# -log(1 - p) of a class is a multiple of 1 / LOG_STEPS, for the same reason. From CERTAIN on, the
# probability of an image rounds to 1.
LOG_STEPS, CERTAIN = 2**20, 12


@dataclass(frozen=True)
class Sampling:
    """How images are resampled.

    Args:
        kind: weight of a hashtag of f images: "natural" (1), "sqrt" (1 / sqrt(f)), "uniform"
            (1 / f), or "metaclip" (min(1, t / f)). The weight of an image is that of its rarest
            hashtag; with "metaclip" it is the probability that at least one hashtag keeps it, each
            independently with its weight.
        epoch_ratio: samples in an epoch per unique image; all factors are scaled to it. An image
            with a factor below 1 is seen in that share of the epochs. The default is EPOCH_RATIO,
            and for "metaclip" None: its factors are the probabilities.
        threshold: number of images t. With "sqrt", the factor of a hashtag of f images is then
            max(1, sqrt(t / f)), without scaling. With "metaclip", see `kind`; by default
            `choose_threshold` chooses it. Not allowed with other kinds.
        tail_share: share of an epoch for images of the tail, whose rarest hashtag has fewer than
            `tail_below` images; None to leave the share unchanged.
        tail_below: number of images below which a hashtag belongs to the tail.

    Raises:
        ConfigError: a value is out of range, or two of them cannot be combined.
    """

    kind: str = "sqrt"
    epoch_ratio: float | None = None
    threshold: float | None = None
    tail_share: float | None = None
    tail_below: int = TAIL_BELOW

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"invalid sampling {self.kind!r}: allowed: {', '.join(KINDS)}")
        if self.epoch_ratio is None and self.kind != "metaclip":
            object.__setattr__(self, "epoch_ratio", EPOCH_RATIO)
        if self.epoch_ratio is not None and not (
            math.isfinite(self.epoch_ratio) and self.epoch_ratio > 0
        ):
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
        if self.threshold is not None and self.kind not in ("sqrt", "metaclip"):
            raise ConfigError(
                f"threshold is allowed with sampling 'sqrt' and 'metaclip' only, not "
                f"{self.kind!r}; omit one of them"
            )
        if self.tail_share is not None and not 0 <= self.tail_share <= 1:
            raise ConfigError(f"invalid tail_share {self.tail_share}: allowed: 0 to 1")
        if self.kind == "metaclip" and self.tail_share is not None:
            raise ConfigError(
                "tail_share cannot be combined with sampling 'metaclip', whose threshold decides "
                "the share of the tail; omit one of them"
            )
        if self.threshold is not None and self.tail_share is not None:
            raise ConfigError(
                "threshold and tail_share cannot be combined, since factors are not scaled with a "
                "threshold; omit one of them"
            )


def repeat_factors(counts: Sequence[int], rarest: Sequence[int], sampling: Sampling) -> list[float]:
    """Compute the repeat factor of every class, for all kinds but "metaclip".

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
        return [round_factor(max(1.0, math.sqrt(sampling.threshold / count))) for count in counts]
    weights = [count**-exponent for count in counts]
    assert sampling.epoch_ratio is not None
    epoch_length = sampling.epoch_ratio * images  # samples
    if sampling.tail_share is None:
        scale = epoch_length / _sum_products(weights, rarest)
        return [round_factor(weight * scale) for weight in weights]
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
        round_factor(weight * scales[tail]) for weight, tail in zip(weights, in_tail, strict=True)
    ]


def _sum_products(weights: Sequence[float], numbers: Sequence[int]) -> float:
    return math.fsum(weight * number for weight, number in zip(weights, numbers, strict=True))


def choose_threshold(counts: Sequence[int]) -> int:
    """Choose the threshold of "metaclip": the tail has at most METACLIP_TAIL of all labels.

    MetaCLIP's numbers are for pools of billions; the share of the tail serves pools of any size.

    Args:
        counts: number of images of each class.

    Returns:
        The largest number of images of a class such that all smaller classes together have at most
        that share of the labels; 1 without classes.
    """
    below, total, chosen = 0, sum(counts), 1
    for count, classes in sorted(Counter(counts).items()):
        if below > METACLIP_TAIL * total:
            break
        chosen, below = count, below + count * classes
    return chosen


def weigh_classes_metaclip(counts: Sequence[int], threshold: float) -> list[int]:
    """Compute -log(1 - min(1, t / f)) of every class of f images, in steps of 1 / LOG_STEPS.

    The sum over the classes of an image is -log of the probability that none of them keeps it.

    Args:
        counts: number of images of each class.
        threshold: the number of images t.
    """
    return [
        CERTAIN * LOG_STEPS
        if count <= threshold
        else min(CERTAIN * LOG_STEPS, round(-math.log1p(-threshold / count) * LOG_STEPS))
        for count in counts
    ]


def count_steps_metaclip(total: int) -> int:
    """Probability that an image is kept, in steps of 1 / FACTOR_STEPS, at least one.

    `queries.gather_kept` computes it for all images. No total gives a number halfway between two
    steps, so that the last digits of exp(), which differ between engines, do not matter.

    Args:
        total: the sum of the weights of its classes.
    """
    return max(1, round(FACTOR_STEPS * (1 - math.exp(-total / LOG_STEPS))))


def scale_metaclip(images: Mapping[int, int], sampling: Sampling) -> float:
    """The number by which probabilities are multiplied to get factors.

    Args:
        images: number of images by their steps, see `count_steps_metaclip`.
        sampling: the length of an epoch.
    """
    if sampling.epoch_ratio is None:
        return 1.0
    kept = sum(steps * number for steps, number in images.items()) / FACTOR_STEPS
    return sampling.epoch_ratio * sum(images.values()) / kept if kept else 1.0


def round_factor(factor: float) -> float:
    """Round to a multiple of 1 / FACTOR_STEPS that is not 0, so that no class disappears."""
    return max(1, round(factor * FACTOR_STEPS)) / FACTOR_STEPS
