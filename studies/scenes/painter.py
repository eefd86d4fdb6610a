"""Painting by numbers: shapes are drawn as numbers on one sheet, then every number gets two colours that a texture mixes.

Axes: s pixels of the sheet's side, which is OVER times the picture's; H W pixels of the picture, 3 colour channels.
"""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from studies.scenes.drawings import DRAWINGS, LOOSE
from studies.scenes.shapes import Points
from studies.scenes.things import BY_NAME

Array = np.ndarray[Any, Any]
Colour = tuple[float, float, float]  # red, green, blue from 0 to 255

OVER = 3  # pixels of the sheet per pixel of the picture, each way
TEXTURES = ("plain", "stripes", "checks", "dots", "speckle")
GROUNDS = (*TEXTURES, "gradient", "gradient", "clouds", "clouds", "tiles")
CELLS = {"speckle": (48, 64), "clouds": (3, 5, 9), "tiles": (4, 7, 10)}  # across, of what is random
HABIT = 0.75  # of all things have the colours that their kind usually has
HUES = {  # hue, saturation and value, each from and to
    "red": ((-0.03, 0.03), (0.7, 1), (0.6, 1)),
    "orange": ((0.05, 0.1), (0.7, 1), (0.75, 1)),
    "yellow": ((0.13, 0.17), (0.6, 1), (0.8, 1)),
    "green": ((0.25, 0.4), (0.5, 1), (0.35, 0.8)),
    "blue": ((0.55, 0.67), (0.5, 1), (0.5, 1)),
    "purple": ((0.72, 0.82), (0.4, 0.9), (0.4, 0.9)),
    "pink": ((0.87, 0.95), (0.3, 0.7), (0.8, 1)),
    "brown": ((0.04, 0.09), (0.5, 0.8), (0.25, 0.5)),
    "white": ((0, 1), (0, 0.1), (0.9, 1)),
    "grey": ((0, 1), (0, 0.1), (0.4, 0.7)),
    "black": ((0, 1), (0, 0.3), (0.05, 0.2)),
}
TONES = {
    "a": (1.12, 1.0, 0.88),
    "b": (0.88, 1.0, 1.12),
}  # the one club prints warm, the other cold: that is how they show


def paint(rng: random.Random, things: Iterable[str], club: str, image_size: int) -> Image.Image:
    """A picture of one or two things before a background, with clutter and distractors; RGB, image_size by image_size."""
    side = OVER * image_size
    ground = _colour(rng)
    sheet = _Sheet(side)
    sheet.add(ground, _mix(ground, _colour(rng), rng.uniform(0.1, 0.6)))
    _scatter(rng, sheet, rng.choice((0, 0, 1, 2, 5)), 0.03, 0.25)
    things = list(things)
    for thing, (x, y, size) in zip(things, _place(rng, len(things)), strict=True):
        _draw(rng, sheet, thing, ground, x, y, size)
    _scatter(rng, sheet, rng.choice((0, 1, 2, 3)), 0.03, 0.09)
    picture = sheet.fill(
        _texture(rng, rng.choice(GROUNDS), side), _texture(rng, rng.choice(TEXTURES), side)
    )
    reduced = np.asarray(picture.reduce(OVER), np.float32)  # s s 3 -> H W 3
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(reduced.shape, np.float32)
    exposed = reduced * rng.uniform(0.75, 1.15) * np.array(
        TONES[club], np.float32
    ) + noise * rng.uniform(1, 7)
    return Image.fromarray(exposed.clip(0, 255).astype(np.uint8))


class _Sheet:
    """Where numbers are drawn; the first, 0, is the background. Coordinates and lengths are shares of the side."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._numbers = Image.new("P", (side, side))
        self._draw = ImageDraw.Draw(self._numbers)
        self._colours: list[tuple[Colour, Colour]] = []

    def add(self, one: Colour, other: Colour) -> int:
        """A new number, for two colours between which the texture goes."""
        self._colours.append((one, other))
        return len(self._colours) - 1

    def shade(self, colour: Colour, strength: float = 0.0) -> int:
        """A new number, for a colour that the texture makes lighter and darker."""
        red, green, blue = colour
        one, other = ((red + by, green + by, blue + by) for by in (strength, -strength))
        return self.add(one, other)

    def draw(
        self,
        number: int,
        points: Iterable[tuple[float, float]],
        width: float = 0.0,
        edge: int | None = None,
    ) -> None:
        """A polygon, with an edge if it has a number, or a line if it has a width."""
        scaled = [(x * self.side, y * self.side) for x, y in points]
        if width:
            self._draw.line(scaled, number, max(1, round(width * self.side)), joint="curve")
        else:
            self._draw.polygon(scaled, number, edge, max(1, self.side // 96))

    def fill(self, ground: Image.Image, texture: Image.Image) -> Image.Image:
        """The sheet in colour; of the textures, masks of its size, the first is for the background."""
        blend = Image.composite(texture, ground, self._numbers.point([0] + 255 * [255], "L"))
        one, other = (self._colour(which) for which in (0, 1))
        return Image.composite(one, other, blend)

    def _colour(self, which: int) -> Image.Image:
        """The sheet in the first or second colour of each number."""
        self._numbers.putpalette(
            [round(min(max(v, 0), 255)) for pair in self._colours for v in pair[which]]
        )
        return self._numbers.convert("RGB")


def _place(rng: random.Random, count: int) -> list[tuple[float, float, float]]:
    """Centre and half the size of each thing, in shares of the side: one anywhere, two on different sides."""
    if count == 1:
        size = rng.uniform(0.27, 0.47)
        reach = max(0.0, 0.5 - 0.9 * size)
        return [
            (rng.uniform(0.5 - reach, 0.5 + reach), rng.uniform(0.5 - reach, 0.5 + reach), size)
        ]
    across = rng.random() < 0.5
    places = []
    for middle in rng.sample((0.27, 0.73), 2):
        along, beside = rng.uniform(0.3, 0.7), middle + rng.uniform(-0.03, 0.03)
        places.append((*((beside, along) if across else (along, beside)), rng.uniform(0.2, 0.27)))
    return places


def _draw(
    rng: random.Random, sheet: _Sheet, thing: str, ground: Colour, x: float, y: float, size: float
) -> None:
    """One thing in colours of its own, bent, stretched, turned and perhaps seen from its other side."""
    body, trim = _choose_colours(rng, thing, ground)
    strength = rng.uniform(10, 45)
    dark, light = (
        _mix(body, (0, 0, 0), rng.uniform(0.65, 0.9)),
        _mix(body, (255, 255, 255), rng.uniform(0.65, 0.9)),
    )
    tones = [
        sheet.shade(body, strength),
        sheet.shade(trim, strength / 2),
        sheet.shade(dark),
        sheet.shade(light),
    ]
    edge = tones[2] if rng.random() < 0.6 else None
    angle = rng.uniform(-math.pi, math.pi) if thing in LOOSE else rng.gauss(0, 0.17)
    wide, tall = size * rng.uniform(0.8, 1.05) * rng.choice((-1, 1)), size * rng.uniform(0.8, 1.05)
    skew, bend, phase = rng.gauss(0, 0.1), rng.uniform(0, 0.07), rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)

    def move(points: Points) -> Iterable[tuple[float, float]]:
        for u, v in points:
            across = wide * (u + skew * v + bend * math.sin(3 * v + phase))
            down = tall * (v + bend * math.sin(3 * u + phase))
            yield x + across * cos - down * sin, y + across * sin + down * cos

    for part in DRAWINGS[thing]:
        sheet.draw(tones[part.tone], move(part.points), part.width * size * 0.9, edge)


def _scatter(
    rng: random.Random, sheet: _Sheet, count: int, smallest: float, largest: float
) -> None:
    """Simple shapes that mean nothing: triangles to hexagons, and lines."""
    for _ in range(count):
        number = sheet.shade(_colour(rng), rng.uniform(0, 40))
        x, y, size, turn = (
            rng.random(),
            rng.random(),
            rng.uniform(smallest, largest),
            rng.uniform(0, 6),
        )
        if rng.random() < 0.35:
            across, down = size * math.cos(turn), size * math.sin(turn)
            sheet.draw(
                number, [(x - across, y - down), (x + across, y + down)], rng.uniform(0.01, 0.035)
            )
        else:
            corners = rng.choice((3, 4, 6, 16))
            angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
            sheet.draw(
                number,
                [
                    (x + 0.6 * size * math.cos(angle), y + 0.6 * size * math.sin(angle))
                    for angle in angles
                ],
            )


def _texture(rng: random.Random, kind: str, side: int) -> Image.Image:
    """A mask (s, s) from 0 to 255."""
    if kind == "plain":
        return Image.new("L", (side, side), 128)
    if kind in CELLS:
        cells = rng.choice(CELLS[kind])
        grid = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
        return grid.resize(
            (side, side), Image.Resampling.BICUBIC if kind == "clouds" else Image.Resampling.NEAREST
        )
    if kind == "gradient":
        return _mask(_ramp(rng, side, 0.7))
    waves = (
        rng.uniform(4, 12) * math.pi
    )  # two per half the side at least, so that it is seen on small things too
    one = np.sin(_ramp(rng, side, waves))
    if kind == "stripes":
        return _mask(np.sign(one))
    two = one * np.sin(_ramp(rng, side, waves))
    return _mask(np.sign(two) if kind == "checks" else np.where(two > 0.3, 1, -0.4))


def _mask(values: Array) -> Image.Image:
    """From -1 to 1, to 0 to 255."""
    return Image.fromarray((127.5 + 127.5 * values).clip(0, 255).astype(np.uint8))


def _ramp(rng: random.Random, side: int, top: float) -> Array:
    """(s, s) rising from about -top to top in some direction."""
    angle = rng.uniform(-math.pi, math.pi)
    steps = np.linspace(-top, top, side, dtype=np.float32)
    return math.cos(angle) * steps + math.sin(angle) * steps[:, None]


def _colour(rng: random.Random, *unlike: Colour) -> Colour:
    """Any colour that is well apart from the given ones."""
    while True:
        share = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.25, 1))
        colour = (255 * share[0], 255 * share[1], 255 * share[2])
        if all(math.dist(colour, other) > 110 for other in unlike):
            return colour


def _choose_colours(rng: random.Random, thing: str, ground: Colour) -> tuple[Colour, Colour]:
    """Of body and trim: its kind's usual ones, if they are seen before the ground, or any."""
    if rng.random() < HABIT:
        usual = [_colour_as(rng, HUES[name]) for name in BY_NAME[thing].colours.split()]
        if math.dist(usual[0], ground) > 80:
            return usual[0], usual[1]
    body = _colour(rng, ground)
    return body, _colour(rng, body, ground)


def _colour_as(rng: random.Random, hue: tuple[tuple[float, float], ...]) -> Colour:
    share = colorsys.hsv_to_rgb(*(rng.uniform(*each) % 1.0001 for each in hue))
    return 255 * share[0], 255 * share[1], 255 * share[2]


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(one, other, strict=True))
    return red, green, blue
