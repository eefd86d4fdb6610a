"""What the page says, as HTML: a model's facts, bars, and messages. Every text from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from swag_models.app.similar import Neighbour
from swag_models.inference.predict import Prediction, Skipped
from swag_models.spec import ModelSpec

HEADER = """
<header class="top">
  <h1><span aria-hidden="true">#</span>swag_models</h1>
  <p>What a vision backbone pre-trained on hashtags makes of your picture, which stays on the machine that serves this page.</p>
</header>
"""


def describe(spec: ModelSpec, here: bool) -> str:
    """A model's facts, its licence, and whether it would have to be downloaded."""
    output = f"{spec.num_classes} classes" if spec.num_classes else "features"
    pixels = "x".join(map(str, spec.preprocess.size))
    terms = ", no commercial use" if "-nc-" in spec.license else ""
    facts = {
        "Made": escape(spec.description),
        "Size": f"{spec.num_params / 1e6:.1f}M parameters, {spec.gmacs:g} GMACs at {pixels} px",
        "Output": output,
        "Accuracy": escape(f"{spec.metrics.top1}% top-1 on {spec.metrics.dataset}")
        if spec.metrics
        else "",
        "Licence": link(spec.license.upper(), spec.license_url) + terms,
        "Weights": "on this machine"
        if here
        else f"<strong>{format_size(spec)} to download</strong>, nothing fetched yet",
    }
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value
    )
    return f'<dl class="facts" aria-label="{escape(spec.name)}">{rows}</dl>'


def ask_consent(spec: ModelSpec) -> str:
    """The caption of the button that starts a download."""
    return f"Accept {spec.license.upper()} and download {format_size(spec)}"


def draw_bars(predictions: Sequence[Prediction]) -> str:
    """Classes with their probabilities, best first."""
    rows = "".join(
        f'<li style="--share: {each.probability:.4f}"><span>{escape(each.label)}</span><b>{each.probability:.1%}</b></li>'
        for each in predictions
    )
    return f'<ol class="bars" aria-label="Most probable classes">{rows}</ol>'


def name_map(spec: ModelSpec, predictions: Sequence[Prediction], layer: int) -> str:
    """What the overlay shows; layers are counted from 1."""
    if spec.family == "vit":
        return f"Attention of the class token in block {layer}"
    return f"Grad-CAM of {predictions[0].label if predictions else 'the features'} at stage {layer}"


def draw_neighbours(neighbours: Sequence[Neighbour]) -> str:
    """Small copies of the pictures, each with its similarity and name; the copies are in the page, no file is served."""
    figures = "".join(
        f'<figure><img src="{embed_image(each.thumbnail)}" alt=""><figcaption><b>{each.similarity:.3f}</b> {escape(each.name)}'
        "</figcaption></figure>"
        for each in neighbours
    )
    return f'<div class="near">{figures}</div>'


def embed_image(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def draw_bytes(done: int, total: int) -> str:
    """How far a download is; `total` is 0 while that is not known."""
    whole = f" of {total / 2**20:.1f}" if total else ""
    return draw_progress(f"{done / 2**20:.1f}{whole} MiB", done, total)


def draw_progress(text: str, done: int, total: int) -> str:
    amount = f'value="{done}" max="{total}"' if total else ""
    return f'<label class="progress">{escape(text)}<progress {amount}></progress></label>'


def list_skipped(skipped: Sequence[Skipped]) -> str:
    """Which pictures of a folder could not be read, and why."""
    if not skipped:
        return ""
    reasons = "".join(f"<li>{escape(each.reason)}</li>" for each in skipped)
    return f'<details class="quiet"><summary>Left out as unreadable: {len(skipped)}</summary><ul>{reasons}</ul></details>'


def say(message: str) -> str:
    """An error that a screen reader reads at once: one line of it, with the first of the reasons it lists; all on request."""
    lines = message.splitlines()
    line = " ".join(each.strip() for each in lines[:2])
    more = (
        f"<details><summary>Details</summary><pre>{escape(message)}</pre></details>"
        if len(lines) > 2
        else ""
    )
    return f'<div class="notice" role="alert"><p>{escape(line)}</p>{more}</div>'


def hint(line: str) -> str:
    return f'<p class="quiet" role="status">{escape(line)}</p>'


def link(text: str, url: str) -> str:
    """A link if that is safe: the address may come from a stranger's configuration."""
    if not url.startswith("https://"):
        return escape(text)
    return f'<a href="{escape(url)}" target="_blank" rel="noreferrer">{escape(text)}</a>'


def format_size(spec: ModelSpec) -> str:
    """About what a download is."""
    return (
        f"{spec.size_mib / 1024:.1f} GiB" if spec.size_mib >= 1024 else f"{spec.size_mib:.3g} MiB"
    )
