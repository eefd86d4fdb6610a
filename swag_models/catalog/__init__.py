"""The catalog of all models and the sources of their weights: values only, a module per family."""

from swag_models.catalog.maws import MAWS
from swag_models.catalog.shipped import SHIPPED
from swag_models.catalog.swag import SWAG
from swag_models.catalog.wsl import SWSL, WSL

__all__ = ["MODELS"]

MODELS = (*SWAG, *WSL, *SWSL, *MAWS, *SHIPPED)
