"""A PNG of pairs of images, to see what was taken for a copy of what."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from swag_models.atomic import atomic_write
from swag_models.errors import ImageError
from swag_models.image_decoding import read_image
from swag_models.recipe.data.image_index import ImageLocation

MAX_PAIRS = 48
IMAGE_SIDE, GAP, LINE = 160, 8, 14  # pixels: of an image, between images, height of a line of text
SHEET_COLUMNS = 4  # pairs in a row
MAX_CAPTION = 26  # characters of a caption under one image


class Pair(NamedTuple):
    """Two images of a contact sheet.

    Attributes:
        left: an image.
        right: the image that it is a copy of.
        distance: between them; 0 for equal pixels.
    """

    left: ImageLocation
    right: ImageLocation
    distance: float


def write_contact_sheet(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the pairs side by side with their ids and distances, the least similar ones first.

    Args:
        path: the PNG file to write.
        pairs: of more than 48 pairs, the least similar 48 are shown.
    """
    shown = sorted(pairs, key=lambda pair: (-pair.distance, pair.left.name))[:MAX_PAIRS]
    columns, rows = min(SHEET_COLUMNS, len(shown)), -(-len(shown) // SHEET_COLUMNS)
    width, height = 2 * IMAGE_SIDE + 3 * GAP, IMAGE_SIDE + 2 * LINE + 2 * GAP
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(shown):
        left, top = number % SHEET_COLUMNS * width + GAP, number // SHEET_COLUMNS * height + GAP
        for location, x in ((pair.left, left), (pair.right, left + IMAGE_SIDE + GAP)):
            sheet.paste(_read_tile(location), (x, top))
            draw.text((x, top + IMAGE_SIDE), _shorten(location.id or location.name), "black")
        draw.text((left, top + IMAGE_SIDE + LINE), f"distance {pair.distance:.2f}", "black")
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG")


def _read_tile(location: ImageLocation) -> Image.Image:
    """An image within a grey square; an empty square for one that was removed in the meantime."""
    tile = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), (235, 235, 235))
    try:
        image = read_image(io.BytesIO(location.read()), location.name)
    except ImageError:
        return tile
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    tile.paste(image, ((IMAGE_SIDE - image.width) // 2, (IMAGE_SIDE - image.height) // 2))
    return tile


def _shorten(text: str) -> str:
    # Pillow's own font has few characters
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= MAX_CAPTION else f"{text[: MAX_CAPTION - 3]}..."
