"""Optimizer groups: which parameters decay, and how fast each layer learns."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import nn

from swag_models.errors import ConfigError
from swag_models.models.backbone import Backbone

Exempt = Literal["nothing", "norms", "norms and biases"]
NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


def group_parameters(
    model: Backbone,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    no_decay: Exempt = "norms and biases",
) -> list[dict[str, Any]]:
    """What a torch optimizer takes in place of `model.parameters()`: groups with their own `lr` and `weight_decay`.

    Norms, biases, class token and position embedding do not decay, or what `no_decay` says: norms alone, or nothing. With
    `layer_decay`, in (0, 1], a layer learns at lr * layer_decay ** (layers above it), as in BEiT (arXiv 2106.08254): the head
    at lr, the stem slowest. Each group's `scale` is that power. Frozen parameters are left out. ConfigError if `layer_decay`
    is outside, or `no_decay` is something else.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(
            f"layer_decay is {layer_decay!r}; give a number above 0 and up to 1, or None"
        )
    if no_decay not in (allowed := get_args(Exempt)):
        raise ConfigError(f"no_decay is {no_decay!r}; allowed: {', '.join(allowed)}")
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters()
    }
    undecayed = model.no_weight_decay()
    layers = {name: find_layer(model, name) for name, _ in model.named_parameters()}
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = {
                "nothing": True,
                "norms": id(parameter) not in norms,
                "norms and biases": parameter.ndim > 1 and name not in undecayed,
            }[no_decay]
            scale = (
                1.0 if layer_decay is None else layer_decay ** (max(layers.values()) - layers[name])
            )
            groups.setdefault((scale, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def find_layer(model: Backbone, name: str) -> int:
    """The position among `model.layers` of the layer that a parameter is in, one above the last for the head."""
    for layer, parts in enumerate(model.layers):
        if any(name == part or name.startswith(f"{part}.") for part in parts):
            return layer
    return len(model.layers)
