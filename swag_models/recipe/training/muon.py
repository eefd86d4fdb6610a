"""Muon for the matrices of hidden layers and AdamW for all other parameters, as one optimizer.

One optimizer has one state in a checkpoint, and a gradient scaler skips a step of both or of none.
Muon: Jordan 2024, kellerjordan.github.io/posts/muon; torch.optim.Muon computes it.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from swag_models.errors import ConfigError
from swag_models.models.unwrap import unwrap
from swag_models.recipe.config import Optimizer


def find_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Find the weights of a model's hidden layers that are matrices.

    These are linear layers and 1x1 convolutions, which are linear layers for each pixel: a RegNet
    has no other matrices. Patch embedding, stem and head are no hidden layers (Jordan 2024), and a
    grouped 3x3 convolution is no matrix.

    Args:
        model: a model of this library, or a module that contains one.
    """
    backbone = unwrap(model, "find the matrices of", inside=True)
    return [
        cast("nn.Parameter", module.weight)
        for layer in backbone.layers[1:]  # the first is the stem
        for part in layer
        for module in backbone.get_submodule(part).modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
    ]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for some parameters, AdamW for the others.

    Weights that FSDP2 has sharded are gathered one by one, because Muon needs whole matrices; the
    momentum stays sharded. Every rank computes every update, so sharded weights are those of DDP.

    Args:
        groups: from `group_parameters`; each is split in two.
        matrices: parameters that Muon takes. All dimensions but the first two have length 1.
        settings: `momentum` and `adjust_lr_fn` of Muon, `betas` of AdamW.
        lr: peak learning rate of both.
        fused: as of `torch.optim.AdamW`.

    Raises:
        ConfigError: torch has no Muon, or there are no matrices.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        matrices: Iterable[Tensor],
        settings: Optimizer,
        *,
        lr: float,
        fused: bool | None = None,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"optimizer.kind is 'muon', which torch {torch.__version__} does not have; install "
                "torch 2.9 or newer, or use adamw"
            )
        chosen = set(map(id, matrices))
        split: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in groups:
            for is_muon, part in split.items():
                weights = [
                    weight for weight in group["params"] if (id(weight) in chosen) == is_muon
                ]
                if weights:
                    part.append({**group, "params": weights, "is_muon": is_muon})
        if not split[True]:
            raise ConfigError(
                "optimizer.kind is 'muon', but no matrix of a hidden layer is trained; use adamw"
            )
        # Both get their parameters anew in each step.
        self._muon = torch.optim.Muon(
            [torch.zeros(1, 1)],
            lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            adjust_lr_fn=settings.adjust_lr_fn,
        )
        self._adamw = torch.optim.AdamW([torch.zeros(1)], lr, betas=settings.betas, fused=fused)
        super().__init__(
            [
                {**(self._muon if is_muon else self._adamw).defaults, **group}
                for is_muon, part in split.items()
                for group in part
            ],
            {},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        for group in self.param_groups:
            for weight in group["params"] if group["is_muon"] else ():
                if weight.grad is not None:
                    self._step_matrix(weight, weight.grad, group)
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if not group["is_muon"]]
        self._adamw.step()

    def _step_matrix(self, weight: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        """Update a weight, which may be sharded and have the form of a 1x1 convolution."""
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        parts = (weight.detach(), grad, state["momentum_buffer"])
        wholes = [part.full_tensor() if isinstance(part, DTensor) else part for part in parts]
        # Views, never copies, so that torch's Muon changes the tensors themselves.
        matrix, gradient, momentum = (whole.view(len(whole), -1) for whole in wholes)
        matrix.grad = gradient
        self._muon.param_groups = [{**group, "params": [matrix]}]
        self._muon.state[matrix] = {"momentum_buffer": momentum}
        self._muon.step()  # type: ignore[no-untyped-call]
        self._muon.state.clear()
        for part, whole in zip(parts, wholes):
            if isinstance(part, DTensor) and part is not grad:
                part.to_local().copy_(_shard_like(part, whole))


def _shard_like(part: DTensor, whole: Tensor) -> Tensor:
    """The part of a tensor that this rank holds in `part`; no communication."""
    mesh = part.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=part.placements).to_local()
