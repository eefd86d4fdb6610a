"""Models in memory for `Classifier` and `Embedder`, which leave them as they are."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from swag_models.devices import check_device, check_dtype
from swag_models.errors import ConfigError, argument_errors
from swag_models.formatting import list_names
from swag_models.models import RegNet, ResNet, ViT
from swag_models.models.unwrap import unwrap
from swag_models.spec import ImageSize


def take_model(
    model: nn.Module,
    purpose: str,
    options: Collection[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    image_size: ImageSize | None,
    *,
    fast: bool,
) -> ViT | RegNet | ResNet:
    """Return the model of this library inside a module, or a copy of it if anything is to change.

    Args:
        model: the model, possibly inside wrappers that compute the same.
        purpose: what would be done with it, for messages.
        options: names of further options, which only models that are loaded by name have.
        device: where it should be; None for where it is.
        dtype: of its weights; None for no change.
        image_size: in pixels; None for no change.
        fast: whether `accelerate` will change it.

    Raises:
        ConfigError: the module computes something else, or an option needs a name.
    """
    inner = unwrap(model, purpose, adapters=not fast)  # adapters cannot be folded
    assert isinstance(inner, (ViT, RegNet, ResNet))
    if wrong := sorted(set(options) - {"progress"}):
        raise ConfigError(
            f"invalid {list_names(wrong)} for a model in memory, which is used as it is; leave "
            f"{'it' if len(wrong) == 1 else 'them'} out"
        )
    if isinstance(inner, ViT) and not inner.global_pool:
        raise ConfigError(
            f"cannot {purpose} a ViT that returns every token; pool them first: "
            'reset_classifier(num_classes, "token")'
        )
    if any(parameter.is_meta for parameter in inner.parameters()):
        raise ConfigError(f"cannot {purpose} a model on the meta device; load its weights first")
    weight = next(inner.parameters())
    to_device = weight.device if device is None else check_device(device)
    to_dtype = weight.dtype if dtype is None else check_dtype(dtype)
    moves = torch.empty(0, device=to_device).device != weight.device  # "cuda" means "cuda:0"
    if not (fast or moves or to_dtype != weight.dtype or image_size is not None):
        return inner
    with argument_errors("model", model):  # its modules need not be copyable
        changed = copy.deepcopy(inner).to(to_device, to_dtype)
        changed.set_input_size(image_size)
    return changed


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, and then each module into the mode it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
