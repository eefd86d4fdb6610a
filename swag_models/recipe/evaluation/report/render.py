"""The report as HTML and as Markdown: the templates, and the filters that they use."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from swag_models.formatting import count_noun, markdown_table
from swag_models.recipe.evaluation.report.content import MAX_CONFUSION_IMAGES, ReportContent
from swag_models.recipe.evaluation.report.plots import render_svg
from swag_models.recipe.evaluation.report.tables import Cell, Table
from swag_models.recipe.evaluation.results import Evaluation, ImageResult

LoadImage = Callable[[Evaluation, ImageResult], Image.Image | None]

# Pixels of the longer side: twice the displayed size, for dense screens
REPORT_THUMBNAIL_SIDE = 128
# Characters with a meaning in Markdown. An underscore within a word has none. A pipe has one only
# in tables, where `markdown_table` escapes it.
MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>~#&$]|(?<![^\W_])_|_(?![^\W_])")


class _MarkdownText(str):
    """Text that is already Markdown, and must not be escaped again."""

    __slots__ = ()


def render_html(content: ReportContent, load_image: LoadImage) -> str:
    """Render a single HTML page without scripts and external files.

    Args:
        content: content of the report.
        load_image: returns the image of a prediction, or None if it cannot be shown.
    """
    # autoescape, because names of classes, files and models are not trusted
    environment = _make_environment(autoescape=True)
    environment.filters |= {
        "breakable": _allow_breaks,
        "data_url": _make_data_url,
        # Matplotlib escapes the texts in its SVG.
        "svg": lambda plot, id_prefix: Markup(render_svg(plot, id_prefix)),  # nosec B704
    }
    template = environment.get_template("report.html.jinja")
    return template.render(content=content, load_image=load_image, max_images=MAX_CONFUSION_IMAGES)


def render_markdown(content: ReportContent, curves: str, calibration: str) -> str:
    """Render the texts and tables of the page, without its images, as Markdown.

    Args:
        content: content of the report.
        curves: file name of the plots of probes.
        calibration: file name of the reliability diagrams.
    """
    # like autoescape for HTML: every value in a template is escaped, unless it is Markdown
    environment = _make_environment(finalize=_escape_markdown)
    environment.filters |= {"table": _format_table, "rows": _format_rows}
    template = environment.get_template("report.md.jinja")
    return template.render(content=content, curves=curves, calibration=calibration)


def _make_environment(**options: Any) -> Environment:
    environment = Environment(  # nosec B701 # HTML templates pass autoescape=True in `options`
        loader=PackageLoader(__package__),
        undefined=StrictUndefined,  # a wrong name in a template is an error, not empty text
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.globals["count_noun"] = count_noun
    return environment


def _allow_breaks(name: str) -> Markup:
    """A model's name with positions at which it can be wrapped in a narrow column."""
    # HTML entities do not contain these characters, so they stay intact
    return Markup(re.sub("([_/:])", r"\1<wbr>", str(escape(name))))  # nosec B704 # escaped


def _make_data_url(image: Image.Image) -> str:
    """A thumbnail of the image as a JPEG within a URL."""
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((REPORT_THUMBNAIL_SIDE, REPORT_THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _escape_markdown(value: object) -> str:
    """A value as a line of text, with Markdown's special characters escaped."""
    if isinstance(value, _MarkdownText):
        return value
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))


def _format_table(table: Table) -> _MarkdownText:
    rows = [[_escape_markdown(model), *map(_format_cell, cells)] for model, cells in table.rows]
    return _MarkdownText(markdown_table(["model", *table.header], rows))


def _format_rows(rows: list[list[object]], header: list[str]) -> _MarkdownText:
    return _MarkdownText(markdown_table(header, [list(map(_escape_markdown, row)) for row in rows]))


def _format_cell(cell: Cell) -> str:
    text = _escape_markdown(cell.text)
    parts = [f"**{text}**" if cell.best else text, *map(_escape_markdown, cell.notes)]
    if cell.warning:
        parts.append(f"⚠ {_escape_markdown(cell.warning)}")
    return " ".join(parts)
