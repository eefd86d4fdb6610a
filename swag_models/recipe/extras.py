"""Packages of the extra [recipe], imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from swag_models.errors import ConfigError


def import_extra(name: str, install: str = '"swag-models[recipe]"') -> Any:
    """A module of the extra [recipe], or of what pip installs as `install`; ConfigError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ConfigError(f"the recipe needs {package}; install it with: pip install {install}") from None
