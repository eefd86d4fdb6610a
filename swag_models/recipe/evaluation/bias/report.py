"""Associations told to people: what was found, how sure it is, and what such numbers cannot show.

Axes: G groups.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from swag_models.atomic import atomic_write, disk_errors, write_texts
from swag_models.recipe.evaluation.bias.associations import Associations
from swag_models.recipe.evaluation.bias.disparity import LEVEL
from swag_models.recipe.evaluation.bias.neighbours import NeighbourShares
from swag_models.recipe.training.run_dir import find_versions
from swag_models.runtime import import_extra

SHOWN = 30  # rows of the table; the JSON file has all
DRAWN = 20  # of the plot
RATES = (0.01, 0.05, 0.2)  # for which the smallest difference that could be found is told
LIMITS = """- These are rates of a model's labels in these pictures. They are not facts about people, or about any group.
- The groups are those of the column `{column}`, as whoever made the table filled it in; nothing was inferred from pictures.
- A difference has many causes: what the pictures show, how and where they were taken, what people who post such pictures
  write beside them (that is what such models learn from), and the model's errors. These numbers do not tell which. To see,
  look at the pictures behind a label, and compare with labels that people have checked.
- That nothing was found does not prove that nothing is there: too few pictures, too rare a label, or a label that the model
  does not have. The smallest differences that could be found are above.
- Each picture counts as independent. Several of one event, person or series make differences look surer than they are.
- Another threshold, another number of labels for each picture, or other pictures give other numbers."""


def create_output_folder(folder: Path) -> None:
    """See to it that an audit can be written there: better known before the work than after it."""
    import_extra("matplotlib.figure")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_associations(found: Associations, folder: Path) -> None:
    """associations.md and .json, and where there are any labels and neighbours, disparities.png and neighbours.png.

    OutputError if they cannot be written.
    """
    create_output_folder(folder)
    with disk_errors(folder):
        for name, drawn in {
            "disparities.png": partial(_draw_disparities, found)
            if len(found.disparities.labels)
            else None,
            "neighbours.png": partial(_draw_retrieval, found.retrieval)
            if found.retrieval
            else None,
        }.items():
            if drawn:
                drawn(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)  # of an earlier audit
    files = {
        "associations.json": json.dumps(to_dict(found), indent=1, ensure_ascii=False) + "\n",
        "associations.md": "\n".join(_write_lines(found)) + "\n",
    }
    write_texts(folder, files)


def to_dict(found: Associations) -> dict[str, Any]:
    """All of it, as JSON: rates and disparities are shares, from -1 to 1."""
    judged, retrieval = found.disparities, found.retrieval
    rows = [
        {
            "label": found.names[judged.labels[row]],
            "index": int(judged.labels[row]),
            "group": found.groups.names[group],
            "rate": float(judged.rates[row, group]),
            "disparity": float(judged.values[row, group]),
            "interval": [float(judged.low[row, group]), float(judged.high[row, group])],
            "p": float(judged.p[row, group]),
            "found": bool(judged.found[row, group]),
        }
        for row, group in judged.rank()
    ]
    matrix = retrieval and {
        name: getattr(retrieval, name).tolist() for name in ("share", "expected", "p")
    }
    return {
        "model": found.model,
        "data": dict(found.facts),
        "group_column": found.column,
        "settings": asdict(found.settings),
        "versions": find_versions(),
        "groups": dict(zip(found.groups.names, found.groups.sizes.tolist())),
        "left_out": {
            "groups": dict(found.small),
            "without_group": found.ungrouped,
            "without_path": found.unplaced,
            "unreadable": found.unread,
        },
        "labels": {
            "of_model": len(found.names),
            "judged": len(judged.labels),
            "too_rare": judged.rare,
        },
        "smallest": {str(rate): judged.find_smallest(rate).tolist() for rate in RATES},
        "disparities": rows,
        "neighbours": matrix,
    }


def format_disparities(found: Associations, rows: int = SHOWN) -> str:
    """A Markdown table of the findings, the largest first, then of what is not beyond chance."""
    judged, lines = found.disparities, []
    for row, group in judged.rank()[:rows]:
        rate, value = judged.rates[row, group], judged.values[row, group]
        interval = f"{_points(judged.low[row, group])} to {_points(judged.high[row, group])}"
        verdict = "**yes**" if judged.found[row, group] else "no"
        lines.append(
            [
                found.names[judged.labels[row]],
                found.groups.names[group],
                *(f"{100 * rate:.1f}", f"{100 * (rate - value):.1f}", _points(value), interval),
                *(f"{judged.p[row, group]:.4f}", verdict),
            ]
        )
    head = ["label", "group", "rate, %", "others, %", "disparity", "95%", "p", "beyond chance"]
    return "\n".join(_tabulate(head, lines)) + "\n"


def _write_lines(found: Associations) -> Iterator[str]:
    groups = found.groups
    versions = ", ".join(f"{name} {version}" for name, version in find_versions().items())
    yield f"# Labels of {found.model}, by group"
    yield ""
    yield (
        f"Does the model give some labels more often to one group's pictures? {len(groups.codes):,} pictures of "
        f"`{found.facts['name']}`, in groups by its column `{found.column}`. Made by `swag-models recipe associations` with "
        f"{versions}."
    )
    yield ""
    yield from _tabulate(
        ["group", "pictures"],
        [[name, f"{size:,}"] for name, size in zip(groups.names, groups.sizes)],
    )
    yield ""
    yield f"Left out: {_list_left_out(found)}."
    yield ""
    yield from _write_labels(found)
    if found.retrieval:
        yield from _write_retrieval(found.retrieval, found.settings.permutations)
    yield "## What this can and cannot show"
    yield ""
    yield LIMITS.format(column=found.column)


def _write_labels(found: Associations) -> Iterator[str]:
    judged, settings, groups = found.disparities, found.settings, found.groups.names
    findings = sum(bool(judged.found[place]) for place in judged.rank())
    yield "## Labels"
    yield ""
    yield (
        f"A picture is given a label if it is among the model's best {settings.top_k} and more probable than "
        f"{settings.threshold:g}. The rate is the share of a group's pictures that are given it; the disparity is the rate "
        "less the mean of the other groups' rates, in points of percent."
    )
    yield ""
    yield (
        f"**{_count(findings, 'disparity', 'disparities')} beyond chance**, of {_count(len(judged.labels), 'label')} judged in "
        f"{len(groups)} groups. The model has {_count(len(found.names), 'label')}; {judged.rare} were given to fewer than "
        f"{settings.min_pictures} pictures, too few to judge, and the others to none."
    )
    yield ""
    if not len(judged.labels):
        return
    yield format_disparities(found)
    yield "![the largest disparities](disparities.png)"
    yield ""
    yield (
        "The test asks whether a group's pictures and all others have a label at one rate: likelihood ratios, compared with "
        f"the largest of all labels and groups in each of {settings.permutations:,} permutations of the groups (Westfall and "
        f"Young's max-T). Beyond chance is p of {LEVEL:g} or less: if groups had nothing to do with labels, even one finding "
        f"would come up in {LEVEL:.0%} of such tables. Intervals (bootstrap of each group's pictures) are of each row by "
        "itself, so one may leave out 0 where p says chance."
    )
    yield ""
    yield "PublishInfo the smallest difference that would be found 4 times of 5, in points, between a group and all others:"
    yield ""
    smallest = [
        [f"{rate:.0%}", *(f"{100 * each:.1f}" for each in judged.find_smallest(rate))]
        for rate in RATES
    ]
    yield from _tabulate(["label given to", *groups], smallest)
    yield ""


def _write_retrieval(found: NeighbourShares, permutations: int) -> Iterator[str]:
    yield "## Neighbours"
    yield ""
    yield (
        f"Of the {found.neighbours} pictures nearest to one of a row's group (cosine of the model's features), the share that "
        "is of a column's, in percent; in brackets what sizes alone would give; bold where it is beyond chance (max-T over "
        f"{permutations:,} permutations of the groups, all pairs together)."
    )
    yield ""
    rows, marks = [], np.where(found.p <= LEVEL, "**", "")
    for row, name in enumerate(found.groups.names):
        cells = [
            f"{mark}{100 * share:.1f}{mark} ({100 * expected:.1f})"
            for share, expected, mark in zip(found.share[row], found.expected[row], marks[row])
        ]
        rows.append([name, *cells])
    yield from _tabulate(["", *found.groups.names], rows)
    yield ""
    yield "![whose pictures are near whose](neighbours.png)"
    yield ""


def _list_left_out(found: Associations) -> str:
    small = ", ".join(f"{name} ({size})" for name, size in found.small.items())
    parts = [
        f"groups of fewer than {found.settings.min_group} pictures: {small}" if small else "",
        f"{_count(found.ungrouped, 'row')} without a group" if found.ungrouped else "",
        f"{_count(found.unplaced, 'row')} without a path" if found.unplaced else "",
        f"{_count(found.unread, 'picture')} that could not be read" if found.unread else "",
    ]
    return "; ".join(filter(None, parts)) or "nothing"


def _tabulate(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for line in (head, ["---"] * len(head), *rows):
        cells = [" ".join(cell.split()).replace("|", "\\|") for cell in line]
        yield f"| {' | '.join(cells)} |"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _count(number: int, what: str, more: str = "") -> str:
    return f"{number:,} {what if number == 1 else more or what + 's'}"


def _draw_disparities(found: Associations, path: Path) -> None:
    judged = found.disparities
    places = judged.rank()[:DRAWN]
    figure = import_extra("matplotlib.figure").Figure(
        figsize=(7, 1.2 + 0.28 * len(places)), layout="constrained"
    )
    axes = figure.subplots()
    for group, name in enumerate(found.groups.names):
        rows = [at for at, (_, other) in enumerate(places) if other == group]
        cells = tuple(zip(*(places[at] for at in rows))) or ((), ())
        index = tuple(np.array(each, int) for each in cells)
        value = 100 * judged.values[index]
        bars = np.abs(100 * np.stack([judged.low[index], judged.high[index]]) - value)
        axes.errorbar(value, rows, xerr=bars, fmt="none", color=f"C{group}", capsize=2)
        for kind in (True, False):
            those = judged.found[index] == kind
            fill = f"C{group}" if kind else "white"
            axes.scatter(
                value[those],
                np.array(rows, int)[those],
                color=fill,
                edgecolor=f"C{group}",
                zorder=3,
            )
        axes.scatter([], [], color=f"C{group}", label=name)
    axes.set_yticks(range(len(places)), [found.names[judged.labels[row]] for row, _ in places])
    axes.set(
        xlabel="disparity, points of percent; hollow: not beyond chance",
        ylim=(len(places) - 0.5, -0.5),
    )
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.legend(title="group")
    _save(figure, path)


def _draw_retrieval(found: NeighbourShares, path: Path) -> None:
    names, excess = found.groups.names, 100 * (found.share - found.expected)
    size = 3 + 0.7 * len(names)
    figure = import_extra("matplotlib.figure").Figure(
        figsize=(size + 1, size), layout="constrained"
    )
    axes = figure.subplots()
    limit = max(1.0, float(np.abs(excess).max()))
    shown = axes.imshow(excess, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (row, column), share in np.ndenumerate(found.share):
        mark = "*" if found.p[row, column] <= LEVEL else ""
        colour = "white" if abs(excess[row, column]) > limit / 2 else "black"
        axes.text(column, row, f"{100 * share:.1f}{mark}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(
        xlabel="group of the neighbours",
        ylabel="group of the pictures",
        title="share, %; *: beyond chance",
    )
    figure.colorbar(shown, label="more than by size alone, points")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as to:
        figure.savefig(to, format="png", dpi=110, metadata={"Software": None})
