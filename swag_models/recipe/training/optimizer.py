"""How weights move: parameter groups and optimizer, the learning rate of each step, and the average that is published."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from swag_models.errors import ConfigError
from swag_models.models import Backbone, group_parameters
from swag_models.recipe.config import EMA, Optimizer


def make_optimizer(model: Backbone, optimizer: Optimizer, lr: float) -> torch.optim.Optimizer:
    """SGD or AdamW for what is to be trained, at the peak learning rate `lr` times each group's `scale`.

    ConfigError if everything is frozen.
    """
    groups = group_parameters(
        model,
        lr=lr,
        weight_decay=optimizer.weight_decay,
        layer_decay=optimizer.layer_decay,
        no_decay=optimizer.no_decay,
    )
    if not groups:
        raise ConfigError("all parameters are frozen; leave at least the head to train")
    if optimizer.kind == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, momentum=optimizer.momentum, nesterov=optimizer.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=lr, betas=optimizer.betas)


def schedule_lr(step: int, steps: int, peak: float, warmup: float) -> float:
    """The learning rate of a step, counted from 0: a linear rise over `warmup` * `steps` steps, then half a cosine to 0.

    With W such steps, step s < W has peak * min(1, (s + 1) / W): the first one moves, and step W - 1 is at the peak. Step
    s >= W has peak * (1 + cos(pi (s - W) / (steps - W))) / 2: the peak at W, and 0 at `steps`, which is never taken.
    """
    assert 0 <= step <= steps
    rise = warmup * steps
    if step < rise:
        return peak * min(1.0, (step + 1) / rise)
    return peak * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


class Average:
    """An exponential moving average of a model's weights and batch statistics; `model` is a copy in evaluation that has it.

    FSDP2 cannot copy what it has sharded: make the average first, and shard `model` as the other. Both must be where they
    stay, sharded and on their device, at the first `update`, which finds the tensors once. As FSDP2 does not notice that
    weights change, `update` shards again what an evaluation has gathered.
    """

    def __init__(self, model: Backbone, ema: EMA, steps: int) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.ema = ema
        self.steps = steps
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] | None = None

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step, counted from 0; within the first `copy` share of all steps they are copied.

        It is always the same model, the one that the average was made of, without wrappers.
        """
        if self._pairs is None:
            self._pairs = [_pair(self.model, model, floats) for floats in (True, False)]
        for module in self.model.modules():
            if reshard := getattr(module, "reshard", None):
                reshard()
        (ours, theirs), (our_counts, their_counts) = self._pairs
        if step < self.ema.warmup_ratio * self.steps:
            torch._foreach_copy_(ours, theirs)
        else:
            torch._foreach_lerp_(ours, theirs, 1 - self.ema.decay)
        if our_counts:
            torch._foreach_copy_(our_counts, their_counts)

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model.load_state_dict(state_dict)


def _pair(ours: nn.Module, theirs: nn.Module, floats: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of both that are of floats, or that are not, in the same order."""
    mine, others = (dict(_walk_tensors(each)) for each in (ours, theirs))
    assert mine.keys() == others.keys(), (
        "an average is updated from the model it was made of, without wrappers"
    )
    names = [name for name, tensor in mine.items() if tensor.is_floating_point() == floats]
    return [mine[name] for name in names], [others[name] for name in names]


def _walk_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; of what FSDP2 has sharded, this rank's part."""
    for tensors in (model.named_parameters(), model.named_buffers()):
        for name, tensor in tensors:
            local = getattr(tensor.detach(), "to_local", tensor.detach)
            yield name, local()
