"""Platt scaling without labels: biases that make all hashtags equally frequent predictions.

Axes: N images, K hashtags.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.recipe.evaluation.stored_rows import StoredRows

VALUES_PER_BLOCK = 2**22  # in float64: 32 MiB; about ten such arrays exist at once
MAX_CALIBRATION_STEPS = 1000

logger = logging.getLogger("swag_models")


class PlattScaling(NamedTuple):
    """Calibrated probabilities are softmax(scale * logits + bias).

    Attributes:
        scale: factor of the logits.
        bias: (K,), float64. Its mean is 0, since a softmax does not depend on a constant.
    """

    scale: float
    bias: Tensor

    def apply(self, logits: Tensor) -> Tensor:
        """Calibrate logits.

        Args:
            logits: (N, K).

        Returns:
            Probabilities (N, K), float64.
        """
        return (self.scale * logits.double() + self.bias).softmax(1)


def fit_platt(
    logits: Tensor | StoredRows,
    *,
    scale: float = 1.0,
    tolerance: float = 1e-3,
    max_steps: int = MAX_CALIBRATION_STEPS,
) -> PlattScaling:
    """Fit biases that make the mean softmax over unlabelled images uniform.

    The SWAG paper mentions "Platt scaling" on unlabelled images, but states neither what is fitted
    nor how. This is our interpretation: hashtags are not equally frequent in training, and the
    biases compensate for that. It is for models with a softmax, not for those with a sigmoid for
    each hashtag.

    Args:
        logits: (N, K).
        scale: factor of the logits, which is not fitted.
        tolerance: largest relative difference of a hashtag's mean probability from 1/K.
        max_steps: maximum number of steps, each of which reads all logits. A few steps usually
            suffice, or hundreds if the softmax is very confident.

    Raises:
        ConfigError: the biases have not converged after `max_steps`.
    """
    # Each step lowers bias k by log(K * mean probability of k). Softmax and this step together are
    # Sinkhorn's scaling of exp(scale * logits) to rows of sum 1 and columns of sum N / K (Sinkhorn
    # 1967), which converges: the biases exist and are unique up to a constant.
    num_images, num_hashtags = logits.shape
    assert num_images
    if num_images < num_hashtags:
        # The biases exist, but are unreliable: there is less than one image per hashtag.
        logger.warning(
            "Platt scaling was fitted on %s for %s; use at least as many images "
            "as hashtags, or switch it off",
            count_noun(num_images, "image"),
            count_noun(num_hashtags, "hashtag"),
        )
    platt = PlattScaling(scale, torch.zeros(num_hashtags, dtype=torch.float64))
    for _ in range(max_steps):
        total = torch.zeros(num_hashtags, dtype=torch.float64)
        for block in split_blocks(logits):
            total += platt.apply(block).sum(0)
        ratio = num_hashtags * total / num_images  # (K,), 1 if uniform
        if (error := (ratio - 1).abs().max().item()) <= tolerance:
            return platt
        # clamped, because the mean probability of a hashtag can underflow to 0
        bias = platt.bias - ratio.clamp(min=1e-300).log()
        platt = PlattScaling(scale, bias - bias.mean())
    raise ConfigError(
        f"Platt scaling did not converge in {max_steps} steps: the softmax is so confident that "
        f"the mean probability of a hashtag over {count_noun(num_images, 'image')} still differs "
        f"by {error:.1%} from 1/{num_hashtags}; use more images, a scale below {scale:g} or a "
        f"tolerance above {tolerance:g}, or switch it off"
    )


def split_blocks(logits: Tensor | StoredRows, width: int = 0) -> Iterator[Tensor]:
    """Split rows into blocks that bound the memory of float64 intermediate values.

    Args:
        logits: (N, K), in memory or stored.
        width: number of intermediate values per row; at least K are assumed.
    """
    count = max(1, VALUES_PER_BLOCK // max(width, logits.shape[1]))
    if isinstance(logits, Tensor):
        return iter(torch.split(logits, count))
    return map(torch.from_numpy, logits.split(count))
