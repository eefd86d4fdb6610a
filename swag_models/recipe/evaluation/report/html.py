"""The report as one HTML page: nothing outside it is needed, no script, every picture inside."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from swag_models.recipe.evaluation.report.confusions import (
    Confusion,
    Miss,
    find_confusions,
    find_misses,
    pick_misses,
)
from swag_models.recipe.evaluation.report.content import (
    INTRODUCTIONS,
    Story,
    count_confusion,
    count_misses,
)
from swag_models.recipe.evaluation.report.plots import Plot, make_svg
from swag_models.recipe.evaluation.report.tables import (
    ABSENT,
    Benchmark,
    Cell,
    Table,
    name_benchmark,
)
from swag_models.recipe.evaluation.results import Evaluation, ImageResult

Thumbnails = Callable[[Evaluation, ImageResult], Image.Image | None]
STYLE = Path(__file__).with_name("page.css")
SIDE = 128  # pixels of the longer side of a thumbnail, twice what a page shows
SHOWN, PICTURES, MISSED = (
    6,
    4,
    12,
)  # confusions of a model, pictures of each, and classes that all models get wrong


def write_page(story: Story, thumbnails: Thumbnails) -> str:
    """The whole text."""
    measured = bool(story.evaluations)
    parts = [
        *([_write_accuracy(story)] if measured else []),
        *([_write_labels(story)] if story.probes else []),
        *([_write_calibration(story), _write_errors(story, thumbnails)] if measured else []),
        _write_making(story),
    ]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in parts)
    sections = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{title}</h2>{body}</section>'
        for anchor, title, body in parts
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{_escape(story.title)}</title>
<style>{STYLE.read_text("utf-8")}</style></head>
<body><header><h1>{_escape(story.title)}</h1><p>{_escape(story.summary)}</p><nav aria-label="Parts">{links}</nav></header>
<main>{sections}</main></body></html>
"""


def _write_accuracy(story: Story) -> tuple[str, str, str]:
    remarks = "".join(f"<p>{_escape(line)}</p>" for line in story.remarks)
    return "accuracy", "Accuracy", _write_benchmarks(story.accuracy, story.models) + remarks


def _write_labels(story: Story) -> tuple[str, str, str]:
    table = story.shots
    rows = "".join(_write_row(model, cells) for model, cells in table.rows)
    body = f"<thead><tr>{_write_heads(('model', *table.heads))}</tr></thead><tbody>{rows}</tbody>"
    return (
        "labels",
        "With few labels",
        _write_table(INTRODUCTIONS["labels"], body) + _write_plots(story.curves, "labels"),
    )


def _write_calibration(story: Story) -> tuple[str, str, str]:
    body = f"<p>{INTRODUCTIONS['calibration']}</p>"
    for number, (benchmark, plots) in enumerate(story.reliability.items()):
        body += f"<h3>{_escape(name_benchmark(benchmark))}</h3>{_write_plots(plots, f'calibration{number}')}"
    return "calibration", "Calibration", body


def _write_errors(story: Story, thumbnails: Thumbnails) -> tuple[str, str, str]:
    body = f"<p>{INTRODUCTIONS['errors']}</p>"
    for benchmark, group in story.benchmarks.items():
        columns = "".join(_write_confusions(evaluation, thumbnails) for evaluation in group)
        body += f'<h3>{_escape(name_benchmark(benchmark))}</h3><div class="models">{columns}</div>'
        if len(group) > 1:
            body += _write_misses(group, find_misses(group), thumbnails)
    return "errors", "Errors", body


def _write_making(story: Story) -> tuple[str, str, str]:
    body = "".join(
        f"<h3>{_escape(title)}</h3><dl>"
        + "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(text)}</dd>" for name, text in facts)
        + "</dl>"
        for title, facts in story.making.items()
    )
    return "making", "How it was made", body


def _write_benchmarks(tables: Mapping[Benchmark, Table], models: Sequence[str]) -> str:
    """One table, side by side."""
    groups = "".join(
        f'<th scope="colgroup" colspan="{len(table.heads)}">{_escape(name_benchmark(benchmark))}'
        f"<small>{_escape(benchmark[0] if benchmark[0] == 'folder' else benchmark[1])}</small></th>"
        for benchmark, table in tables.items()
    )
    heads = "".join(_write_heads(table.heads) for table in tables.values())
    rows = []
    for model in models:
        cells: list[Cell] = []
        for table in tables.values():
            cells += dict(table.rows).get(model, [ABSENT] * len(table.heads))
        rows.append(_write_row(model, cells))
    spans = "".join(f'<colgroup span="{len(table.heads)}"></colgroup>' for table in tables.values())
    head = f'<tr><th scope="col" rowspan="2">model</th>{groups}</tr><tr>{heads}</tr>'
    body = f"<colgroup></colgroup>{spans}<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
    return _write_table(INTRODUCTIONS["accuracy"], body)


def _write_table(caption: str, body: str) -> str:
    """In a box of its own, as it may be wider than the page; the keyboard scrolls it."""
    table = f"<table><caption>{caption}</caption>{body}</table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">{table}</div>'


def _write_heads(heads: Iterable[str]) -> str:
    return "".join(f'<th scope="col">{_escape(head)}</th>' for head in heads)


def _write_row(model: str, cells: Iterable[Cell]) -> str:
    return f'<tr><th scope="row">{_escape_name(model)}</th>{"".join(map(_write_cell, cells))}</tr>'


def _write_cell(cell: Cell) -> str:
    text = f"<strong>{_escape(cell.text)}</strong>" if cell.best else _escape(cell.text)
    notes = "".join(f"<small>{_escape(note)}</small>" for note in cell.notes)
    warning = f'<small class="warning">⚠ {_escape(cell.warning)}</small>' if cell.warning else ""
    return f"<td>{text}{notes}{warning}</td>"


def _write_plots(plots: Iterable[Plot], name: str) -> str:
    figures = (
        f'<figure role="img" aria-label="{_escape(f"{plot.title}: {plot.words}")}">'
        f"{make_svg(plot, f'{name}-{number}')}</figure>"
        for number, plot in enumerate(plots)
    )
    return f'<div class="plots">{"".join(figures)}</div>'


def _write_confusions(evaluation: Evaluation, thumbnails: Thumbnails) -> str:
    items = "".join(
        _write_confusion(evaluation, each, thumbnails)
        for each in find_confusions(evaluation, SHOWN)
    )
    body = f"<ol>{items}</ol>" if items else "<p>No picture is wrong.</p>"
    return f'<article class="model"><h4>{_escape(evaluation.model)}</h4>{body}</article>'


def _write_confusion(evaluation: Evaluation, confusion: Confusion, thumbnails: Thumbnails) -> str:
    figures = "".join(
        _write_picture(
            thumbnails(evaluation, record),
            f"{record.name}: {confusion.truth} taken for {confusion.answer}",
            f"{100 * record.probability:.0f}%",
        )
        for record in confusion.records[:PICTURES]
    )
    return (
        f"<li><p><b>{_escape(confusion.truth)}</b> → <b>{_escape(confusion.answer)}</b> "
        f'<small>{_escape(count_confusion(confusion))}</small></p><div class="pictures">{figures}</div></li>'
    )


def _write_misses(
    group: Sequence[Evaluation], misses: Sequence[Miss], thumbnails: Thumbnails
) -> str:
    items = "".join(
        _write_picture(
            thumbnails(group[0], miss.record),
            f"{miss.record.name}: {miss.truth}",
            f"<b>{_escape(miss.truth)}</b>{f' and {count - 1:,} more' if count > 1 else ''}"
            + "".join(
                f"<span>{_escape(answer)} {100 * probability:.0f}%<small>{_escape_name(model)}</small></span>"
                for model, answer, probability in miss.answers
            ),
        )
        for miss, count in pick_misses(misses, MISSED)
    )
    told = f"{count_misses(group, misses)}{'; of each class the one that the models are surest of' if misses else ''}"
    return f'<h4>What all models get wrong</h4><p>{_escape(told)}.</p><div class="pictures all">{items}</div>'


def _write_picture(image: Image.Image | None, words: str, caption: str) -> str:
    """With a caption in HTML."""
    shown = (
        f'<img src="{_inline(image)}" alt="{_escape(words)}">'
        if image
        else f"<span>{_escape(words)}</span>"
    )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _inline(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    image.save(written, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _escape_name(model: str) -> str:
    """With places where a narrow column may break it."""
    return re.sub("([_/:])", r"\1<wbr>", _escape(model))
