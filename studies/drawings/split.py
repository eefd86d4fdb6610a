"""Which drawings are held out: the same ones for ever, by a hash of their names."""

from __future__ import annotations

import hashlib
from typing import Literal

from studies.drawings.sources import CLIP_ART, HELD_OUT_ARTIST

Split = Literal["train", "val", "twemoji", "clipart_test"]
SPLITS: tuple[Split, ...] = ("train", "val", "twemoji", "clipart_test")
TEST_SHARE = 0.15  # of the clip art
VAL_SHARE = 0.05  # of the drawings of all other artists


def choose_split(source: str, family: str, name: str) -> Split:
    """Return the set of a drawing.

    One whole artist, and a share of the clip art, are for tests only. Decisions may use the
    validation set: drawings by artists of the training set, of things that other artists drew for
    it. Drawings of one design in several styles are in the same set.

    Args:
        source: name of the source.
        family: see `EmojiSource`.
        name: of the thing or the file, the same in all sources of a family.
    """
    if source == HELD_OUT_ARTIST:
        return "twemoji"
    position = int(hashlib.sha256(f"{family}/{name}".encode()).hexdigest()[:8], 16) / 16**8
    if source == CLIP_ART:
        if position < TEST_SHARE:
            return "clipart_test"
        position -= TEST_SHARE
    return "val" if position < VAL_SHARE else "train"
