"""Vision backbones pre-trained on hashtags: verified weights, preprocessing and models by name.

Every name in the catalog is also a function of this module, for example
`swag_models.vit_b16_in1k(pretrained=True, progress=True, **kwargs)`.
"""

import logging as _logging

from swag_models.api import (
    get_spec,
    list_models,
    load_classes,
    load_model,
    load_preprocess,
)
from swag_models.builders import (
    get_model,
    get_model_builder,
    get_model_weights,
    get_weight,
    hub_entries,
)
from swag_models.builders import make_regnet_builder as _make_regnet_builder
from swag_models.builders import make_resnet_builder as _make_resnet_builder
from swag_models.builders import make_vit_builder as _make_vit_builder
from swag_models.errors import SwagModelsError
from swag_models.formatting import escape_record as _escape_record
from swag_models.spec import ModelSpec

__version__ = "0.1.0"
__all__ = [
    "ModelSpec",
    "SwagModelsError",
    "get_model",
    "get_model_builder",
    "get_model_weights",
    "get_spec",
    "get_weight",
    "hub_entries",
    "list_models",
    "load_classes",
    "load_model",
    "load_preprocess",
    "regnety_16gf",
    "regnety_16gf_in1k",
    "regnety_16gf_in1k_linear",
    "regnety_32gf",
    "regnety_32gf_in1k",
    "regnety_32gf_in1k_linear",
    "regnety_128gf",
    "regnety_128gf_in1k",
    "regnety_128gf_in1k_linear",
    "vit_b16",
    "vit_b16_in1k",
    "vit_b16_in1k_linear",
    "vit_l16",
    "vit_l16_in1k",
    "vit_l16_in1k_linear",
    "vit_h14",
    "vit_h14_in1k",
    "vit_h14_in1k_linear",
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
    "regnety_200mf_hashtags",
    "regnety_nano_hashtags",
]

# Written out, so that editors and type checkers know the names.
regnety_16gf = _make_regnet_builder("regnety_16gf")
regnety_16gf_in1k = _make_regnet_builder("regnety_16gf_in1k")
regnety_16gf_in1k_linear = _make_regnet_builder("regnety_16gf_in1k_linear")
regnety_32gf = _make_regnet_builder("regnety_32gf")
regnety_32gf_in1k = _make_regnet_builder("regnety_32gf_in1k")
regnety_32gf_in1k_linear = _make_regnet_builder("regnety_32gf_in1k_linear")
regnety_128gf = _make_regnet_builder("regnety_128gf")
regnety_128gf_in1k = _make_regnet_builder("regnety_128gf_in1k")
regnety_128gf_in1k_linear = _make_regnet_builder("regnety_128gf_in1k_linear")
vit_b16 = _make_vit_builder("vit_b16")
vit_b16_in1k = _make_vit_builder("vit_b16_in1k")
vit_b16_in1k_linear = _make_vit_builder("vit_b16_in1k_linear")
vit_l16 = _make_vit_builder("vit_l16")
vit_l16_in1k = _make_vit_builder("vit_l16_in1k")
vit_l16_in1k_linear = _make_vit_builder("vit_l16_in1k_linear")
vit_h14 = _make_vit_builder("vit_h14")
vit_h14_in1k = _make_vit_builder("vit_h14_in1k")
vit_h14_in1k_linear = _make_vit_builder("vit_h14_in1k_linear")
resnext101_32x8d_wsl_in1k = _make_resnet_builder("resnext101_32x8d_wsl_in1k")
resnext101_32x16d_wsl_in1k = _make_resnet_builder("resnext101_32x16d_wsl_in1k")
resnext101_32x32d_wsl_in1k = _make_resnet_builder("resnext101_32x32d_wsl_in1k")
resnext101_32x48d_wsl_in1k = _make_resnet_builder("resnext101_32x48d_wsl_in1k")
resnet18_swsl_in1k = _make_resnet_builder("resnet18_swsl_in1k")
resnet50_swsl_in1k = _make_resnet_builder("resnet50_swsl_in1k")
resnext50_32x4d_swsl_in1k = _make_resnet_builder("resnext50_32x4d_swsl_in1k")
resnext101_32x4d_swsl_in1k = _make_resnet_builder("resnext101_32x4d_swsl_in1k")
resnext101_32x8d_swsl_in1k = _make_resnet_builder("resnext101_32x8d_swsl_in1k")
resnext101_32x16d_swsl_in1k = _make_resnet_builder("resnext101_32x16d_swsl_in1k")
vit_b16_mae = _make_vit_builder("vit_b16_mae")
vit_b16_maws = _make_vit_builder("vit_b16_maws")
vit_b16_maws_in1k = _make_vit_builder("vit_b16_maws_in1k")
vit_l16_mae = _make_vit_builder("vit_l16_mae")
vit_l16_maws = _make_vit_builder("vit_l16_maws")
vit_l16_maws_in1k = _make_vit_builder("vit_l16_maws_in1k")
vit_h14_mae = _make_vit_builder("vit_h14_mae")
vit_h14_maws = _make_vit_builder("vit_h14_maws")
vit_h14_maws_in1k = _make_vit_builder("vit_h14_maws_in1k")
vit_2b14_mae = _make_vit_builder("vit_2b14_mae")
vit_2b14_maws = _make_vit_builder("vit_2b14_maws")
vit_2b14_maws_in1k = _make_vit_builder("vit_2b14_maws_in1k")
vit_6_5b14_mae = _make_vit_builder("vit_6_5b14_mae")
vit_6_5b14_maws = _make_vit_builder("vit_6_5b14_maws")
vit_6_5b14_maws_in1k = _make_vit_builder("vit_6_5b14_maws_in1k")
vit_nano_hashtags = _make_vit_builder("vit_nano_hashtags")
regnety_200mf_hashtags = _make_regnet_builder("regnety_200mf_hashtags")
regnety_nano_hashtags = _make_regnet_builder("regnety_nano_hashtags")

# Every module logs to this logger.
_logging.getLogger("swag_models").addFilter(_escape_record)


def __dir__() -> list[str]:
    return sorted(__all__)
