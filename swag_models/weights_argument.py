"""What the argument `weights` of `load_model` may be: a file, "DEFAULT", a name of torchvision's.

torchvision names the weights of a model `ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1`, as the member of
an enum or as text; here each set of weights is a model of the catalog. Imports neither torch nor
torchvision.
"""

import os
import re
from enum import Enum
from pathlib import Path

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError
from swag_models.formatting import describe
from swag_models.paths import expand_path
from swag_models.spec import ModelSpec

DEFAULT_WEIGHTS = "DEFAULT"
# Variants of the catalog by torchvision's names of the weights
VARIANTS = {"IMAGENET1K_SWAG_E2E_V1": "in1k", "IMAGENET1K_SWAG_LINEAR_V1": "in1k_linear"}
WEIGHTS_NAME = re.compile(r"(\w+)_Weights\.([A-Z]\w*)|(IMAGENET1K_\w+)", re.ASCII)


def resolve_weights(weights: object, spec: ModelSpec) -> Path | None:
    """Return the local file that an argument `weights` names; None for the model's own weights.

    Args:
        weights: what the caller passed.
        spec: the model that is loaded.

    Raises:
        ConfigError: it is something else, or the weights of another model.
    """
    if isinstance(weights, Enum):
        name = f"{type(weights).__name__}.{weights.name}"
        model = weights.value if isinstance(weights.value, ModelSpec) else find_model(name)
    elif not isinstance(weights, (str, os.PathLike)):
        raise ConfigError(
            f"invalid weights {describe(weights)}: allowed: the path of a file, DEFAULT or None; "
            "load a state dict with model.load_state_dict"
        )
    elif weights == DEFAULT_WEIGHTS:
        return None
    elif isinstance(weights, str) and "://" in weights:
        raise ConfigError(
            f"invalid weights {describe(weights)}: allowed: the path of a local file; "
            "download it first"
        )
    elif isinstance(weights, str) and (match := WEIGHTS_NAME.fullmatch(weights)):
        name, model = weights, find_model(weights if match[1] else f"{spec.arch}_Weights.{weights}")
    else:
        return expand_path(weights, "weights")
    # By source: a backbone is in the same file as its linear classifier, and a folder can have
    # the name of a model of the catalog.
    if not {source.url for source in model.sources} & {source.url for source in spec.sources}:
        raise ConfigError(
            f"invalid weights {describe(name)} for {spec.name}: they are those of the model "
            f"{model.name}; load it by this name"
        )
    return None


def find_model(name: str) -> ModelSpec:
    """Return the model of the catalog with weights that are called `name`.

    Args:
        name: for example "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1" or, in this library's names,
            "vit_b16_in1k_Weights.DEFAULT".

    Raises:
        ConfigError: no model has them.
    """
    match = WEIGHTS_NAME.fullmatch(name)
    arch, weights = (match[1], match[2]) if match else ("", "")
    for spec in MODELS:
        # as `builders.get_model_weights` names them
        if spec.name == arch and weights == DEFAULT_WEIGHTS:
            return spec
        is_swag = spec.pretraining == "swag" and spec.variant == VARIANTS.get(weights)
        if is_swag and simplify(spec.arch) == simplify(arch):
            return spec
    raise ConfigError(
        f"unknown weights {describe(name)}; allowed: the path of a file, DEFAULT, or of "
        f"torchvision's those named {' and '.join(VARIANTS)}"
    )


def simplify(name: str) -> str:
    """Return a name of an architecture without what torchvision writes otherwise: case and "_"."""
    return name.lower().replace("_", "")
