"""The contact sheet: a few held-out images of each thing.

`python -m studies.scenes.sheet docs/scenes.png` draws it.
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES

COLUMNS, PER_THING = 4, 4  # columns of things, images of each thing
GAP, CAPTION = 2, 16  # pixels


def draw_contact_sheet(image_size: int = 64, seed: int = 0) -> Image.Image:
    """The first held-out images of every thing under its name; 128 colours keep the file small."""
    width, height = PER_THING * (image_size + GAP) + 4 * GAP, image_size + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(NAMES) // COLUMNS) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, name in enumerate(NAMES):
        left, top = number % COLUMNS * width, number // COLUMNS * height
        draw.text((left, top), name, "black", font)
        for index in range(PER_THING):
            scene = plan_held_out(seed, number + index * len(NAMES))
            sheet.paste(
                render(scene, image_size), (left + index * (image_size + GAP), top + CAPTION)
            )
    return sheet.quantize(128, dither=Image.Dither.NONE)


if __name__ == "__main__":
    draw_contact_sheet().save(sys.argv[1], optimize=True)
