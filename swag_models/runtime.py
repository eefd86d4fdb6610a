"""Optional packages and their versions; CPUs and memory of this process. Imports no torch."""

import contextlib
import importlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

from swag_models.errors import ConfigError
from swag_models.formatting import describe


def import_extra(
    module: str, install: str = "swag-models[recipe]", purpose: str = "the recipe"
) -> Any:
    """Import a module of an optional package.

    Args:
        module: dotted name, for example "pyarrow.parquet".
        install: the argument of `pip install` that installs it.
        purpose: what needs it; the subject of the error message.

    Returns:
        The module.

    Raises:
        ConfigError: the package, or one that it needs, is not installed; the message says how to
            install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # The missing package may be a dependency of the requested one.
        package = (error.name or module).partition(".")[0]
        raise ConfigError(
            f"{purpose} needs {package}; install it with: pip install '{install}'"
        ) from None


def find_versions(*packages: str, install: str = "swag-models[recipe]") -> dict[str, str]:
    """Return the versions of installed packages by name, without importing them.

    Args:
        packages: names as in `pip install`, for example "ibis-framework"; "python" for the
            interpreter.
        install: the argument of `pip install` that installs them.

    Raises:
        ConfigError: one is not installed; the message says how to install it.
    """
    from importlib import metadata  # takes 30 ms to import, too slow for listing models

    # This package may run from a source tree or a zip file, which have no metadata. It is not
    # imported here, because it imports this module.
    own: str = sys.modules["swag_models"].__version__
    known = {"python": platform.python_version(), "swag_models": own}
    try:
        return {package: known.get(package) or metadata.version(package) for package in packages}
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; install it with: pip install '{install}'"
        ) from None


def count_cpus() -> int:
    """Return the number of CPUs that this process may use, which may be fewer than the total."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_free_memory() -> int | None:
    """Return the bytes that this process can still get, swap included; None if not known."""
    try:
        fields = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * (int(fields["MemAvailable:"]) + int(fields["SwapFree:"]))
    except (OSError, ValueError, KeyError):  # not Linux
        return None
    # The limit of a container (control groups, version 2). Cached files can be dropped.
    with contextlib.suppress(OSError, ValueError, KeyError):
        group = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["file"])
        free = min(free, int((group / "memory.max").read_text()) - used)  # or "max"
    return free


def read_environment(name: str, default: int) -> int:
    """Return a number that torchrun sets in the environment, or the default without it.

    Raises:
        ConfigError: it is not a number of at least 0.
    """
    text = os.environ.get(name, default)
    try:
        if (number := int(text)) >= 0:
            return number
        raise ValueError
    except ValueError:
        raise ConfigError(
            f"{name} is {describe(text)} in the environment; set an integer as torchrun does, "
            "or unset it"
        ) from None
