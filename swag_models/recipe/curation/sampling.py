"""How often an image is seen in an epoch: repeat factors from hashtag frequencies, and copies from repeat factors.

Source: Mahajan et al. 2018 (arXiv 1805.00932), section 2.2, and Singh et al. 2022 (arXiv 2201.08371), section 3. That a
factor is scaled to the length of an epoch, and how shares of tail and head are met, is our reading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swag_models.errors import ConfigError

# The weight of a hashtag that f images carry is f to the power of minus this.
EXPONENTS = {"natural": 0.0, "sqrt": 0.5, "uniform": 1.0}
EPOCH_RATIO = (
    5 / 3.6
)  # samples in an epoch per unique image: "about 5 billion samples" of 3.6 billion images
TAIL_BELOW = 5000  # images; a hashtag with fewer is of the tail (our reading)
STEPS = (
    2**16
)  # factors are multiples of 1 / STEPS, so that their sums are exact in every order and on every engine


@dataclass(frozen=True)
class Sampling:
    """How images are resampled.

    kind: "natural" (every image alike), "sqrt" (inverse square root of frequency) or "uniform" (inverse frequency).
    epoch_ratio: samples in an epoch per unique image, to which all factors are scaled; a factor below 1 is the share of epochs
        in which the image is seen.
    threshold: images; with "sqrt" only. Nothing is scaled then: the factor of a hashtag that f images carry is
        max(1, sqrt(threshold / f)).
    tail_share: share of an epoch that images of the tail make up, whose rarest hashtag has fewer than `tail_below` images.
    """

    kind: str = "sqrt"
    epoch_ratio: float = EPOCH_RATIO
    threshold: float | None = None
    tail_share: float | None = None
    tail_below: int = TAIL_BELOW

    def __post_init__(self) -> None:
        if self.kind not in EXPONENTS:
            raise ConfigError(
                f"sampling {self.kind!r} is not known; it is one of: {', '.join(EXPONENTS)}"
            )
        if not (math.isfinite(self.epoch_ratio) and self.epoch_ratio > 0):
            raise ConfigError(
                f"epoch_ratio {self.epoch_ratio} is not a positive number of samples per image"
            )
        if self.threshold is not None and not (
            math.isfinite(self.threshold) and self.threshold > 0
        ):
            raise ConfigError(f"threshold {self.threshold} is not a positive number of images")
        if self.threshold is not None and self.kind != "sqrt":
            raise ConfigError(
                f"threshold is a rule of sampling 'sqrt', not {self.kind!r}; leave one of them out"
            )
        if self.tail_share is not None and not 0 <= self.tail_share <= 1:
            raise ConfigError(f"tail_share {self.tail_share} is not a share between 0 and 1")
        if self.threshold is not None and self.tail_share is not None:
            raise ConfigError(
                "threshold and tail_share exclude each other: a threshold leaves nothing to scale"
            )


def repeat_factors(counts: Sequence[int], rarest: Sequence[int], sampling: Sampling) -> list[float]:
    """The repeat factor of every class; an image's is that of its rarest class, which is the largest of its classes' factors.

    counts: images that carry each class, falling. rarest: images whose rarest class (the last in that order) it is.
    """
    exponent, images = EXPONENTS[sampling.kind], sum(rarest)
    if not images:
        return [0.0] * len(counts)
    if sampling.threshold is not None:
        return [_quantise(max(1.0, math.sqrt(sampling.threshold / count))) for count in counts]
    weights = [count**-exponent for count in counts]
    length = sampling.epoch_ratio * images
    if sampling.tail_share is None:
        scale = length / _total(weights, rarest)
        return [_quantise(weight * scale) for weight in weights]
    tail = [count < sampling.tail_below for count in counts]
    scales = {}
    for of_tail, share in ((True, sampling.tail_share), (False, 1 - sampling.tail_share)):
        total = _total(
            weights,
            [number if kind == of_tail else 0 for number, kind in zip(rarest, tail, strict=True)],
        )
        if not total and share:
            place = "fewer" if of_tail else "at least"
            raise ConfigError(
                f"tail_share {sampling.tail_share} cannot be met: no image's rarest hashtag has {place} than "
                f"{sampling.tail_below} images; change tail_below"
            )
        scales[of_tail] = share * length / total if total else 0.0
    return [_quantise(weight * scales[kind]) for weight, kind in zip(weights, tail, strict=True)]


def _total(weights: Sequence[float], rarest: Sequence[int]) -> float:
    return math.fsum(weight * number for weight, number in zip(weights, rarest, strict=True))


def _quantise(factor: float) -> float:
    """To a multiple of 1 / STEPS, and above 0."""
    return max(1, round(factor * STEPS)) / STEPS
