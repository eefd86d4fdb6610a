"""Losses on sparse targets: cross-entropy with several classes per image, or one sigmoid per class.

Axes: N samples, C classes, M the largest number of classes of a sample in the batch. Sources:
Mahajan et al. 2018 (arXiv 1805.00932), section 2.2, for 1/K; Huang et al. 2024 (arXiv 2411.03313)
for its weighting by inverse document frequency; `asymmetric` for that loss. A dense (N, C) target
is never made: with 27,000 classes it would take as much memory as the logits.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.config import LossKind, Objective
from swag_models.recipe.training.asymmetric import (
    negative_loss,
    negative_slope,
    positive_loss,
    positive_slope,
    softplus,
)

Term = Callable[[Tensor, Objective], Tensor]  # of each class: a loss, or its derivative
# Into which the asymmetric loss cuts a batch, whose temporary tensors it keeps small
BATCH_PARTS = 32


class Targets(NamedTuple):
    """A sparse target. Padding is class 0 with weight 0.

    Attributes:
        classes: (N, M), int64.
        weights: (N, M), float32; the target of each class.
    """

    classes: Tensor
    weights: Tensor

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Targets":
        """Copy to a device; as for `Tensor.to`."""
        return Targets(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def make_targets(
    samples: Sequence[Sequence[int]],
    kind: LossKind,
    num_classes: int,
    class_weights: Sequence[float] | None = None,
) -> Targets:
    """Make the targets of a batch.

    Args:
        samples: classes of each sample; a class that is named twice counts once.
        kind: "softmax" gives 1/K to each of K classes, the other kinds 1.
        num_classes: number of classes.
        class_weights: of each class, positive, for "softmax" only: the K classes of a sample have
            shares in proportion to them. By default equal ones.

    Raises:
        ConfigError: a class is out of range, or a sample has none and `kind` is "softmax".
    """
    samples = [list(dict.fromkeys(classes)) for classes in samples]
    width = max(map(len, samples), default=0)
    for number, classes in enumerate(samples):
        if not classes and kind == "softmax":
            raise ConfigError(
                f"sample {number} of the batch has no class; leave it out, "
                "or use objective.kind=sigmoid"
            )
        if classes and not 0 <= min(classes) <= max(classes) < num_classes:
            wrong = next(index for index in classes if not 0 <= index < num_classes)
            raise ConfigError(
                f"class {wrong} is out of range; allowed: 0 to {num_classes - 1}; "
                "give the model a head for all classes"
            )
    class_rows, weight_rows = [], []
    for classes in samples:
        padding = width - len(classes)
        weights = [1.0] * len(classes)
        if kind == "softmax":
            if class_weights is not None:
                weights = [class_weights[index] for index in classes]
            total = math.fsum(weights)
            weights = [weight / total for weight in weights]
        class_rows.append([*classes, *[0] * padding])
        weight_rows.append(weights + [0.0] * padding)
    shape = (len(samples), width)  # a batch without any class would lose its second axis
    return Targets(
        torch.tensor(class_rows, dtype=torch.int64).reshape(shape),
        torch.tensor(weight_rows, dtype=torch.float32).reshape(shape),
    )


def mix(
    images: Tensor, targets: Targets, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Targets]:
    """Mixup (Zhang et al., arXiv 1710.09412) of each image with its counterpart in reverse order.

    Args:
        images: (N, ...), floats on any device.
        targets: of the images.
        alpha: the share that an image keeps is drawn from Beta(alpha, alpha), once for the batch.
            0 changes nothing.
        generator: of the CPU.

    Returns:
        Mixed images, and targets (N, 2 M).
    """
    assert images.is_floating_point(), "normalise uint8 images before mixing them"
    if not alpha:
        return images, targets
    share = draw_beta(alpha, generator)
    classes, weights = targets
    return images.lerp(images.flip(0), 1 - share), Targets(
        torch.cat([classes, classes.flip(0)], dim=1),  # (N, 2 M)
        torch.cat([weights * share, weights.flip(0) * (1 - share)], dim=1),
    )


def draw_beta(alpha: float, generator: torch.Generator) -> float:
    """Draw a number from Beta(alpha, alpha); works for very small alpha too.

    It is x / (x + y) for x and y from Gamma(alpha), which underflow for small alpha. Gamma(alpha)
    is Gamma(alpha + 1) times a uniform number to the power 1 / alpha (Marsaglia and Tsang 2000,
    section 6); the logarithms of these do not underflow.
    """
    shapes = torch.full((2,), alpha + 1, dtype=torch.float64)
    gammas = torch._standard_gamma(shapes, generator=generator)
    uniforms = 1 - torch.rand(2, dtype=torch.float64, generator=generator)  # above 0
    x, y = gammas.log() + uniforms.log() / alpha
    return float((x - y).sigmoid())


def compute_losses(objective: Objective, logits: Tensor, targets: Targets) -> Tensor:
    """Compute the loss of each sample.

    "softmax" is cross-entropy and needs weights that sum to 1; "sigmoid" is the sum of the binary
    cross-entropies of all classes, and "asymmetric" that of their asymmetric losses: a target t
    weights the loss of a class that the image has, and 1 - t that of one that it does not have.
    With label smoothing e a target t becomes (1 - e) t + e / C, or (1 - e) t + e / 2 for the kinds
    with a sigmoid.

    Args:
        objective: the loss and its parameters.
        logits: (N, C). Beside them and their gradient, one (N, C) buffer is alive at a time, or
            two for logits in 16 bits; for "asymmetric" only parts of one.
        targets: from `make_targets`.

    Returns:
        (N,), float32, or float64 for logits in float64.
    """
    return SparseLoss.apply(logits, *targets, objective)


def count_hits(logits: Tensor, samples: Sequence[Sequence[int]]) -> int:
    """Count the samples whose largest logit (N, C) is one of their classes."""
    best = logits.argmax(dim=1).tolist()
    return sum(index in classes for index, classes in zip(best, samples, strict=True))


class SparseLoss(torch.autograd.Function):
    """`compute_losses` with a backward pass that stores only the logits.

    The gradient is computed in place of the probabilities, so that no second (N, C) buffer is
    needed.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, classes: Tensor, weights: Tensor, objective: Objective
    ) -> Tensor:
        ctx.save_for_backward(logits, classes, weights)
        ctx.objective = objective
        dtype = torch.promote_types(logits.dtype, torch.float32)
        kind, smoothing = objective.kind, objective.label_smoothing
        if kind == "asymmetric":
            sums = [
                _mix_terms(negative_loss, positive_loss, block.to(dtype), objective).sum(1)
                for block in _cut(logits)
            ]
            scores = logits.gather(1, classes).to(dtype)  # (N, M)
            terms = positive_loss(scores, objective) - negative_loss(scores, objective)
            return torch.cat(sums) + (1 - smoothing) * (terms * weights).sum(1)
        is_softmax = kind == "softmax"
        scores = logits.log_softmax(1, dtype=dtype) if is_softmax else logits.to(dtype)  # (N, C)
        target_scores = (scores.gather(1, classes) * weights).sum(1)  # (N, M) -> (N,)
        losses = (smoothing - 1) * target_scores
        if smoothing:
            losses -= _smooth(objective, scores) * scores.sum(1)
        if kind == "sigmoid":
            # -log sigmoid(-z), of every class, is softplus(z); the targets' part is linear in z
            losses += softplus(scores).sum(1)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # (N,) -> (N, C)
        logits, classes, weights = ctx.saved_tensors
        objective, dtype = ctx.objective, grad.dtype
        parts = ((objective.label_smoothing - 1) * weights).to(dtype)  # of the targets (N, M)
        if objective.kind == "asymmetric":
            gradient = torch.empty_like(logits, dtype=dtype)
            for block, output in zip(_cut(logits), _cut(gradient)):
                terms = _mix_terms(negative_slope, positive_slope, block.to(dtype), objective)
                output.copy_(terms)
            scores = logits.gather(1, classes).to(dtype)
            parts *= negative_slope(scores, objective) - positive_slope(scores, objective)
        else:
            is_softmax = objective.kind == "softmax"
            gradient = logits.softmax(1, dtype=dtype) if is_softmax else logits.to(dtype).sigmoid()
            if objective.label_smoothing:
                gradient -= _smooth(objective, logits)
        gradient.scatter_add_(1, classes, parts)  # probability minus target
        return gradient.mul_(grad[:, None]).to(logits.dtype), None, None, None


def _smooth(objective: Objective, logits: Tensor) -> float:
    """The target that label smoothing gives to every class."""
    return objective.label_smoothing / (2 if objective.is_multi_label else logits.shape[1])


def _mix_terms(negative: Term, positive: Term, logits: Tensor, objective: Objective) -> Tensor:
    """Terms of the asymmetric loss without the sparse targets: those of negative classes.

    Label smoothing adds its share of the positive terms.
    """
    terms = negative(logits, objective)
    if share := _smooth(objective, logits):
        terms.lerp_(positive(logits, objective), share)
    return terms


def _cut(logits: Tensor) -> Sequence[Tensor]:
    """Blocks of samples, whose temporary tensors together are small beside (N, C)."""
    return torch.split(logits, max(1, -(-len(logits) // BATCH_PARTS)))
