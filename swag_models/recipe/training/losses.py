"""What is minimised: cross-entropy with several classes to an image, or a yes or no for each class, on sparse targets.

Axes: N samples, C classes, M the most classes that a sample of the batch has. Source of the first: Mahajan et al. 2018 (arXiv
1805.00932), section 2.2. No dense (N, C) target is ever made: with 27,000 classes it would cost as much as the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.config import Objective

Kind = Literal["softmax", "sigmoid"]
EXACT = 80.0  # from here on log(1 + exp(z)) is z, in float64 too; torch's own threshold of 20 is off by 2e-9


class Targets(NamedTuple):
    """A sparse target: `classes` (N, M) int64 and what each has, `weights` (N, M) float32. Padding is class 0 of weight 0."""

    classes: Tensor
    weights: Tensor

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Targets:
        return Targets(*(each.to(device, non_blocking=non_blocking) for each in self))


def make_targets(classes: Sequence[Sequence[int]], kind: Kind, num_classes: int) -> Targets:
    """The target of each sample from its classes: for "softmax" 1/K on each of K, for "sigmoid" 1 on each.

    A class that is named twice counts once. ConfigError for a class outside, and for no class at all with "softmax".
    """
    distinct = [list(dict.fromkeys(each)) for each in classes]
    width = max(map(len, distinct), default=0)
    for sample, each in enumerate(distinct):
        if not each and kind == "softmax":
            raise ConfigError(
                f"sample {sample} of the batch has no class; leave it out, or use objective.kind=sigmoid"
            )
        if each and not 0 <= min(each) <= max(each) < num_classes:
            wrong = next(number for number in each if not 0 <= number < num_classes)
            raise ConfigError(
                f"class {wrong} is not of 0 to {num_classes - 1}; give the model a head of all classes"
            )
    weights = [1 / len(each) if kind == "softmax" and each else 1.0 for each in distinct]
    padding = [width - len(each) for each in distinct]
    shape = (len(distinct), width)
    return Targets(
        torch.tensor(
            [each + [0] * pad for each, pad in zip(distinct, padding)], dtype=torch.int64
        ).reshape(shape),
        torch.tensor(
            [
                [weight] * len(each) + [0.0] * pad
                for each, weight, pad in zip(distinct, weights, padding)
            ],
            dtype=torch.float32,
        ).reshape(shape),
    )


def mix(
    images: Tensor, targets: Targets, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Targets]:
    """Mixup (Zhang et al., arXiv 1710.09412): each image (N, ...) with the one at its place in the reversed batch.

    The share that an image keeps is of Beta(alpha, alpha), one for the batch, drawn from a generator of the CPU. Images are
    floats, on any device; targets become (N, 2 M). Nothing changes if alpha is 0.
    """
    assert images.is_floating_point(), "pixels are mixed after they are normalised"
    if not alpha:
        return images, targets
    share = draw_beta(alpha, generator)
    classes, weights = targets
    return images.lerp(images.flip(0), 1 - share), Targets(
        torch.cat([classes, classes.flip(0)], dim=1),  # (N, 2 M)
        torch.cat([weights * share, weights.flip(0) * (1 - share)], dim=1),
    )


def draw_beta(alpha: float, generator: torch.Generator) -> float:
    """A number of Beta(alpha, alpha), for however small an alpha.

    It is x / (x + y) for x and y of Gamma(alpha), which underflow if alpha is small. Gamma(alpha) is Gamma(alpha + 1) times
    a uniform number to the power of 1 / alpha (Marsaglia and Tsang 2000, section 6), whose logarithms do not.
    """
    gammas = torch._standard_gamma(
        torch.full((2,), alpha + 1, dtype=torch.float64), generator=generator
    )
    uniforms = 1 - torch.rand(2, dtype=torch.float64, generator=generator)  # above 0
    x, y = gammas.log() + uniforms.log() / alpha
    return float((x - y).sigmoid())


def compute_losses(objective: Objective, logits: Tensor, targets: Targets) -> Tensor:
    """The loss of each sample (N,) from logits (N, C), in float32, or in float64 if they are.

    "softmax" is cross-entropy, and needs weights that add up to 1; "sigmoid" is the sum of all classes' binary cross-entropies.
    With label smoothing e a target t is (1 - e) t + e / C, or (1 - e) t + e / 2. Beside the logits and their gradient, one
    buffer (N, C) is alive at a time, and two if the logits are of 16 bits.
    """
    return SparseLoss.apply(logits, *targets, objective.kind, objective.label_smoothing)


def count_hits(logits: Tensor, classes: Sequence[Sequence[int]]) -> int:
    """How many samples' largest logit (N, C) is one of their classes."""
    return sum(
        best in each for best, each in zip(logits.argmax(dim=1).tolist(), classes, strict=True)
    )


class SparseLoss(torch.autograd.Function):
    """What `compute_losses` says, with a backward pass that makes the gradient in place and keeps only the logits for it."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, classes: Tensor, weights: Tensor, kind: Kind, smoothing: float
    ) -> Tensor:
        ctx.save_for_backward(logits, classes, weights)
        ctx.kind, ctx.smoothing = kind, smoothing
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scores = (
            logits.log_softmax(1, dtype=dtype) if kind == "softmax" else logits.to(dtype)
        )  # (N, C)
        found = (scores.gather(1, classes) * weights).sum(1)  # (N,)
        losses = (smoothing - 1) * found
        if smoothing:
            losses -= _spread(kind, smoothing, scores) * scores.sum(1)
        if kind == "sigmoid":
            losses += F.softplus(scores, threshold=EXACT).sum(1)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # (N,) -> (N, C)
        logits, classes, weights = ctx.saved_tensors
        gradient = (
            logits.softmax(1, dtype=grad.dtype)
            if ctx.kind == "softmax"
            else logits.to(grad.dtype).sigmoid()
        )
        if ctx.smoothing:
            gradient -= _spread(ctx.kind, ctx.smoothing, logits)
        gradient.scatter_add_(1, classes, ((ctx.smoothing - 1) * weights).to(grad.dtype))
        return gradient.mul_(grad[:, None]).to(logits.dtype), None, None, None, None


def _spread(kind: Kind, smoothing: float, logits: Tensor) -> float:
    """What label smoothing gives every class."""
    return smoothing / (logits.shape[1] if kind == "softmax" else 2)
