"""The contact sheet: a few held-out images of each thing.

`python -m studies.scenes.sheet docs/scenes.png` draws it.
"""

from __future__ import annotations

import sys

from PIL import Image

from studies.scenes.scene import plan_held_out, render
from studies.scenes.things import NAMES
from studies.sheet import draw_sheet

COLUMNS, PER_THING = 4, 4  # columns of things, images of each thing


def draw_contact_sheet(image_size: int = 64, seed: int = 0) -> Image.Image:
    """The first held-out images of every thing under its name."""
    groups = {
        name: [
            render(plan_held_out(seed, number + index * len(NAMES)), image_size)
            for index in range(PER_THING)
        ]
        for number, name in enumerate(NAMES)
    }
    return draw_sheet(groups, COLUMNS, image_size)


if __name__ == "__main__":
    draw_contact_sheet().save(sys.argv[1], optimize=True)
