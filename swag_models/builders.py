"""Functions that make a model by name, as in torch.hub and torchvision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache, partial
from typing import TYPE_CHECKING, Any, overload

from swag_models.api import SPECS, load_classes, load_model, load_preprocess
from swag_models.catalog import MODELS
from swag_models.errors import UnknownModelError, check_types, plain_arguments, suggest_names
from swag_models.signatures import (
    LoadOptions,
    ModelBuilder,
    RegNetName,
    ResNetName,
    ViTName,
)
from swag_models.spec import ModelSpec, Progress
from swag_models.weights_argument import DEFAULT_WEIGHTS, find_model

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from swag_models.models import RegNet, ResNet, ViT
    from swag_models.preprocess import Transform


class WeightsEnum(Enum):
    """The weights of one model of the catalog, with the interface of torchvision's WeightsEnum.

    The only member is DEFAULT; its value is the model's spec.
    """

    @property
    def url(self) -> str:
        """The first source."""
        spec: ModelSpec = self.value
        return spec.sources[0].url

    @property
    def transforms(self) -> Callable[..., Transform]:
        """A function that makes the preprocessing."""
        return partial(load_preprocess, self.value)

    @property
    def meta(self) -> dict[str, Any]:
        """Class names, number of parameters, smallest image, accuracy and licence."""
        spec: ModelSpec = self.value
        meta: dict[str, Any] = {
            "num_params": spec.num_params,
            "min_size": spec.preprocess.size,
            "license": spec.license,
            "_ops": spec.gmacs,
        }
        if spec.classes is not None:
            meta["categories"] = list(load_classes(spec))
        if spec.metrics is not None:
            accuracy = {"acc@1": spec.metrics.top1, "acc@5": spec.metrics.top5}
            meta["_metrics"] = {spec.metrics.dataset: accuracy}
        return meta

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name: the enum is not an attribute of its module."""
        return get_weight, (str(self),)

    def get_state_dict(self, progress: Progress = True) -> dict[str, Tensor]:
        """Download and verify the weights, and return them with this library's names.

        Args:
            progress: show a progress bar.
        """
        return load_model(self.value, progress=progress).state_dict()


def hub_entries() -> Mapping[str, Callable[..., ViT | RegNet | ResNet]]:
    """Return a function per catalog name, with the signature of the original torch.hub entries."""
    return {spec.name: _make_entry(spec) for spec in MODELS}


def make_vit_builder(name: ViTName) -> ModelBuilder[ViT]:
    """Return the function that makes a ViT of the catalog."""
    builder: Any = _make_entry(SPECS[name])
    return builder


def make_regnet_builder(name: RegNetName) -> ModelBuilder[RegNet]:
    """Return the function that makes a RegNet of the catalog."""
    builder: Any = _make_entry(SPECS[name])
    return builder


def make_resnet_builder(name: ResNetName) -> ModelBuilder[ResNet]:
    """Return the function that makes a ResNet of the catalog."""
    builder: Any = _make_entry(SPECS[name])
    return builder


@cache  # one function for each name
def _make_entry(spec: ModelSpec) -> Callable[..., ViT | RegNet | ResNet]:
    def entry(
        pretrained: bool = True, progress: Progress = True, **kwargs: Any
    ) -> ViT | RegNet | ResNet:
        return load_model(spec.name, pretrained=pretrained, progress=progress, **kwargs)

    entry.__module__ = "swag_models"  # where pickle finds it
    entry.__name__ = entry.__qualname__ = spec.name
    entry.__doc__ = (
        f"{spec.arch}, {spec.description}. Weights: {spec.license}.\n\n"
        "Args:\n"
        "    pretrained: load the weights.\n"
        "    progress: show a progress bar while downloading.\n"
        "    **kwargs: any other option of `load_model`."
    )
    return entry


@overload
def get_model(name: ViTName, **options: Unpack[LoadOptions]) -> ViT: ...


@overload
def get_model(name: RegNetName, **options: Unpack[LoadOptions]) -> RegNet: ...


@overload
def get_model(name: ResNetName, **options: Unpack[LoadOptions]) -> ResNet: ...


@overload
def get_model(name: str, **options: Unpack[LoadOptions]) -> ViT | RegNet | ResNet: ...


@plain_arguments
def get_model(name: str, *, weights: Any = None, **options: Any) -> ViT | RegNet | ResNet:
    """Make a model as torchvision's function of this name does.

    Args:
        name: as for `load_model`.
        weights: "DEFAULT", or as for `load_model`; by default the model is freshly initialised.
        options: as for `load_model`.
    """
    return load_model(name, weights=weights, **options)


@plain_arguments
def get_model_builder(name: str) -> Callable[..., ViT | RegNet | ResNet]:
    """Return the function that makes a model of the catalog.

    Args:
        name: a catalog name.

    Raises:
        UnknownModelError: the model does not exist; suggests similar names.
    """
    check_types(str, name=name)
    if name not in SPECS:
        raise UnknownModelError(suggest_names("model", name, SPECS))
    return _make_entry(SPECS[name])


@plain_arguments
def get_model_weights(name: str | Callable[..., ViT | RegNet | ResNet]) -> type[WeightsEnum]:
    """Return the enum of a model's weights. It has one member, DEFAULT.

    Args:
        name: a catalog name, or the function that makes the model.

    Raises:
        UnknownModelError: the model does not exist; suggests similar names.
    """
    builder = get_model_builder(getattr(name, "__name__", name))  # type: ignore[arg-type]
    return _make_enum(builder.__name__)


@cache  # members of enums are compared by identity
def _make_enum(name: str) -> type[WeightsEnum]:
    make_enum: Any = WeightsEnum
    enum: type[WeightsEnum] = make_enum(
        f"{name}_Weights", {DEFAULT_WEIGHTS: SPECS[name]}, module=__name__
    )
    return enum


@plain_arguments
def get_weight(name: str) -> WeightsEnum:
    """Return weights by name.

    Args:
        name: for example "vit_b16_in1k_Weights.DEFAULT", or in torchvision's names
            "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1".

    Raises:
        ConfigError: no model has such weights.
    """
    check_types(str, name=name)
    return get_model_weights(find_model(name).name)[DEFAULT_WEIGHTS]
