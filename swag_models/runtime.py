"""What this process runs on: optional packages, CPUs, versions. Imports no torch."""

from __future__ import annotations

import importlib
import os
from typing import Any

from swag_models.errors import ConfigError


def import_extra(
    module: str, install: str = "swag-models[recipe]", purpose: str = "the recipe"
) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name, for example "pyarrow.parquet".
        install: what `pip install` takes to install it.
        purpose: what needs it: the subject of the message.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{purpose} needs {package}; install it with: pip install '{install}'"
        ) from None


def count_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
