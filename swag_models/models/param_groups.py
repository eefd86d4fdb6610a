"""Parameter groups for optimizers: weight decay and layer-wise learning rates."""

from typing import Any, Literal, get_args

from torch import nn

from swag_models.errors import ConfigError, check_choice, check_minimum, check_types
from swag_models.formatting import describe
from swag_models.models.backbone import Backbone, check_backbone

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
    """Sort a model's parameters into groups that a torch optimizer accepts.

    Frozen parameters are left out.

    Args:
        model: its trainable parameters are grouped.
        lr: learning rate of the head.
        weight_decay: weight decay of all parameters that are not exempt.
        layer_decay: in (0, 1]; the learning rate of a layer is lr * layer_decay ** (number of
            layers above it), as in BEiT (arXiv 2106.08254). None for the same rate everywhere.
        no_decay: parameters exempt from weight decay. "norms and biases" includes the class token
            and the position embedding.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `scale`, the power of `layer_decay` that is
        already part of `lr`.

    Raises:
        ConfigError: the model is not one of this library, or an option is not allowed.
    """
    check_backbone(model, "group the parameters of")
    check_minimum(0, lr=lr, weight_decay=weight_decay)
    check_types(int | float, lr=lr, weight_decay=weight_decay)
    check_types(int | float | None, layer_decay=layer_decay)
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(
            f"layer_decay is {describe(layer_decay)}; give a number above 0 and up to 1, or None"
        )
    check_choice("no_decay", no_decay, *get_args(Exempt))
    # By identity: names and shapes do not distinguish the parameters of norms from other vectors.
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters()
    }
    exempt = model.no_weight_decay()
    layers = {name: find_layer(model, name) for name, _ in model.named_parameters()}
    top_layer = max(layers.values())
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = {
                "nothing": True,
                "norms": id(parameter) not in norms,
                # Norms and biases are vectors, weights of layers are not.
                "norms and biases": parameter.ndim > 1 and name not in exempt,
            }[no_decay]
            scale = 1.0 if layer_decay is None else layer_decay ** (top_layer - layers[name])
            # Parameters with equal settings share a group: optimizers are slower with many groups.
            groups.setdefault((scale, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def find_layer(model: Backbone, name: str) -> int:
    """Return the index in `model.layers` of a parameter's layer; for the head, the last plus 1.

    Args:
        model: the model.
        name: name of the parameter.
    """
    for layer, parts in enumerate(model.layers):
        if any(name == part or name.startswith(f"{part}.") for part in parts):
            return layer
    return len(model.layers)
