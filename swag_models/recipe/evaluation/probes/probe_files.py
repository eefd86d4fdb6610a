"""Results of probes as files and as text."""

import json
import os
from collections.abc import Sequence

from swag_models.atomic import write_texts
from swag_models.formatting import markdown_table
from swag_models.paths import expand_path
from swag_models.recipe.evaluation.results import Probe


def write_probes(probes: Sequence[Probe], folder: str | os.PathLike[str]) -> None:
    """Write probes.json and probes.md into a folder.

    Raises:
        OutputError: they cannot be written.
    """
    files = {
        "probes.json": json.dumps([result.to_dict() for result in probes], indent=2) + "\n",
        "probes.md": format_probes(probes) + "\n",
    }
    write_texts(expand_path(folder, "folder"), files)


def format_probes(probes: Sequence[Probe]) -> str:
    """Format a Markdown table of top-1 in percent, as mean and standard deviation over splits."""
    rows = []
    for result in probes:
        spread = f" ± {result.spread:.2f}" if len(result.values) > 1 else ""
        chosen = [
            f"{name} {result.settings[name]:g}" for name in ("k", "C") if name in result.settings
        ]
        shots = _format_shots(result.shots)
        accuracy = f"{result.mean:.2f}{spread}"
        rows.append([result.model, result.method, shots, accuracy, ", ".join(chosen)])
    return markdown_table(["model", "method", "labels of each class", "top-1", "chosen"], rows)


def _format_shots(shots: float | None) -> str:
    if shots is None:
        return "all"
    return f"{100 * shots:g}%" if shots < 1 else f"{shots:g}"
