"""Contact sheets: images under captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

GAP, CAPTION = 2, 16  # pixels


def draw_sheet(
    groups: Mapping[str, Sequence[Image.Image]], columns: int, side: int, footer: Sequence[str] = ()
) -> Image.Image:
    """Draw groups of images, each under its caption; 128 colours keep the file small.

    Args:
        groups: caption -> images of the same number, `side` pixels wide and high.
        columns: number of groups in a row.
        side: of an image in pixels.
        footer: lines of text below the images.
    """
    count = max(map(len, groups.values()))
    width, height = count * (side + GAP) + 4 * GAP, side + CAPTION + GAP
    rows = -(-len(groups) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height + len(footer) * CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (caption, images) in enumerate(groups.items()):
        left, top = number % columns * width, number // columns * height
        draw.text((left, top), caption, "black", font)
        for index, image in enumerate(images):
            sheet.paste(image, (left + index * (side + GAP), top + CAPTION))
    for number, line in enumerate(footer):
        draw.text((0, rows * height + number * CAPTION), line, "black", font)
    return sheet.quantize(128, dither=Image.Dither.NONE)
