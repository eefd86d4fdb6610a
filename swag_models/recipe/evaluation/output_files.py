"""The files of an evaluation, which no other evaluation may overwrite."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swag_models.atomic import disk_errors
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError

MAX_STEM = 200  # characters of a file name; file systems allow 255 bytes


def check_output(
    folder: Path, model: str, benchmark: str, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Create the output folder and check that no other evaluation would be overwritten.

    Args:
        folder: where `write_evaluation` will write.
        model: name of the model.
        benchmark: name of the benchmark.
        facts: description of the data.
        settings: settings of the evaluation.

    Raises:
        ConfigError: the folder has an evaluation of this model and benchmark on other data or with
            other settings.
        OutputError: the folder cannot be created.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{make_stem(model, benchmark)}.json"
    if not path.exists():
        return
    try:
        stored = parse_json(path.read_text("utf-8"))
        equal_parts = {
            "data": stored["facts"] == dict(facts),
            "settings": stored["settings"] == dict(settings),
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path} is not an evaluation or is damaged; move it, or choose another folder"
        ) from None
    if different := [name for name, equal in equal_parts.items() if not equal]:
        raise ConfigError(
            f"{path} has results of other {' and '.join(different)}; choose another folder, "
            "or move the file"
        )


def make_stem(model: str, benchmark: str) -> str:
    """Make a file name without suffix; replace all but letters, digits and ._- with -."""
    # A leading dot would hide the file, and a leading dash would look like an option.
    return re.sub(r"[^\w.-]+", "-", f"{model}-{benchmark}").lstrip(".-")[:MAX_STEM]
