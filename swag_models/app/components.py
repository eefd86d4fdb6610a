"""The look of the page: HTML fragments (components.html.jinja), theme, style sheet (style.css)."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from PIL import Image

from swag_models.api import SPECS
from swag_models.app.csv_export import format_csv
from swag_models.app.similar import FoundImage
from swag_models.formatting import count_noun, list_names, spell_license
from swag_models.hub.cache import is_shipped
from swag_models.inference.predict import Prediction, Skipped
from swag_models.spec import ModelSpec

if TYPE_CHECKING:
    import gradio as gr

# Pre-training -> its name, in the order in which the models are listed
FAMILIES = {"swag": "SWAG", "maws": "MAWS", "swsl": "SWSL", "wsl": "WSL", None: "Other"}
STYLE_SHEET = Path(__file__).with_name("style.css")
MAX_COPIES = 5  # names that are shown
MAX_CLASSES = 6  # of one search, whose names are shown
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="#0f766e"/>
<path d="M12 7 10 25M22 7 20 25M7 13H25M7 19H25" stroke="white" stroke-width="2.6"
  stroke-linecap="round"/>
</svg>"""  # a number sign, as in a hashtag
# A wide window has space for the facts. Not in the style sheet, whose @supports Gradio drops.
WIDE_STYLE = """
@supports selector(::details-content) {
  @media (min-width: 641px) {
    .facts summary { display: none; }
    .facts::details-content { display: block; height: auto; content-visibility: visible; }
  }
}"""
HEAD = f"""<link rel="icon" href="data:image/svg+xml,{quote(ICON)}">
<style>{WIDE_STYLE}</style>"""

# autoescape: names, labels and messages come from users, files and third-party models
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
).get_template("components.html.jinja", globals={"count_noun": count_noun})


def render_header(is_private: bool) -> str:
    """The title of the page, and what leaves which machine.

    Args:
        is_private: whether only this machine can reach the page.
    """
    return _render("header", is_private)


def list_choices(specs: Mapping[str, ModelSpec]) -> list[tuple[str, str]]:
    """The models that can be used, by family: text to choose and name.

    Args:
        specs: models by name. Those without a source for their weights are left out.
    """
    groups: dict[str, list[str]] = {group: [] for group in ("Own", "Included", *FAMILIES.values())}
    for name, spec in specs.items():
        if not spec.sources:
            continue
        if name not in SPECS:
            group = "Own"
        elif is_shipped(spec.sources[0]):
            group = "Included"
        else:
            group = FAMILIES[spec.pretraining]
        groups[group].append(name)
    return [(f"{group}: {name}", name) for group, names in groups.items() for name in names]


def render_examples_note(specs: Mapping[str, ModelSpec]) -> str:
    """How the example images were chosen, and how often the included models are right on others."""
    included = [spec for spec in specs.values() if spec.metrics and is_shipped(spec.sources[0])]
    return _render("examples_note", included)


def render_facts(spec: ModelSpec, is_local: bool) -> str:
    """Facts about a model, with its licence and, unless `is_local`, the size of its download."""
    return _render("facts", spec, is_local, spell_license(spec.license), format_size(spec))


def render_predictions(model: str, predictions: Sequence[Prediction]) -> str:
    """Classes with their probabilities as bars, in the given order, and a link to save them."""
    rows = [(model, p.label, p.probability) for p in predictions]
    link = render_csv_link("classes", ("model", "class", "probability"), rows)
    return _render("predictions", predictions) + link


def render_comparison(results: Sequence[tuple[str, Sequence[Prediction], float]]) -> str:
    """Classes of several models side by side, and a link to save them.

    Args:
        results: name of each model, its most probable classes, and its time per image in seconds.
    """
    rows: list[tuple[str, float, str | None, float | None]] = []
    for model, predictions, seconds in results:
        milliseconds = round(1000 * seconds, 3)
        rows += [(model, milliseconds, p.label, p.probability) for p in predictions]
        rows += [(model, milliseconds, None, None)] * (not predictions)
    header = ("model", "milliseconds", "class", "probability")
    shown = [(model, found, format_time(seconds)) for model, found, seconds in results]
    return _render("comparison", shown) + render_csv_link("comparison", header, rows)


def format_time(seconds: float) -> str:
    """A time with three digits: "1.23 ms", "1.23 s"."""
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def render_neighbours(images: Sequence[FoundImage]) -> str:
    """The images most similar to the chosen one; empty without images."""
    if not images:
        return ""
    title = "Most similar to the image"
    scores = [f"{image.score:.3f}" for image in images]
    rows = [(image.name, image.score) for image in images]
    link = render_csv_link("similar images", ("image", "cosine_similarity"), rows)
    return _render_found(title, images, scores) + link


def render_class(names: Sequence[str], images: Sequence[FoundImage]) -> str:
    """The images in which classes with these names are most probable."""
    content = list_names(names, MAX_CLASSES)
    title = f"Most probably {content}"
    if not images:
        return render_hint(f"{title}: no image of the folder can be read")
    scores = [f"{100 * image.score:.1f}%" for image in images]
    rows = [(content, image.name, image.score) for image in images]
    link = render_csv_link("images of the class", ("class", "image", "probability"), rows)
    return _render_found(title, images, scores) + link


def _render_found(title: str, images: Sequence[FoundImage], scores: Sequence[str]) -> str:
    """Thumbnails, each with its score and name.

    The thumbnails are part of the HTML, so no file of the user's folder has to be served.
    """
    shown = [
        (score, image.name, encode_image(image.thumbnail)) for score, image in zip(scores, images)
    ]
    return _render("found", title, shown)


def render_csv_link(
    content: str, header: Sequence[str], rows: Sequence[Sequence[str | float | None]]
) -> str:
    """A link that saves a table as a CSV file.

    The file is part of the link, so that nothing is written on this machine and no other address
    has to be served.

    Args:
        content: what the table has, for the text of the link and the name of the file.
        header: names of the columns.
        rows: one value per column.
    """
    encoded = base64.b64encode(format_csv(header, rows)).decode()
    url = f"data:text/csv;charset=utf-8;base64,{encoded}"
    return _render("csv_link", content, f"{content.replace(' ', '_')}.csv", url)


def render_copies(names: Sequence[str]) -> str:
    """The names of the files that are the chosen image itself; empty without names."""
    names = [
        *names[:MAX_COPIES],
        *([f"and {len(names) - MAX_COPIES} more"] * (len(names) > MAX_COPIES)),
    ]
    return _render("copies", names)


def render_skipped(skipped: Sequence[Skipped]) -> str:
    """The images of a folder that cannot be read, with the reasons; empty if all can be read."""
    return _render("skipped", skipped)


def render_progress(text: str, done: int, total: int) -> str:
    """A progress bar with a text; `total` is 0 while it is unknown."""
    return _render("progress", text, done, total)


def render_download(done: int, total: int) -> str:
    """A progress bar of a download, in bytes; `total` is 0 while it is unknown."""
    size = f" of {total / 2**20:.1f}" if total else ""
    return render_progress(f"{done / 2**20:.1f}{size} MiB", done, total)


def render_error(message: str) -> str:
    """An error message, which screen readers announce at once.

    The first two lines of a longer message, a summary and the first reason, are shown on one line,
    and the whole message can be expanded.
    """
    lines = message.splitlines()
    summary = " ".join(line.strip() for line in lines[:2])
    return _render("error", summary, message if len(lines) > 2 else "")


def render_hint(line: str) -> str:
    """A line of help or status."""
    return _render("hint", line)


def make_consent_label(spec: ModelSpec) -> str:
    """Label of the button that accepts the licence and starts the download."""
    return f"Accept {spell_license(spec.license)} and download {format_size(spec)}"


def make_saliency_label(spec: ModelSpec, predictions: Sequence[Prediction], layer: int) -> str:
    """Label of the saliency map; `layer` counts from 1."""
    if spec.family == "vit":
        return f"Attention of the class token in block {layer}"
    return f"Grad-CAM of {predictions[0].label if predictions else 'the features'} at stage {layer}"


def format_size(spec: ModelSpec) -> str:
    """Approximate size of a download."""
    mib = spec.size_mib
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.3g} MiB"


def make_theme() -> "gr.themes.Base":
    """Gradio's plain theme in calm colours, with the fonts of the user's system."""
    import gradio as gr  # here, because the HTML fragments do not need it

    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        block_shadow="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        slider_color="*primary_600",
    )


def _render(macro: str, *values: Any) -> str:
    # str, because the Markup that a macro returns would escape what is added to it
    return str(getattr(_TEMPLATES.module, macro)(*values))


def encode_image(image: Image.Image) -> str:
    """An image as a data URL."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
