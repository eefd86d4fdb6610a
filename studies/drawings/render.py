"""SVG -> PNG, in parallel: a square on white, filled by what is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from swag_models.atomic import atomic_write
from swag_models.hub.progress import make_bar
from swag_models.recipe.worker_pool import map_parallel
from swag_models.runtime import import_extra

MARGIN = 0.03  # of the side, around what is drawn
MAX_ZOOM = 16  # of a small drawing on a large page
MAX_SIDE = 8192  # pixels; of an image that is rendered to be cropped
BLANK = 2  # a drawing on white whose values differ by this much or less shows nothing
CHUNK = 32  # drawings that are sent to a process at once
DPI = 96  # of lengths in mm or pt, as in CSS


class Job(NamedTuple):
    """A drawing to render.

    Attributes:
        svg: its text, or the path of its file.
        path: the PNG file to write.
    """

    svg: str | Path
    path: Path


def render_all(
    jobs: Sequence[Job], size: int, processes: int, progress: bool
) -> list[tuple[Path, str]]:
    """Write the PNG files that are missing.

    Args:
        jobs: the drawings.
        size: side of the images in pixels.
        processes: number of processes.
        progress: whether to show a progress bar.

    Returns:
        The path and the reason of each drawing that cannot be rendered, or shows nothing.
    """
    missing = [job for job in jobs if not job.path.exists()]
    for folder in {job.path.parent for job in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    rejects = []
    with (
        make_bar(
            progress, total=len(jobs), initial=len(jobs) - len(missing), unit=" images"
        ) as bar,
        closing(
            map_parallel(partial(_render_job, size=size), missing, CHUNK, processes)
        ) as results,
    ):
        for job, (png, reason) in zip(missing, results, strict=True):
            if reason:
                rejects.append((job.path, reason))
            else:
                with atomic_write(job.path) as temporary:
                    temporary.write_bytes(png)
            bar.update()
    return rejects


def _render_job(job: Job, size: int) -> tuple[bytes, str]:
    """The PNG file of a drawing, or why there is none."""
    try:
        return render(job.svg, size), ""
    except ValueError as error:
        return b"", str(error).strip() or "cannot be rendered"


def render(svg: str | Path, size: int) -> bytes:
    """Render a drawing as a PNG file: a square of white, filled by what is drawn.

    Text is left out, because its look depends on the fonts of the machine.

    Args:
        svg: its text, or the path of its file.
        size: side of the image in pixels.

    Raises:
        ValueError: the SVG is broken, or shows nothing.
    """
    image = _draw(svg, size)
    box = image.getchannel("A").getbbox()
    if box is None:
        raise ValueError("nothing is drawn")
    inner = round(size * (1 - 2 * MARGIN))
    longest = max(box[2] - box[0], box[3] - box[1])
    # a small drawing on a large page is rendered again, larger
    zoom = min(inner / longest, MAX_ZOOM, MAX_SIDE / max(image.size))
    if zoom > 1.05:
        image = _draw(svg, round(size * zoom))
        box = image.getchannel("A").getbbox() or box
    image = image.crop(box)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    drawing = white.convert("RGB")
    if all(high - low <= BLANK for low, high in drawing.getextrema()):  # type: ignore[misc]
        raise ValueError("the image has a single colour")
    drawing = ImageOps.contain(drawing, (inner, inner), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    data = io.BytesIO()
    square.save(data, "PNG")
    return data.getvalue()


def _draw(svg: str | Path, side: int) -> Image.Image:
    """The page as an RGBA image whose longer side has `side` pixels."""
    resvg: Any = import_extra("resvg_py", "resvg-py", "rendering SVG files")
    source = {"svg_path": str(svg)} if isinstance(svg, Path) else {"svg_string": svg}
    for name in ("width", "height"):
        png = resvg.svg_to_bytes(**source, **{name: side}, skip_system_fonts=True, dpi=DPI)
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        if max(image.size) <= side:
            break
    return image
