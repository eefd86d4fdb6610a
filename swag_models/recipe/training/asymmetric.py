"""The asymmetric loss of a class, and its derivative by the logit.

Source: Ridnik et al. 2020 (arXiv 2009.14119), section 2. With p the sigmoid of the logit z and
q = max(p - clip, 0), a class that the image has costs (1 - p)^gamma_pos * -log(p), and any other
class q^gamma_neg * -log(1 - q). All functions map logits of any shape to the same shape.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from swag_models.recipe.config import Objective

# From here on log(1 + exp(z)) equals z, in float64 too; torch's own threshold, 20, errs by 2e-9.
SOFTPLUS_THRESHOLD = 80.0
BALANCE_STEPS = 60  # halvings of an interval of 2 * MAX_LOGIT, down to float64's resolution
MAX_LOGIT = 40.0


def softplus(logits: Tensor) -> Tensor:
    """log(1 + exp(z)), which is -log sigmoid(-z)."""
    return F.softplus(logits, threshold=SOFTPLUS_THRESHOLD)


def positive_loss(logits: Tensor, objective: Objective) -> Tensor:
    """The loss of classes that an image has."""
    loss = softplus(-logits)
    if objective.gamma_pos:
        loss *= _power((-logits).sigmoid_(), objective.gamma_pos)
    return loss


def positive_slope(logits: Tensor, objective: Objective) -> Tensor:
    """The derivative of `positive_loss`."""
    rest = (-logits).sigmoid_()  # 1 - p, without cancellation
    if not (gamma := objective.gamma_pos):
        return rest.neg_()
    slope = softplus(-logits).mul_(gamma).mul_(logits.sigmoid()).add_(rest)
    return slope.mul_(_power(rest, gamma)).neg_()


def negative_loss(logits: Tensor, objective: Objective) -> Tensor:
    """The loss of classes that an image does not have."""
    shifted, _, loss = _shift(logits, objective.clip)
    return loss.mul_(_power(shifted, objective.gamma_neg))


def negative_slope(logits: Tensor, objective: Objective) -> Tensor:
    """The derivative of `negative_loss`; 0 where p is at most `clip`."""
    gamma, clip = objective.gamma_neg, objective.clip
    # d loss / dz = p * q^gamma * (gamma * (1 - p) * -log(1 - q) / q + (1 - p) / (1 - q))
    shifted, rest, slope = _shift(logits, clip)
    # -log(1 - q) / q is 1 at q = 0, where only the last factors are 0
    slope.div_(shifted.clamp(min=torch.finfo(shifted.dtype).tiny)).mul_(rest).mul_(gamma)
    slope += rest / (rest + clip) if clip else 1.0  # 1 - q is 1 - p + clip
    slope.mul_(shifted + clip).mul_(shifted > 0)
    return slope.mul_(_power(shifted, gamma))


def balance_logits(shares: Tensor, objective: Objective) -> Tensor:
    """The constant logit of each class at which positive and negative gradients cancel.

    A head that starts there has to learn which images have a class, and not how many. For the plain
    sigmoid it is the logit of the class's frequency; the asymmetric loss is least at a higher one.

    Args:
        shares: share of the images that have each class (C,), from 0 to 1.
        objective: of kind "sigmoid" or "asymmetric".

    Returns:
        The logits (C,), float64, from -MAX_LOGIT to MAX_LOGIT.
    """
    # In float32, a share above 1 - 3e-8 is 1, whose logit is infinite.
    weights = shares.double().clamp(0, 1)
    if objective.kind == "sigmoid":
        return weights.logit().clamp(-MAX_LOGIT, MAX_LOGIT)
    # Positive gradients outweigh below the root, and negative ones above it.
    low, high = torch.full_like(weights, -MAX_LOGIT), torch.full_like(weights, MAX_LOGIT)
    for _ in range(BALANCE_STEPS):
        middle = (low + high) / 2
        slope = weights * positive_slope(middle, objective)
        slope += (1 - weights) * negative_slope(middle, objective)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return high


def _shift(logits: Tensor, clip: float) -> tuple[Tensor, Tensor, Tensor]:
    """The shifted probability q, 1 - p without cancellation, and -log(1 - q)."""
    shifted, rest = logits.sigmoid(), (-logits).sigmoid_()
    if not clip:
        return shifted, rest, softplus(logits)
    return shifted.sub_(clip).clamp_(min=0), rest, (rest + clip).clamp_(max=1).log_().neg_()


def _power(base: Tensor, exponent: float) -> Tensor:
    """A power, in place. Squares are several times faster than torch's power of 4."""
    while exponent > 2 and exponent % 2 == 0:
        base.square_()
        exponent /= 2
    return base.pow_(exponent)
