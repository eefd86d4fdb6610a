"""Names and options of models for type checkers and editors.

`tests/test_typing.py` compares them with the catalog and with the functions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from types import EllipsisType
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, TypeVar, overload

from swag_models.spec import Backend, ImageSize, Pool, Progress

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from swag_models.models import FeatureNet

M = TypeVar("M", covariant=True)
Weights = str | os.PathLike[str] | Enum | EllipsisType | None
ViTName = Literal[
    "vit_b16",
    "vit_b16_in1k",
    "vit_b16_in1k_linear",
    "vit_l16",
    "vit_l16_in1k",
    "vit_l16_in1k_linear",
    "vit_h14",
    "vit_h14_in1k",
    "vit_h14_in1k_linear",
    "vit_b16_mae",
    "vit_b16_maws",
    "vit_b16_maws_in1k",
    "vit_l16_mae",
    "vit_l16_maws",
    "vit_l16_maws_in1k",
    "vit_h14_mae",
    "vit_h14_maws",
    "vit_h14_maws_in1k",
    "vit_2b14_mae",
    "vit_2b14_maws",
    "vit_2b14_maws_in1k",
    "vit_6_5b14_mae",
    "vit_6_5b14_maws",
    "vit_6_5b14_maws_in1k",
    "vit_nano_hashtags",
]
RegNetName = Literal[
    "regnety_16gf",
    "regnety_16gf_in1k",
    "regnety_16gf_in1k_linear",
    "regnety_32gf",
    "regnety_32gf_in1k",
    "regnety_32gf_in1k_linear",
    "regnety_128gf",
    "regnety_128gf_in1k",
    "regnety_128gf_in1k_linear",
    "regnety_200mf_hashtags",
    "regnety_nano_hashtags",
]
ResNetName = Literal[
    "resnext101_32x8d_wsl_in1k",
    "resnext101_32x16d_wsl_in1k",
    "resnext101_32x32d_wsl_in1k",
    "resnext101_32x48d_wsl_in1k",
    "resnet18_swsl_in1k",
    "resnet50_swsl_in1k",
    "resnext50_32x4d_swsl_in1k",
    "resnext101_32x4d_swsl_in1k",
    "resnext101_32x8d_swsl_in1k",
    "resnext101_32x16d_swsl_in1k",
]


class WeightOptions(TypedDict, total=False):
    """Options of `load_model` about weights and training, with timm's names of two."""

    weights: Weights
    trusted_key: str | os.PathLike[str] | None
    drop_rate: float
    attn_drop_rate: float
    drop_path_rate: float
    patch_drop_rate: float
    merge_tokens: int | None
    global_pool: Pool | None
    backend: Backend
    weights_key: str | None
    img_size: ImageSize | None
    checkpoint_path: str | os.PathLike[str] | None


class ModelOptions(WeightOptions, total=False):
    """Options of the functions with the names of models."""

    num_classes: int | EllipsisType | None
    image_size: ImageSize | None
    in_chans: int
    device: str | torch.device
    dtype: str | torch.dtype | None


class ForwardedOptions(WeightOptions, total=False):
    """Options of `load_model` that `InferencePipeline` passes on."""

    pretrained: bool
    progress: Progress


class LoadOptions(ModelOptions, ForwardedOptions, total=False):
    """Options of `load_model`, except for those of feature maps."""


class PipelineOptions(ForwardedOptions, total=False):
    """Options of `InferencePipeline`."""

    fast: bool
    compile: bool | None
    device: str | torch.device | None
    dtype: str | torch.dtype | None
    image_size: ImageSize | None
    batch_size: int | None
    workers: int | None
    scaled_decoding: bool | None


class ModelBuilder(Protocol[M]):
    """A function with the name of a model, as in torch.hub; M is the class of the model."""

    __name__: str

    @overload
    def __call__(
        self,
        pretrained: bool = True,
        progress: Progress = True,
        *,
        features_only: Literal[True],
        out_indices: int | Sequence[int] | None = None,
        **options: Unpack[ModelOptions],
    ) -> FeatureNet: ...

    @overload
    def __call__(
        self,
        pretrained: bool = True,
        progress: Progress = True,
        **options: Unpack[ModelOptions],
    ) -> M: ...
