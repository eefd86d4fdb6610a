"""The plots of the report: as SVG in the colours of the page, and as PNG for Markdown."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.recipe.evaluation.report.tables import format_shots, get_shots_order, name_method
from swag_models.recipe.evaluation.results import Evaluation, Probe
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.runtime import import_extra

INK, FAINT = "#30353d", "#d4d8de"  # placeholders, which the page replaces by its colours
# each has a contrast of at least 3:1 on white and on black, as WCAG requires for graphics
SERIES_COLOURS = (
    "#3579c6",
    "#c8641b",
    "#0f8b74",
    "#b7509a",
    "#8a7a1f",
    "#7d67d0",
    "#d1495b",
    "#6b7686",
)
SERIES_MARKERS = "osD^vP*X"  # shapes also distinguish the series, for colour-blind readers
PLOTTED_NEIGHBOURS = 20  # the k whose learning curve is plotted, if there are probes with several k
FIGURE_WIDTH, FIGURE_HEIGHT = 5.0, 3.9  # inches
STYLE = {
    "svg.fonttype": "none",  # text can be selected and uses the page's font
    "svg.hashsalt": "swag_models",  # the same plot has the same bytes
    "text.parse_math": False,  # a model's name may contain dollar signs
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.5,
    **dict.fromkeys(("axes.edgecolor", "text.color", "xtick.color", "ytick.color"), INK),
}


class Plot(NamedTuple):
    """A plot that has not been drawn yet.

    Attributes:
        title: title of the plot.
        description: description of the content, for screen readers.
        draw: draws the plot on an empty matplotlib figure or subfigure.
        height: height in inches.
    """

    title: str
    description: str
    draw: Callable[[Any], None]
    height: float = FIGURE_HEIGHT


class Series(NamedTuple):
    """A line of a plot.

    Attributes:
        label: label in the legend.
        points: (x, mean, standard deviation, tick label of x).
    """

    label: str
    points: list[tuple[float, float, float, str]]


def plot_few_shot(probes: Sequence[Probe], images_per_class: float | None) -> Plot | None:
    """Accuracy over the number of labelled images per class.

    Args:
        probes: probes of any models.
        images_per_class: average number of training images per class. If it is None (unknown),
            results for shares and for all images are left out, as they have no position on the
            axis.

    Returns:
        None if no series has two points.
    """
    by_series: dict[str, dict[int | float | None, Probe]] = {}
    for probe in probes:
        method = "nearest neighbours" if probe.method == "knn" else name_method(probe)
        by_shots = by_series.setdefault(f"{method}, {probe.model}", {})
        previous = by_shots.get(probe.shots)
        if previous is None or _get_k_distance(probe) < _get_k_distance(previous):
            by_shots[probe.shots] = probe
    series = []
    for label, by_shots in by_series.items():
        points = [
            (x, by_shots[shots].mean, by_shots[shots].spread, format_shots(shots))
            for shots in sorted(by_shots, key=get_shots_order)
            if (x := _get_shots_x(shots, images_per_class)) is not None
        ]
        if len(points) > 1:
            series.append(Series(label, sorted(points)))
    if not series:
        return None
    return _plot_series("Accuracy by labelled images", "labelled images per class", series)


def plot_neighbours(probes: Sequence[Probe]) -> Plot | None:
    """Accuracy of nearest neighbours among all training images, over their number k.

    Args:
        probes: probes of any models and methods.

    Returns:
        None if no model has two points.
    """
    by_model: dict[str, dict[int, Probe]] = {}
    for probe in probes:
        if probe.method == "knn" and probe.shots is None and "k" in probe.settings:
            by_model.setdefault(probe.model, {})[probe.settings["k"]] = probe
    series = [
        Series(
            f"nearest neighbours, {model}",
            [(k, by_k[k].mean, by_k[k].spread, str(k)) for k in sorted(by_k)],
        )
        for model, by_k in by_model.items()
        if len(by_k) > 1
    ]
    if not series:
        return None
    return _plot_series("Accuracy by nearest neighbours", "number of neighbours", series)


def plot_reliability(evaluation: Evaluation, benchmark: str) -> Plot:
    """Accuracy over predicted probability, and below it the share of images in each bin.

    Args:
        evaluation: evaluation of one model.
        benchmark: name of the benchmark for readers.
    """

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        bins, total = evaluation.bins, sum(bin.images for bin in evaluation.bins)
        left = [bin.low for bin in bins]
        widths = [0.94 * (bin.high - bin.low) for bin in bins]  # a gap between bars
        accuracies = [bin.accuracy for bin in bins]
        shares = [100 * bin.images / max(total, 1) for bin in bins]
        upper.bar(left, accuracies, widths, align="edge", color=SERIES_COLOURS[0])
        upper.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1)
        upper.set(title=evaluation.model, xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %")
        lower.bar(left, shares, widths, align="edge", color=SERIES_COLOURS[7])
        lower.set(
            xlabel="probability of the predicted class, %", ylabel="images, %", ylim=(0, None)
        )
        for axes in (upper, lower):
            _draw_grid(axes)

    description = "; ".join(
        f"up to {bin.high:.0f}%: {bin.accuracy:.0f}% of {bin.images:,} correct"
        for bin in evaluation.bins
        if bin.images
    )
    return Plot(f"Calibration of {evaluation.model} on {benchmark}", description, draw, 4.4)


def render_svg(plot: Plot, id_prefix: str) -> str:
    """Draw a plot as an SVG element for an HTML page.

    Args:
        plot: the plot to draw.
        id_prefix: prefix of all ids, to make them unique within the page.
    """
    with import_extra("matplotlib").rc_context(STYLE):
        figure = make_figure(FIGURE_WIDTH, plot.height)
        plot.draw(figure)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{id_prefix}-", text)
    # keeps only the view box: the page sets the size and describes the plot
    return re.sub(
        r'(<svg) [^>]*?(viewBox="[^"]*")[^>]*>', r"\1 \2 aria-hidden='true'>", text, count=1
    )


def write_plots(plots: Sequence[Plot], path: Path) -> None:
    """Write plots into one PNG file, three in a row.

    Args:
        plots: at least one.
        path: the file to write.
    """
    columns = min(3, len(plots))
    rows = -(-len(plots) // columns)
    with import_extra("matplotlib").rc_context(STYLE):
        figure = make_figure(FIGURE_WIDTH * columns, max(plot.height for plot in plots) * rows)
        for plot, part in zip(plots, figure.subfigures(rows, columns, squeeze=False).flat):
            plot.draw(part)
        save_png(figure, path, facecolor="white")


def _plot_series(title: str, x_label: str, all_series: Sequence[Series]) -> Plot:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for index, series in enumerate(all_series):
            x, means, spreads, _ = zip(*series.points)
            axes.errorbar(
                x,
                means,
                spreads,
                color=SERIES_COLOURS[index % len(SERIES_COLOURS)],
                marker=SERIES_MARKERS[index % len(SERIES_MARKERS)],
                markersize=5,
                linewidth=1.6,
                capsize=3,
                label=series.label,
            )
        top = 1.05 * axes.get_ylim()[1]
        axes.set(title=title, xlabel=x_label, ylabel="top-1, %", xscale="log", ylim=(0, top))
        tick_x = {name: x for series in all_series for x, _, _, name in series.points}
        tick_labels = dict.fromkeys(sorted(tick_x.values()), "")
        # numbers in one row, "10%" and "all" in the row below, since they may overlap a number
        for name in sorted(tick_x, key=lambda name: not name.isdigit()):
            tick_labels[tick_x[name]] += name if name.isdigit() else f"\n{name}"
        axes.set_xticks(list(tick_labels), list(tick_labels.values()))
        axes.minorticks_off()
        _draw_grid(axes)
        figure.legend(loc="outside lower center", frameon=False)

    description = ". ".join(
        f"{series.label}: {', '.join(f'{name} {mean:.2f}' for _, mean, _, name in series.points)}"
        for series in all_series
    )
    height = FIGURE_HEIGHT + 0.24 * len(all_series)  # with room for the legend
    return Plot(title, description, draw, height)


def _draw_grid(axes: Any) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _get_shots_x(shots: int | float | None, images_per_class: float | None) -> float | None:
    """The position of a number or share of images on the axis of images per class."""
    if shots is not None and shots >= 1:
        return float(shots)
    if images_per_class is None:
        return None
    return images_per_class if shots is None else max(1.0, shots * images_per_class)


def _get_k_distance(probe: Probe) -> int:
    """Distance of the number of neighbours from the plotted one."""
    return abs(int(probe.settings.get("k", PLOTTED_NEIGHBOURS)) - PLOTTED_NEIGHBOURS)
