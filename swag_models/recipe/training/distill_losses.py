"""Losses between the outputs of a student and those of its teacher.

Axes: N samples, D features of the teacher, C classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def compare_features(kind: Literal["cosine", "l2"], features: Tensor, goals: Tensor) -> Tensor:
    """Compute how far features are from those of a teacher.

    Args:
        kind: "cosine" is 1 - cos(features, goals), as for the summary features of Ranzinger et al.
            2024 (arXiv 2312.06709); "l2" is the mean square distance to goals that are scaled to
            mean 0 and variance 1, the whitening of Wei et al. 2022 (arXiv 2205.14141).
        features: (N, D), of the student after its projection (Romero et al. 2015, arXiv 1412.6550).
        goals: (N, D), of the teacher.

    Returns:
        (N,), float32, or float64 for features in float64.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, goals = features.to(dtype), goals.to(dtype)
    if kind == "cosine":
        return 1 - F.cosine_similarity(features, goals, dim=1)
    return (features - F.layer_norm(goals, goals.shape[1:])).square().mean(1)


def compare_logits(
    logits: Tensor, goals: Tensor, temperature: float, *, multi_label: bool
) -> Tensor:
    """Compute the divergence of a student's softened probabilities from the teacher's.

    It is KL(teacher || student) times the square of the temperature, which keeps the size of the
    gradients (Hinton et al. 2015, arXiv 1503.02531, section 2). It is 0 if both are equal.

    Args:
        logits: (N, C), of the student.
        goals: (N, C), of the teacher.
        temperature: that all logits are divided by.
        multi_label: sum the divergences of each class's sigmoid, instead of one softmax.

    Returns:
        (N,), float32, or float64 for logits in float64.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logits, goals = logits.to(dtype) / temperature, goals.to(dtype) / temperature
    if multi_label:  # a class is a choice between it and its absence, whose logit is the negative
        log_student, log_teacher = (
            F.logsigmoid(torch.stack([scores, -scores], dim=2)) for scores in (logits, goals)
        )  # (N, C, 2)
    else:
        log_student, log_teacher = logits.log_softmax(1), goals.log_softmax(1)
    # not log_target=True: a class that the teacher excludes has the logit -inf, and adds nothing
    terms = F.kl_div(log_student, log_teacher.exp(), reduction="none")
    return terms.flatten(1).sum(1) * temperature**2
