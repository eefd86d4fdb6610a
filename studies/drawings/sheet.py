"""The contact sheet: some things from every source, and clip art, with credits.

`python -m studies.drawings.sheet DRAWINGS docs/drawings.png` draws it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from studies.drawings.names import read_posts
from studies.drawings.sources import CLIP_ART, EMOJI
from studies.drawings.split import SPLITS
from studies.sheet import draw_sheet

THINGS = ("snail", "red apple", "umbrella", "bicycle", "guitar", "octopus", "hamburger", "key")
CLIP_ART_THINGS = ("dog", "flower", "car", "tree")
COLUMNS, SIDE = 2, 52
FOOTER = (
    "Emoji, from left to right:",
    *(f"{source.name}: {source.artist}, {source.license}, {source.credit}" for source in EMOJI),
    "Clip art: the Open Clip Art Library (openclipart-svg of Debian), public domain",
)


def draw_drawings_sheet(drawings: Path) -> Image.Image:
    """Draw each thing from every source, and as many pieces of clip art of other things.

    Args:
        drawings: folder of `build_drawings`.
    """
    rows = {
        row["id"]: {**row, "path": folder / row["path"]}
        for split in SPLITS
        for folder in [drawings if split == "train" else drawings / split]
        for row in read_posts(folder)
    }
    groups = {}
    for thing in THINGS:
        of_source = {row["source"]: row["path"] for row in rows.values() if row["caption"] == thing}
        paths = [of_source[source.name] for source in EMOJI if source.name in of_source]
        groups[thing] = [_read(path) for path in paths]
    for thing in CLIP_ART_THINGS:
        paths = [
            row["path"]
            for _, row in sorted(rows.items())
            if row["source"] == CLIP_ART and thing in row["hashtags"]
        ]
        groups[f"clip art tagged {thing}"] = [
            _read(path) for path in paths[:: max(1, len(paths) // len(EMOJI))][: len(EMOJI)]
        ]
    return draw_sheet(groups, COLUMNS, SIDE, FOOTER)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw_drawings_sheet(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
