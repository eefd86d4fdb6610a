"""Preprocessing and class names of models, by name or of a model in memory.

A model of timm has a `pretrained_cfg`, from which both are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, overload

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, check_types, plain_arguments
from swag_models.formatting import count_noun
from swag_models.hub.timm_reader import read_classes, read_loaded_preprocess
from swag_models.registry import Name, get_spec
from swag_models.spec import ImageSize, ModelSpec

if TYPE_CHECKING:
    from torch import nn

    from swag_models.preprocess import Transform
    from swag_models.train_transform import TrainTransform

NameOrModel = Union[Name, "nn.Module"]


class ModelClasses(NamedTuple):
    """The classes of a model.

    Attributes:
        name: of the model.
        num_classes: None without a head.
        names: a label set or their names; None if they have none.
    """

    name: str
    num_classes: int | None
    names: str | tuple[str, ...] | None


@overload
def load_preprocess(
    name: NameOrModel, *, image_size: ImageSize | None = None, train: Literal[False] = False
) -> Transform: ...


@overload
def load_preprocess(
    name: NameOrModel, *, image_size: ImageSize | None = None, train: Literal[True]
) -> TrainTransform: ...


@plain_arguments
def load_preprocess(
    name: NameOrModel, *, image_size: ImageSize | None = None, train: bool = False
) -> Transform:
    """Return the preprocessing of a model, for PIL images and uint8 tensors (..., 3, H, W).

    Args:
        name: as for `load_model`; or a model in memory, also inside of `torch.compile`, DDP, a PEFT
            model or a LightningModule. A model of timm is described by its `pretrained_cfg`.
        image_size: pixels, int or (height, width); by default the model's. Pass the size that was
            passed to `load_model`.
        train: return the usual augmentation for training, a `TrainTransform`: a random crop and
            flip with the same size, interpolation and normalisation.

    Raises:
        ConfigError: the model has no known preprocessing, or an argument is invalid.
        UnknownModelError: the model does not exist.
    """
    from swag_models.models.arguments import check_image_size
    from swag_models.preprocess import Transform
    from swag_models.train_transform import TrainTransform

    check_types(bool, train=train)
    if (config := find_timm_config(name)) is not None:
        preprocess = read_loaded_preprocess(config)
    else:
        preprocess = find_spec(name, "find the preprocessing of").preprocess
    if image_size is not None:
        preprocess = replace(preprocess, image_size=check_image_size(image_size))
    return TrainTransform(preprocess) if train else Transform(preprocess)


@plain_arguments
def load_classes(name: NameOrModel) -> tuple[str, ...]:
    """Return a model's class names, in the order of its logits.

    Args:
        name: as for `load_preprocess`. A head with as many classes as that of the model that was
            loaded is taken to have its classes; those of any other new head are not known.

    Raises:
        ConfigError: the model has no head, or its classes have no names.
    """
    if (config := find_timm_config(name)) is not None:
        model_name, count, classes = find_timm_classes(name, config)
        arch = None
    else:
        spec = find_spec(name, "find the classes of")
        model_name, count, classes, arch = spec.name, spec.num_classes, spec.classes, spec.arch
    match classes:
        case None if count is not None:
            subject = f"the {type(name).__name__} from " if is_loaded(name) else ""
            raise ConfigError(
                f"{subject}{model_name} has {count_noun(count, 'class')} without names; name them "
                "with publish.save(..., classes=[...]) or Classifier(..., classes=[...])"
            )
        case None:
            classifiers = [model.name for model in MODELS if model.arch == arch and model.classes]
            hint = f"; models with classes: {', '.join(classifiers)}" if classifiers else ""
            raise ConfigError(f"{model_name} gives features and has no classes{hint}")
        case "imagenet-1k":
            # torchvision's metadata contain the class names; importing it takes seconds.
            from torchvision.models import ViT_B_16_Weights

            return tuple(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
        case str(label_set):
            raise ConfigError(
                f"{model_name}: unknown label set {label_set!r}; "
                "allowed: imagenet-1k, or the names themselves"
            )
        case names:
            return names


def check_class_names(classes: Sequence[str], count: int | None) -> tuple[str, ...]:
    """Return the class names that a caller passed; raise ConfigError unless they are `count`."""
    check_types(list | tuple, classes=classes)
    if len(classes) != count or not all(isinstance(label, str) for label in classes):
        raise ConfigError(
            f"{count_noun(len(classes), 'class name')} for "
            f"{count_noun(count or None, 'class')}; pass one string each"
        )
    return tuple(classes)


def is_loaded(model: object) -> bool:
    """Whether something is a module of torch; does not import torch for a name."""
    if isinstance(model, (str, os.PathLike, ModelSpec)):
        return False
    from torch import nn

    return isinstance(model, nn.Module)


def find_spec(model: NameOrModel, purpose: str) -> ModelSpec:
    """Return the description of a model, of one in memory as it is now.

    Args:
        model: anything that `get_spec` accepts, or a module that contains one model of this
            library: the model itself, compiled, distributed, with adapters, ...
        purpose: what would be done with it, for messages.

    Raises:
        ConfigError: the module contains no such model, or several.
        UnknownModelError: no model has this name.
    """
    if not is_loaded(model):
        return get_spec(model)  # type: ignore[arg-type]
    from swag_models.models.unwrap import find_backbones, unwrap

    if not find_backbones(model):  # type: ignore[arg-type]
        hint = "pass a model of load_model"
        if type(model).__module__.startswith("torchvision."):
            hint += ", or use the transforms() and meta of torchvision's weights"
        raise ConfigError(
            f"cannot {purpose} a {type(model).__name__}, which has no pretrained_cfg; {hint}"
        )
    return unwrap(model, purpose, inside=True).describe()


def find_timm_config(model: NameOrModel) -> Mapping[str, Any] | None:
    """Return the `pretrained_cfg` of a model of timm; None for anything else."""
    if not is_loaded(model):
        return None
    from swag_models.models.unwrap import find_backbones, strip

    config = getattr(strip(model), "pretrained_cfg", None)
    has_backbone = find_backbones(model)  # type: ignore[arg-type]
    return config if isinstance(config, Mapping) and not has_backbone else None


def find_timm_classes(model: NameOrModel, config: Mapping[str, Any]) -> ModelClasses:
    """Return the classes of a model of timm.

    Args:
        model: the model.
        config: its `pretrained_cfg`, whose names are not those of a head that was replaced.
    """
    from swag_models.models.unwrap import strip

    published = config.get("num_classes")
    count = getattr(strip(model), "num_classes", published)
    name = str(config.get("architecture") or type(model).__name__)
    classes = read_classes({}, config, count or None, None, name) if count == published else None
    return ModelClasses(name, count or None, classes)
