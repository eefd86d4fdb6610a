"""The report of `swag-models recipe associations`: Markdown, JSON and two plots.

Axes: G groups.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from swag_models.atomic import disk_errors, write_texts
from swag_models.formatting import count_noun, markdown_table
from swag_models.recipe.evaluation.bias.associations import REPORTED_RATES, Associations
from swag_models.recipe.evaluation.bias.disparity import SIGNIFICANCE_LEVEL
from swag_models.recipe.evaluation.bias.neighbours import NeighbourShares
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.runtime import find_versions, import_extra

MAX_TABLE_ROWS = 30  # the JSON file has all rows
MAX_PLOT_ROWS = 20  # more rows are hard to read
BIAS_LIMITATIONS = """\
- These are rates of a model's labels on these images, not facts about people or groups.
- The groups are those in the column `{column}` of the table; none were inferred from images.
- A difference has many possible causes: what the images show, how and where they were taken, what
  people write when they post such images (which is what such models learn from), and the model's
  errors. These numbers do not show which. To find out, look at the images with a label, and compare
  with labels that people have checked.
- An association that was not found may still exist: there may be too few images, the label may be
  too rare, or the model may not have the label. The smallest detectable differences are listed
  above.
- The test assumes that images are independent. Several images of one event, person or series make
  differences look more certain than they are.
- A different threshold, number of labels per image, or set of images changes the numbers."""


def create_output_folder(folder: Path) -> None:
    """Create the folder of the report, and check that plots can be made.

    Call this before the images are read, so that errors are reported before hours of work.

    Args:
        folder: created if missing.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the folder cannot be created.
    """
    import_extra("matplotlib.figure")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_associations(associations: Associations, folder: Path) -> None:
    """Write associations.md, associations.json, disparities.png and neighbours.png.

    Without tested labels, or without neighbours, the plot of these is left out.

    Args:
        associations: the results.
        folder: output folder; created if missing.

    Raises:
        OutputError: the files cannot be written.
    """
    create_output_folder(folder)
    with disk_errors(folder):
        # plots of an earlier report must not remain beside this one
        for name in ("disparities.png", "neighbours.png"):
            (folder / name).unlink(missing_ok=True)
        if len(associations.disparities.labels):
            _plot_disparities(associations, folder / "disparities.png")
        if associations.neighbours:
            _plot_neighbour_shares(associations.neighbours, folder / "neighbours.png")
    # not limited to ASCII, so that class names stay readable
    values = json.dumps(associations.to_dict(), indent=1, ensure_ascii=False)
    text = "\n\n".join(_list_paragraphs(associations))
    write_texts(folder, {"associations.json": values + "\n", "associations.md": text + "\n"})


def format_disparities(associations: Associations, max_rows: int = MAX_TABLE_ROWS) -> str:
    """A Markdown table of disparities: significant ones first, then by size.

    Args:
        associations: the results.
        max_rows: maximum number of disparities.
    """
    disparities = associations.disparities
    rows = []
    for row, group in disparities.rank()[:max_rows]:
        rate, value = disparities.rates[row, group], disparities.values[row, group]
        low, high = disparities.low[row, group], disparities.high[row, group]
        rows.append(
            [
                associations.names[disparities.labels[row]],
                associations.groups.names[group],
                f"{100 * rate:.1f}",
                f"{100 * (rate - value):.1f}",  # the mean rate of the other groups
                _format_points(value),
                f"{_format_points(low)} to {_format_points(high)}",
                f"{disparities.p[row, group]:.4f}",
                "**yes**" if disparities.significant[row, group] else "no",
            ]
        )
    header = ["label", "group", "rate, %", "others, %", "disparity", "95%", "p", "beyond chance"]
    return markdown_table(header, rows) + "\n"


def _list_paragraphs(associations: Associations) -> Iterator[str]:
    """The paragraphs and tables of associations.md."""
    groups = associations.groups
    versions = ", ".join(
        f"{name} {version}"
        for name, version in find_versions("swag_models", "torch", "python").items()
    )
    yield f"# Labels of {associations.model}, by group"
    yield (
        "Does the model assign some labels more often to the images of one group? "
        f"{count_noun(len(groups.codes), 'image')} of `{associations.facts['name']}`, grouped by "
        f"the column `{associations.column}`. Written by `swag-models recipe associations` with "
        f"{versions}."
    )
    sizes = [(name, f"{size:,}") for name, size in zip(groups.names, groups.sizes)]
    yield markdown_table(["group", "images"], sizes)
    yield f"Left out: {_describe_left_out(associations)}."
    yield from _list_label_paragraphs(associations)
    if associations.neighbours:
        yield from _list_neighbour_paragraphs(
            associations.neighbours, associations.config.permutations
        )
    yield "## Limitations"
    yield BIAS_LIMITATIONS.format(column=associations.column)


def _list_label_paragraphs(associations: Associations) -> Iterator[str]:
    disparities, config = associations.disparities, associations.config
    group_names = associations.groups.names
    # counted in the ranking, which for two groups lists each disparity once, not with both signs
    num_significant = sum(bool(disparities.significant[cell]) for cell in disparities.rank())
    yield "## Labels"
    yield (
        f"An image has a label if it is among the model's {config.top_k} most probable ones and "
        f"its probability is above {config.threshold:g}. The rate is the share of a group's images "
        "with the label; the disparity is the rate minus the mean rate of the "
        "other groups, in percentage points."
    )
    yield (
        f"**{count_noun(num_significant, 'disparity', 'disparities')} beyond chance**, of "
        f"{count_noun(len(disparities.labels), 'label')} tested in "
        f"{count_noun(len(group_names), 'group')}. The model has "
        f"{count_noun(len(associations.names), 'label')}; {disparities.rare} of them occur on "
        f"fewer than {config.min_images} images, too few to be tested, and the others on none."
    )
    if not len(disparities.labels):
        return
    yield format_disparities(associations).rstrip()
    yield "![the largest disparities](disparities.png)"
    yield (
        "The test asks whether a group's images and all other images have a label at the same "
        "rate. "
        "Likelihood ratios are compared with the largest one, over all labels and groups, in each "
        f"of {config.permutations:,} permutations of the groups (Westfall and Young's max-T). "
        f"Beyond chance means a p-value of {SIGNIFICANCE_LEVEL:g} or less: if groups had no "
        f"influence on labels, {SIGNIFICANCE_LEVEL:.0%} of such tables would have a disparity "
        "beyond chance. Each interval (bootstrap of each group's images) is for a single "
        "row, so it may exclude 0 where the corrected p-value is not significant."
    )
    yield (
        "The smallest difference between a group and all other images that would be detected in "
        "4 of 5 samples, in percentage points:"
    )
    smallest = [
        [f"{rate:.0%}", *(f"{100 * value:.1f}" for value in disparities.find_smallest(rate))]
        for rate in REPORTED_RATES
    ]
    yield markdown_table(["rate of the label", *group_names], smallest)


def _list_neighbour_paragraphs(neighbours: NeighbourShares, permutations: int) -> Iterator[str]:
    yield "## Neighbours"
    yield (
        f"Of the {neighbours.neighbours} nearest neighbours (cosine similarity of the model's "
        "features) of the images of a row's group, the share from a column's group, in percent; "
        "in brackets the share expected from group sizes alone; bold where it is "
        f"beyond chance (max-T over {permutations:,} permutations of the groups, all pairs "
        "together)."
    )
    rows = []
    for row, name in enumerate(neighbours.groups.names):
        cells = [name]
        for share, expected, p in zip(
            neighbours.share[row], neighbours.expected[row], neighbours.p[row]
        ):
            # Markdown has no colours, which mark significance in the plot
            bold = "**" if p <= SIGNIFICANCE_LEVEL else ""
            cells.append(f"{bold}{100 * share:.1f}{bold} ({100 * expected:.1f})")
        rows.append(cells)
    yield markdown_table(["", *neighbours.groups.names], rows)
    yield "![groups of the nearest neighbours](neighbours.png)"


def _describe_left_out(associations: Associations) -> str:
    small = ", ".join(f"{name} ({size})" for name, size in associations.small.items())
    min_group = associations.config.min_group
    parts = [f"groups of fewer than {min_group} images: {small}"] if small else []
    if associations.without_group:
        parts.append(f"{count_noun(associations.without_group, 'row')} without a group")
    if associations.without_path:
        parts.append(f"{count_noun(associations.without_path, 'row')} without a path")
    if associations.unreadable:
        parts.append(f"{count_noun(associations.unreadable, 'image')} that could not be read")
    return "; ".join(parts) or "nothing"


def _format_points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _plot_disparities(associations: Associations, path: Path) -> None:
    """Plot the first disparities, one per row; colours mark groups, hollow markers chance."""
    disparities = associations.disparities
    cells = disparities.rank()[:MAX_PLOT_ROWS]
    figure = make_figure(7, 1.2 + 0.28 * len(cells))
    axes = figure.subplots()
    for group, name in enumerate(associations.groups.names):
        heights = np.array([y for y, (_, index) in enumerate(cells) if index == group], int)
        rows = np.array([row for row, index in cells if index == group], int)
        values = 100 * disparities.values[rows, group]
        ends = 100 * np.stack([disparities.low[rows, group], disparities.high[rows, group]])
        colour = f"C{group}"
        axes.errorbar(
            values, heights, xerr=np.abs(ends - values), fmt="none", color=colour, capsize=2
        )
        is_significant = disparities.significant[rows, group]
        for mask, fill in ((is_significant, colour), (~is_significant, "white")):
            # above the bars, so that a hollow marker hides the bar behind it
            axes.scatter(values[mask], heights[mask], color=fill, edgecolor=colour, zorder=3)
        axes.scatter([], [], color=colour, label=name)  # a filled marker for the legend
    labels = [associations.names[disparities.labels[row]] for row, _ in cells]
    axes.set_yticks(range(len(cells)), labels)
    # the first row on top
    axes.set(
        xlabel="disparity, percentage points; hollow: not beyond chance",
        ylim=(max(1, len(cells)) - 0.5, -0.5),  # there may be no row
    )
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(title="group")
    save_png(figure, path)


def _plot_neighbour_shares(neighbours: NeighbourShares, path: Path) -> None:
    """Plot the matrix of shares (G, G), coloured by their difference from the expected shares."""
    names = neighbours.groups.names
    excess = 100 * (neighbours.share - neighbours.expected)
    size = 3 + 0.7 * len(names)
    figure = make_figure(size + 1, size)
    axes = figure.subplots()
    # symmetric, so that 0 is white; at least one point, so that noise has pale colours
    limit = max(1.0, float(np.abs(excess).max()))
    image = axes.imshow(excess, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (row, column), share in np.ndenumerate(neighbours.share):
        mark = "*" if neighbours.p[row, column] <= SIGNIFICANCE_LEVEL else ""
        # readable on dark cells
        colour = "white" if abs(excess[row, column]) > limit / 2 else "black"
        axes.text(column, row, f"{100 * share:.1f}{mark}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="group of the neighbours",
        ylabel="group of the images",
        title="share, %; *: beyond chance",
    )
    figure.colorbar(image, label="difference from group sizes alone, points")
    save_png(figure, path)
