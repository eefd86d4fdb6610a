"""Platt scaling without labels: a bias for each hashtag, so that none is predicted more often than another.

Axes: N pictures, K hashtags.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from swag_models.errors import ConfigError

BLOCK = 2**22  # float64 values at a time: 32 MiB
MAX_STEPS = 1000

logger = logging.getLogger("swag_models")


class PlattScaling(NamedTuple):
    """scale * logits + bias. bias: float64 (K,), with mean 0, since a softmax does not see a constant."""

    scale: float
    bias: Tensor

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (N, K) -> probabilities (N, K), float64."""
        return (self.scale * logits.double() + self.bias).softmax(1)


def fit_platt(
    logits: Tensor, *, scale: float = 1.0, tolerance: float = 1e-3, max_steps: int = MAX_STEPS
) -> PlattScaling:
    """The biases with which the mean softmax over these pictures (N, K) is uniform: hashtags are not, and this undoes it.

    That is our reading of the paper's "Platt scaling" on unlabelled pictures, which says neither what is fitted nor how. Here
    the scale is given, and bias_k falls by log(K * mean probability of k) until no mean is off 1/K by more than `tolerance` of
    it. Softmax and this step in turn are Sinkhorn's scaling of exp(scale * logits) to rows of sum 1 and columns of sum N/K
    (Sinkhorn 1967): the biases exist, are unique up to a constant, and are reached. With fewer pictures than
    hashtags they exist too, but say little, since each picture has to stand for several hashtags: that is logged. A hashtag
    that is improbable everywhere is raised as far as it takes. For models with a softmax, not with a sigmoid for each hashtag.

    All logits are gone through in each step, a block at a time. A few steps do, or hundreds if the softmax is sure.
    ConfigError if `max_steps` do not suffice.
    """
    count, classes = logits.shape
    assert count
    if count < classes:
        logger.warning(
            "Platt scaling on %d pictures for %d hashtags: each has to stand for several; give more, or switch it off",
            count,
            classes,
        )
    platt = PlattScaling(scale, torch.zeros(classes, dtype=torch.float64))
    for _ in range(max_steps):
        excess = (
            classes
            * torch.stack([platt.apply(block).sum(0) for block in split_blocks(logits)]).sum(0)
            / count
        )
        if (worst := (excess - 1).abs().max().item()) <= tolerance:
            return platt
        bias = platt.bias - excess.clamp(min=1e-300).log()
        platt = PlattScaling(scale, bias - bias.mean())
    raise ConfigError(
        f"Platt scaling did not converge in {max_steps} steps: the softmax is so sure that the mean probability of a hashtag "
        f"over {count} pictures is still {worst:.1%} off 1/{classes}; give more pictures, a scale below {scale:g} or a "
        f"tolerance above {tolerance:g}, or switch it off"
    )


def split_blocks(logits: Tensor, width: int = 0) -> Iterator[Tensor]:
    """Rows (n, K), in order, as many at a time as leave room for `width` values of each, at least K."""
    return iter(torch.split(logits, max(1, BLOCK // max(width, logits.shape[1]))))
