"""Parameter groups and optimizer, learning-rate schedule, and moving average of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from swag_models.errors import ConfigError
from swag_models.models import Backbone, group_parameters
from swag_models.models.param_groups import NORMS
from swag_models.recipe.config import EMA, Optimizer, Run
from swag_models.recipe.training.muon import MuonAdamW, find_matrices

Tensors = tuple[Tensor, ...] | list[Tensor]


def make_optimizer(model: nn.Module, optimizer: Optimizer, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of the trainable parameters of a model.

    Args:
        model: its frozen parameters are left out.
        optimizer: the settings.
        lr: peak learning rate; each group has `lr` times its `scale` (layer decay).

    Raises:
        ConfigError: all parameters are frozen; or Muon has none, or is not part of this torch.
    """
    if any(isinstance(module, Backbone) for module in model.modules()):
        groups = group_parameters(
            model,
            lr=lr,
            weight_decay=optimizer.weight_decay,
            layer_decay=optimizer.layer_decay,
            no_decay=optimizer.no_decay,
        )
    else:
        groups = group_foreign_parameters(model, optimizer, lr)
    if not groups:
        raise ConfigError("all parameters are frozen; leave at least the head trainable")
    if optimizer.kind == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, momentum=optimizer.momentum, nesterov=optimizer.momentum > 0
        )
    # one kernel per group instead of a dozen
    is_fused = all(weight.device.type == "cuda" for weight in model.parameters())
    if optimizer.kind == "muon":
        return MuonAdamW(groups, find_matrices(model), optimizer, lr=lr, fused=is_fused or None)
    return torch.optim.AdamW(groups, lr=lr, betas=optimizer.betas, fused=is_fused or None)


def group_foreign_parameters(
    model: nn.Module, optimizer: Optimizer, lr: float
) -> list[dict[str, Any]]:
    """Sort the parameters of a model of timm into groups, as `group_parameters` does.

    Raises:
        ConfigError: the settings need the order of the layers.
    """
    if optimizer.layer_decay != 1:
        raise ConfigError(
            f"optimizer.layer_decay is {optimizer.layer_decay:g}; allowed for a timm student: 1"
        )
    if optimizer.kind == "muon":
        raise ConfigError(
            "optimizer.kind is 'muon'; allowed for a timm student: adamw, sgd, because the hidden "
            "layers of timm's architectures are not known here"
        )
    exempt = set[int]()  # ids of parameters without weight decay
    modules: list[Any] = list(model.modules())
    for module in modules:
        if optimizer.no_decay != "nothing" and isinstance(module, NORMS):
            exempt |= set(map(id, module.parameters()))
        if optimizer.no_decay == "norms and biases" and hasattr(module, "no_weight_decay"):
            names = module.no_weight_decay()  # timm's method
            exempt |= {id(weight) for name, weight in module.named_parameters() if name in names}
    groups: dict[float, list[nn.Parameter]] = {}
    for weight in model.parameters():
        is_vector = optimizer.no_decay == "norms and biases" and weight.ndim <= 1
        if weight.requires_grad:
            decay = 0.0 if is_vector or id(weight) in exempt else optimizer.weight_decay
            groups.setdefault(decay, []).append(weight)
    return [
        {"params": weights, "lr": lr, "scale": 1.0, "weight_decay": decay}
        for decay, weights in groups.items()
    ]


def schedule_lr(
    step: int, steps: int, peak: float, warmup: float, cooldown: float | None = None
) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine to 0, or stable and decay.

    With W = warmup * steps and D = cooldown * steps:
        step s < W: peak * min(1, (s + 1) / W), so that the first step moves and step W - 1 is at
        the peak;
        step s >= W without a cooldown: peak * (1 + cos(pi (s - W) / (steps - W))) / 2, which is the
        peak at W and 0 at `steps`, the step after the last;
        step s >= W with one: peak * (1 - sqrt(max(0, s - steps + D) / D)), which is the peak until
        `steps` - D and 0 at `steps` (Hägele et al. 2024, arXiv 2405.18392).

    Args:
        step: from 0 to `steps`.
        steps: number of steps of the run.
        peak: highest learning rate.
        warmup: fraction of the steps in which the rate rises.
        cooldown: fraction of the steps in which the rate of the schedule "wsd" falls; None for half
            a cosine.
    """
    assert 0 <= step <= steps
    rise = warmup * steps
    if step < rise:
        return peak * min(1.0, (step + 1) / rise)
    if cooldown is None:
        return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
    fall = cooldown * steps
    return peak * (1 - math.sqrt((step - steps + fall) / fall)) if step > steps - fall else peak


def count_stable_steps(run: Run, steps: int) -> int | None:
    """Number of steps before the learning rate falls; None for a schedule that falls at once.

    Args:
        run: the settings.
        steps: number of steps of the run.
    """
    return math.floor(steps - run.cooldown * steps) if run.schedule == "wsd" else None


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to `lr` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def make_average(model: nn.Module, ema: EMA) -> AveragedModel:
    """Copy a model for the exponential moving average of its weights and batch statistics.

    FSDP2 cannot copy a model that it has sharded: make the average first, then shard both.

    Args:
        model: on the device where it is trained, not yet sharded or wrapped.
        ema: the decay of the average.

    Returns:
        The average, in evaluation mode and without gradients; `module` is the model to evaluate.
    """
    blend = get_ema_multi_avg_fn(ema.decay)  # type: ignore[no-untyped-call]

    def average(averages: Tensors, values: Tensors, _: Tensor | int) -> None:
        # PyTorch's own rule rounds integers towards 0, so that the counters of batch norms, which
        # grow by 1, would stop.
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        # Under FSDP2 weights are DTensors and batch statistics are not; no foreach operation takes
        # both. Each rank averages the part that it holds.
        blend(list(map(_get_local_part, averages)), list(map(_get_local_part, values)), 0)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True).eval().requires_grad_(False)


def update_average(average: AveragedModel, model: nn.Module, *, copy: bool) -> None:
    """Update the average with the weights after a step.

    Args:
        average: from `make_average`.
        model: the model that it was made of.
        copy: replace the average by the weights, as in the first `ema.warmup_ratio` of all steps.
    """
    for module in average.modules():
        # An evaluation under FSDP2 leaves gathered weights behind, and FSDP2 does not notice that
        # the sharded ones change. Free the gathered ones: the next evaluation gathers again.
        if reshard := getattr(module, "reshard", None):
            reshard()
    # AveragedModel copies in its first update, which it knows by this counter. Setting it makes
    # the average a function of weights and step, so that a checkpoint needs no counter.
    average.n_averaged.fill_(0 if copy else 1)
    average.update_parameters(model)


def _get_local_part(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this rank holds; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
