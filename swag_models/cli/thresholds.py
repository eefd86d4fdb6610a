"""The option --threshold."""

import argparse
import contextlib
from typing import Any

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.paths import expand_path, read_regular

MAX_SIZE = 1 << 26  # bytes of a file of thresholds


def add_threshold_option(command: argparse.ArgumentParser, help: str) -> None:
    """Declare --threshold; `help` says what it is for."""
    command.add_argument(
        "--threshold",
        metavar="NUMBER",
        help=f"{help}, 0 to 1; or a .json file with an object of class names and thresholds, or a "
        "list with one for each class",
    )


def read_threshold(options: argparse.Namespace) -> Any:
    """The number, or the content of the JSON file, which is still to be checked; None without.

    Raises:
        ConfigError: it is neither.
    """
    text = options.threshold
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    path = expand_path(text, "--threshold")
    if path.suffix != ".json":
        raise ConfigError(
            f"invalid --threshold {text!r}: allowed: a number from 0 to 1, or a .json file"
        )
    try:
        return parse_json(read_regular(path, MAX_SIZE), unique_keys=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {describe_error(error)}") from None
