"""Vision backbones pre-trained on hashtags: verified weights, preprocessing and models by name.

Every name in the catalog is also a function of this module, for example
`swag_models.vit_b16_in1k(pretrained=True, progress=True, **kwargs)`.
"""

import logging
from typing import TYPE_CHECKING

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
from swag_models.errors import SwagModelsError
from swag_models.formatting import escape_record
from swag_models.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from swag_models.models import RegNet, ViT

    def __getattr__(name: str) -> "Callable[..., ViT | RegNet]": ...


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
]

# Every module logs to this logger.
logging.getLogger("swag_models").addFilter(escape_record)

# Make `from swag_models import vit_b16_in1k` work.
globals().update(hub_entries())
__all__ += list(hub_entries())
