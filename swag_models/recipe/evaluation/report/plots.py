"""The plots of the report, drawn once: for the page as SVG that takes its colours, for Markdown as a PNG file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.atomic import atomic_write
from swag_models.recipe.evaluation.report.tables import name_method, name_shots, order_shots
from swag_models.recipe.evaluation.results import Evaluation, Probe
from swag_models.runtime import import_extra

INK, FAINT = "#30353d", "#d4d8de"  # which the page replaces by its own
SERIES = (
    "#3579c6",
    "#c8641b",
    "#0f8b74",
    "#b7509a",
    "#8a7a1f",
    "#7d67d0",
    "#d1495b",
    "#6b7686",
)  # 3:1 on white and on black
MARKERS = "osD^vP*X"
USUAL = 20  # nearest neighbours, of which there is a learning curve
WIDTH, HEIGHT = 5.0, 3.9  # inches
RULES = {
    "svg.fonttype": "none",
    "svg.hashsalt": "swag_models",  # the same plot has the same bytes
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.5,
    **dict.fromkeys(("axes.edgecolor", "text.color", "xtick.color", "ytick.color"), INK),
}


class Plot(NamedTuple):
    """What it shows, in words for those who do not see it; how it is drawn on a figure of matplotlib; its series, if named."""

    title: str
    words: str
    draw: Callable[[Any], None]
    height: float = HEIGHT


class Series(NamedTuple):
    """Points (x, mean, spread, what x is called)."""

    label: str
    points: list[tuple[float, float, float, str]]


def plot_shots(probes: Sequence[Probe], labels: float | None) -> Plot | None:
    """Accuracy over labels of each class; `labels` is how many all are, without which there is no place for shares."""
    found: dict[str, dict[int | float | None, Probe]] = {}
    for probe in probes:
        points = found.setdefault(f"{_name_kind(probe)}, {probe.model}", {})
        before = points.get(probe.shots)
        if before is None or _stray(probe) < _stray(before):
            points[probe.shots] = probe
    every = []
    for label, points in found.items():
        places = [
            (place, points[shots].mean, points[shots].spread, name_shots(shots))
            for shots in sorted(points, key=order_shots)
            if (place := _place(shots, labels)) is not None
        ]
        every.append(Series(label, sorted(places)))
    every = [series for series in every if len(series.points) > 1]
    return _plot_series("Accuracy by labels", "labels of each class", every) if every else None


def plot_neighbours(probes: Sequence[Probe]) -> Plot | None:
    """Accuracy of nearest neighbours among all training pictures, over their number."""
    found: dict[str, dict[int, Probe]] = {}
    for probe in probes:
        if probe.method == "knn" and probe.shots is None and "k" in probe.settings:
            found.setdefault(probe.model, {})[probe.settings["k"]] = probe
    every = [
        Series(
            f"nearest neighbours, {model}",
            [(k, points[k].mean, points[k].spread, str(k)) for k in sorted(points)],
        )
        for model, points in found.items()
        if len(points) > 1
    ]
    return (
        _plot_series("Accuracy by nearest neighbours", "neighbours asked", every) if every else None
    )


def plot_reliability(evaluation: Evaluation, benchmark: str) -> Plot:
    """Accuracy over probability, and below how many pictures have it."""

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        bins, total = evaluation.bins, sum(each.images for each in evaluation.bins)
        places, widths = (
            [each.low for each in bins],
            [0.94 * (each.high - each.low) for each in bins],
        )
        upper.bar(places, [each.accuracy for each in bins], widths, align="edge", color=SERIES[0])
        upper.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1)
        upper.set(title=evaluation.model, xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %")
        lower.bar(
            places,
            [100 * each.images / max(total, 1) for each in bins],
            widths,
            align="edge",
            color=SERIES[7],
        )
        lower.set(xlabel="probability of the best class, %", ylabel="pictures, %", ylim=(0, None))
        for axes in (upper, lower):
            _rule(axes)

    filled = [each for each in evaluation.bins if each.images]
    words = "; ".join(
        f"up to {each.high:.0f}%: {each.accuracy:.0f}% of {each.images:,} right" for each in filled
    )
    return Plot(f"Calibration of {evaluation.model} on {benchmark}", words, draw, 4.4)


def make_svg(plot: Plot, name: str) -> str:
    """To be put into a page; `name` tells its parts from those of other plots there."""
    matplotlib = import_extra("matplotlib")
    with matplotlib.rc_context(RULES):
        figure = import_extra("matplotlib.figure").Figure(
            figsize=(WIDTH, plot.height), layout="constrained"
        )
        plot.draw(figure)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(
        r'(<svg) [^>]*?(viewBox="[^"]*")[^>]*>', r"\1 \2 aria-hidden='true'>", text, count=1
    )


def write_png(plots: Sequence[Plot], path: Path) -> None:
    """All of them in rows of at most three."""
    matplotlib = import_extra("matplotlib")
    columns = min(3, len(plots))
    rows = -(-len(plots) // columns)
    with matplotlib.rc_context(RULES):
        size = (WIDTH * columns, max(plot.height for plot in plots) * rows)
        figure = import_extra("matplotlib.figure").Figure(figsize=size, layout="constrained")
        for plot, part in zip(plots, figure.subfigures(rows, columns, squeeze=False).flat):
            plot.draw(part)
        with atomic_write(path) as to:
            figure.savefig(
                to, format="png", dpi=110, facecolor="white", metadata={"Software": None}
            )


def _plot_series(title: str, unit: str, every: Sequence[Series]) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, series in enumerate(every):
            places, means, spreads, _ = zip(*series.points)
            colour, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
            axes.errorbar(
                places,
                means,
                spreads,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.6,
                capsize=3,
                label=series.label,
            )
        axes.set(
            title=title,
            xlabel=unit,
            ylabel="top-1, %",
            xscale="log",
            ylim=(0, 1.05 * axes.get_ylim()[1]),
        )
        names = {name: place for series in every for place, _, _, name in series.points}
        ticks = dict.fromkeys(sorted(names.values()), "")
        for name in sorted(names, key=lambda name: not name.isdigit()):
            ticks[names[name]] += (
                name if name.isdigit() else f"\n{name}"
            )  # one below the other, for they may be near
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        _rule(axes)
        figure.legend(loc="outside lower center", frameon=False)

    words = ". ".join(
        f"{series.label}: {', '.join(f'{name} {mean:.2f}' for _, mean, _, name in series.points)}"
        for series in every
    )
    return Plot(title, words, draw, HEIGHT + 0.24 * len(every))


def _rule(axes: Any) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _place(shots: int | float | None, labels: float | None) -> float | None:
    """On the axis of labels of each class."""
    if shots is not None and shots >= 1:
        return float(shots)
    if labels is None:
        return None
    return labels if shots is None else max(1.0, shots * labels)


def _name_kind(probe: Probe) -> str:
    return "nearest neighbours" if probe.method == "knn" else name_method(probe)


def _stray(probe: Probe) -> float:
    """How far its number of neighbours is from the usual one."""
    return abs(int(probe.settings.get("k", USUAL)) - USUAL)
