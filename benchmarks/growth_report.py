"""The table and the plot of growth.py: exponents fitted to the time and memory of several sizes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from studies.pages import replace_table
from swag_models.atomic import write_text
from swag_models.formatting import markdown_table
from swag_models.recipe.plotting import make_figure, save_png

FOLDER = Path(__file__).parent
PAGE, PLOT = FOLDER / "README.md", FOLDER / "growth.png"
# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)


class Label(NamedTuple):
    """What a series measures, what its sizes count, and why an exponent is above 1."""

    what: str
    unit: str
    cause: str


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Fit the exponent b of values = a * sizes^b.

    Returns:
        The exponent, and half the width of its 95% interval; NaN for fewer than 3 sizes.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    freedom = len(x) - 2
    if freedom < 1:
        return slope, math.nan
    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / freedom / float(x @ x))
    return slope, T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1] * error


def list_rows(stored: Mapping[str, Any], labels: Mapping[str, Label]) -> list[list[str]]:
    """The rows of the table: one for each series that has at least two sizes."""
    rows = []
    for name, label in labels.items():
        points = sorted(stored.get(name, {}).values(), key=lambda point: point["size"])
        if len(points) < 2:
            continue
        sizes, seconds, mib = (
            [point[key] for point in points] for key in ("size", "seconds", "mib")
        )
        slope, half = fit_exponent(sizes, seconds)
        last, _ = fit_exponent(sizes[-2:], seconds[-2:])
        # Less than a MiB is noise of the allocator.
        grown = [(size, value) for size, value in zip(sizes, mib) if value >= 1]
        memory = f"{fit_exponent(*zip(*grown))[0]:.2f}" if len(grown) > 2 else "-"
        rows.append(
            [
                label.what,
                f"{label.unit}, {sizes[0]:,} to {sizes[-1]:,}",
                f"{seconds[0]:.3g} to {seconds[-1]:.3g}",
                f"{slope:.2f} ± {half:.2f}",
                f"{last:.2f}",
                f"{mib[0]:,.0f} to {mib[-1]:,.0f}",
                memory,
                label.cause if max(slope, last) > 1.1 else "",
            ]
        )
    return rows


def write_table(results: Mapping[str, Any], labels: Mapping[str, Label]) -> str:
    """The tables of all machines."""
    header = ["work", "size", "CPU s", "exponent", "last", "MiB", "exponent of MiB", "cause"]
    tables = []
    for machine in results.values():
        facts = machine["machine"]
        title = f"{facts['cpu']} ({facts['instructions']}), {machine['date']}, one thread:"
        tables.append(f"{title}\n\n{markdown_table(header, list_rows(machine['series'], labels))}")
    return "\n\n".join(tables)


def write_report(results: Mapping[str, Any], labels: Mapping[str, Label]) -> None:
    """Write the table in README.md, and the plot of the first machine's points."""
    part = f"{write_table(results, labels)}\n\n![CPU time and memory]({PLOT.name})"
    write_text(PAGE, replace_table(PAGE.read_text("utf-8"), "growth", part))
    figure = make_figure(9, 4)
    for axes, key, title in zip(figure.subplots(1, 2), ("seconds", "mib"), ("CPU seconds", "MiB")):
        for name, points in next(iter(results.values()))["series"].items():
            chosen = sorted(points.values(), key=lambda point: point["size"])
            smallest = chosen[0]["size"]
            axes.plot(
                [point["size"] / smallest for point in chosen],
                [max(point[key], 1e-4 if key == "seconds" else 0.1) for point in chosen],
                marker="o",
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlabel="size / smallest size", ylabel=title)
    axes.legend(fontsize=8)
    save_png(figure, PLOT)
