"""Find a model of this library inside the modules that training code wraps around it."""

from collections.abc import Mapping

from torch import nn

from swag_models.errors import ConfigError
from swag_models.formatting import list_names
from swag_models.models.backbone import Backbone

# Modules that compute what the module inside them computes: class name -> attribute. Names, because
# importing the classes takes seconds or needs a package that is not installed.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "AveragedModel": "module",  # of torch.optim.swa_utils
    "ModelEmaV2": "module",  # of timm
    "ModelEmaV3": "module",
    "_FabricModule": "_forward_module",  # of Lightning
    "DeepSpeedEngine": "module",
}
# Modules of PEFT, whose adapters are layers of the model inside: they compute with it.
ADAPTERS = {"PeftModel": "base_model", "BaseTuner": "model"}


def unwrap(
    model: object, purpose: str, *, inside: bool = False, adapters: bool = False
) -> Backbone:
    """Return the model of this library inside the wrappers of training code.

    Args:
        model: what a caller passed.
        purpose: what would be done with it, for example "publish".
        inside: also search modules that compute something else with the model, such as a
            FeaturePyramid, a LightningModule or a PEFT model, and accept sharded parameters.
        adapters: accept a PEFT model with adapters inside of layers, such as LoRA.

    Returns:
        The same model, not a copy. Names of its parameters may still contain wrappers of its layers
        (`wrappers.INNER_WRAPPERS`).

    Raises:
        ConfigError: it contains no such model, or several; or `inside` is False, and it is sharded
            or computes something else.
    """
    outer, model = model, strip(model, WRAPPERS | ADAPTERS if adapters else WRAPPERS)
    if inside and isinstance(model, nn.Module) and len(found := find_backbones(model)) == 1:
        return next(iter(found.values()))
    if not isinstance(model, Backbone):
        raise refuse(model, purpose)
    assert isinstance(outer, nn.Module)
    if not inside and _is_sharded(outer):
        raise ConfigError(
            f"cannot {purpose} a model whose parameters are sharded: pass a new model with the "
            "state dict that torch.distributed.checkpoint.state_dict.get_model_state_dict gathers "
            "with StateDictOptions(full_state_dict=True)"
        )
    return model


def strip(model: object, wrappers: Mapping[str, str] = WRAPPERS) -> object:
    """Return what is inside wrappers, also if it is not a model of this library.

    Args:
        model: anything.
        wrappers: class name -> attribute, as in WRAPPERS.
    """
    while isinstance(model, nn.Module) and not isinstance(model, Backbone):
        attribute = next((wrappers[name] for name in _list_classes(model) if name in wrappers), "")
        if not isinstance(inner := getattr(model, attribute, None), nn.Module):
            break
        model = inner
    return model


def find_backbones(module: nn.Module) -> dict[str, Backbone]:
    """Return the models of this library in a module, by the names of their attributes."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Backbone)}


def refuse(model: object, purpose: str) -> ConfigError:
    """Return the error for something that is not a model of this library, with the way out."""
    found = find_backbones(model) if isinstance(model, nn.Module) else {}
    if not found:
        hint = "pass the model that load_model returned"
    elif "PeftModel" in _list_classes(model):
        hint = "pass merge_and_unload() of it, which adds the adapters to the weights"
    elif len(found) == 1:
        ((name, part),) = found.items()
        hint = f"pass the {type(part).__name__} in it, its attribute {name}"
    else:
        hint = f"pass one of the {len(found)} models in it: {list_names(list(found))}"
    return ConfigError(f"cannot {purpose} a {type(model).__name__}; {hint}")


def keeps_shapes(model: nn.Module) -> bool:
    """Whether all parameters have their shapes, which FSDP1 and DeepSpeed's stage 3 flatten."""
    return not (
        _has_fsdp1(model) or any(hasattr(parameter, "ds_shape") for parameter in model.parameters())
    )


def _is_sharded(model: nn.Module) -> bool:
    """Whether each process has only its part of some parameters (FSDP, tensor parallelism)."""
    return _has_fsdp1(model) or any(
        "DTensor" in _list_classes(tensor) for tensor in model.parameters()
    )


def _has_fsdp1(model: nn.Module) -> bool:
    """Whether FSDP1 has sharded a module in the model."""
    return any("FullyShardedDataParallel" in _list_classes(module) for module in model.modules())


def _list_classes(value: object) -> list[str]:
    """Return the names of a value's class and of its base classes."""
    return [cls.__name__ for cls in type(value).__mro__]
