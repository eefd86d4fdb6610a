"""The report as Markdown: the page's figures without its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from swag_models.recipe.evaluation.report.confusions import find_confusions, find_misses
from swag_models.recipe.evaluation.report.content import INTRODUCTIONS, Story, count_misses
from swag_models.recipe.evaluation.report.tables import Cell, Table, name_benchmark
from swag_models.recipe.evaluation.results import Evaluation

SPECIAL = re.compile(
    r"[\\`*\[\]<>|~#&$]|(?<![^\W_])_|_(?![^\W_])"
)  # an underscore within a word is none of Markdown's


def write_markdown(story: Story, shown: int, curves: str, calibration: str) -> str:
    """The whole text; `shown` confusions of each model, and the names of the pictures of plots."""
    lines = [f"# {story.title}", "", _escape(story.summary)]
    if story.benchmarks:
        lines += ["", "## Accuracy", "", INTRODUCTIONS["accuracy"]]
        for benchmark, table in story.accuracy.items():
            lines += ["", f"### {_escape(name_benchmark(benchmark))}", "", *_write_table(table)]
        lines += [f"\n{_escape(remark)}" for remark in story.remarks]
    if story.probes:
        lines += [
            "",
            "## With few labels",
            "",
            INTRODUCTIONS["labels"],
            "",
            *_write_table(story.shots),
        ]
        if story.curves:
            lines += ["", f"![{'; '.join(plot.title for plot in story.curves)}]({curves})"]
    if story.benchmarks:
        lines += [
            "",
            "## Calibration",
            "",
            INTRODUCTIONS["calibration"],
            "",
            f"![reliability diagrams]({calibration})",
        ]
        lines += ["", "## Errors", "", INTRODUCTIONS["errors"]]
        for benchmark, group in story.benchmarks.items():
            lines += [
                "",
                f"### {_escape(name_benchmark(benchmark))}",
                "",
                *_write_errors(group, shown),
            ]
            if len(group) > 1:
                lines += [
                    "",
                    f"What all models get wrong: {count_misses(group, find_misses(group))}.",
                ]
    lines += ["", "## How it was made"]
    for title, facts in story.making.items():
        lines += [
            "",
            f"### {title}",
            "",
            *(f"- {_escape(name)}: {_escape(text)}" for name, text in facts),
        ]
    return "\n".join(lines) + "\n"


def _write_errors(group: Sequence[Evaluation], shown: int) -> list[str]:
    rows = [
        [evaluation.model, each.truth, each.answer, f"{len(each.records):,}", f"{each.share:.0f}%"]
        for evaluation in group
        for each in find_confusions(evaluation, shown)
    ]
    return _write_rows(
        ["model", "true", "taken for", "pictures", "of the class"],
        (map(_escape, row) for row in rows),
    )


def _write_table(table: Table) -> list[str]:
    return _write_rows(
        ["model", *table.heads],
        ([_escape(model), *map(_write_cell, cells)] for model, cells in table.rows),
    )


def _write_rows(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = (f"| {' | '.join(row)} |" for row in (heads, *rows))
    return [next(lines), f"|{'---|' * len(heads)}", *lines]


def _write_cell(cell: Cell) -> str:
    text = f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text)
    return " ".join(
        [text, *map(_escape, cell.notes), *([f"⚠ {_escape(cell.warning)}"] if cell.warning else [])]
    )


def _escape(text: str) -> str:
    return SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
