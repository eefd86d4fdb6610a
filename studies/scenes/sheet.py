"""The contact sheet: every thing a few times, as it is in the held-out pictures.

`python -m studies.scenes.sheet docs/scenes.png` draws it again.
"""

from __future__ import annotations

import sys

from PIL import Image, ImageDraw, ImageFont

from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES

COLUMNS, EACH = 4, 4  # of things, and pictures of each
GAP, CAPTION = 2, 16  # pixels


def draw_contact_sheet(image_size: int = 64, seed: int = 0) -> Image.Image:
    """The first held-out pictures of every thing under its name, in few colours so that the file is small."""
    width, height = EACH * (image_size + GAP) + 4 * GAP, image_size + CAPTION + GAP
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(NAMES) // COLUMNS) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, name in enumerate(NAMES):
        left, top = number % COLUMNS * width, number // COLUMNS * height
        draw.text((left, top), name, "black", font)
        for each in range(EACH):
            scene = plan_held_out(seed, number + each * len(NAMES))
            sheet.paste(
                render(scene, image_size), (left + each * (image_size + GAP), top + CAPTION)
            )
    return sheet.quantize(128, dither=Image.Dither.NONE)


if __name__ == "__main__":
    draw_contact_sheet().save(sys.argv[1], optimize=True)
