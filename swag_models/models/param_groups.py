"""Parameter groups for optimizers: weight decay and layer-wise learning rates."""

from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from swag_models.errors import (
    ConfigError,
    check_choice,
    check_minimum,
    check_types,
    plain_arguments,
)
from swag_models.formatting import describe
from swag_models.models.backbone import Backbone
from swag_models.models.unwrap import keeps_shapes, unwrap
from swag_models.wrappers import INNER_WRAPPERS

Exempt = Literal["nothing", "norms", "norms and biases"]
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first: batch and instance norm


@plain_arguments
def group_parameters(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    no_decay: Exempt = "norms and biases",
) -> list[dict[str, Any]]:
    """Sort a model's parameters into groups that a torch optimizer accepts.

    Frozen parameters are left out.

    Args:
        model: its trainable parameters are grouped. It may be inside of wrappers, such as those of
            torch.compile and DistributedDataParallel, or part of another module, such as a
            FeaturePyramid, a PEFT model or a LightningModule. What such a module adds above the
            model learns as its head.
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
        ConfigError: `model` contains no model of this library, or several; its parameters are
            flattened; or an option is not allowed.
    """
    backbone = unwrap(model, "group the parameters of", inside=True)
    if not keeps_shapes(model):
        raise ConfigError(
            f"cannot group the parameters of a {type(model).__name__}, because they are flattened; "
            "group them before wrapping, or shard with fully_shard, which keeps their shapes"
        )
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
    exempt = backbone.no_weight_decay()
    names = {
        id(parameter): INNER_WRAPPERS.sub("", name)
        for name, parameter in backbone.named_parameters()
    }
    layers = {
        id(parameter): find_layer(backbone, names.get(id(parameter)))
        for parameter in model.parameters()
    }
    top_layer = max(layers.values())
    groups: dict[tuple[float, float], list[Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = {
                "nothing": True,
                "norms": id(parameter) not in norms,
                # Norms and biases are vectors, weights of layers are not.
                "norms and biases": parameter.ndim > 1 and names.get(id(parameter)) not in exempt,
            }[no_decay]
            scale = (
                1.0 if layer_decay is None else layer_decay ** (top_layer - layers[id(parameter)])
            )
            # Parameters with equal settings share a group: optimizers are slower with many groups.
            groups.setdefault((scale, weight_decay if decays else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


def find_layer(model: Backbone, name: str | None) -> int:
    """Return the index in `model.layers` of a parameter's layer; for the head, the last plus 1.

    Args:
        model: the model.
        name: name of the parameter; None for one above the model.
    """
    for layer, parts in enumerate(model.layers):
        if name is not None and any(name == part or name.startswith(f"{part}.") for part in parts):
            return layer
    return len(model.layers)
