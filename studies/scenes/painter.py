"""Drawings -> pixels: shapes are palette indices, and a texture mixes two colours per index.

Axes: s is the side of the canvas in pixels, OVERSAMPLING times the image's; H and W are the
image's.
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

OVERSAMPLING = 3  # canvas pixels per image pixel, in each direction
TEXTURES = ("plain", "stripes", "checks", "dots", "speckle")
GROUNDS = (*TEXTURES, "gradient", "gradient", "clouds", "clouds", "tiles")
# Number of cells per side in the random textures.
CELLS = {"speckle": (48, 64), "clouds": (3, 5, 9), "tiles": (4, 7, 10)}
USUAL_COLOURS = 0.75  # fraction of the things that have their usual colours
HUES = {  # ranges of hue, saturation and value
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
# One club's images are warm and the other's cold, so that a model can see the club.
TONES = {"a": (1.12, 1.0, 0.88), "b": (0.88, 1.0, 1.12)}


def paint(rng: random.Random, things: Iterable[str], club: str, image_size: int) -> Image.Image:
    """Paint one to four things on a background with clutter.

    Args:
        rng: source of all randomness.
        things: names of `NAMES`.
        club: "a" or "b"; sets the tone.
        image_size: pixels of each side.

    Returns:
        An RGB image of image_size x image_size pixels.
    """
    side = OVERSAMPLING * image_size
    ground = _colour(rng)
    canvas = _Canvas(side)
    canvas.add(ground, _mix(ground, _colour(rng), rng.uniform(0.1, 0.6)))
    _scatter(rng, canvas, rng.choice((0, 0, 1, 2, 5)), 0.03, 0.25)
    things = list(things)
    for thing, (x, y, size) in zip(things, _place(rng, len(things)), strict=True):
        _draw(rng, canvas, thing, ground, x, y, size)
    _scatter(rng, canvas, rng.choice((0, 1, 2, 3)), 0.03, 0.09)
    image = canvas.fill(
        _texture(rng, rng.choice(GROUNDS), side), _texture(rng, rng.choice(TEXTURES), side)
    )
    reduced = np.asarray(image.reduce(OVERSAMPLING), np.float32)  # s s 3 -> H W 3
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(reduced.shape, np.float32)
    exposed = reduced * rng.uniform(0.75, 1.15) * np.array(
        TONES[club], np.float32
    ) + noise * rng.uniform(1, 7)
    return Image.fromarray(exposed.clip(0, 255).astype(np.uint8))


class _Canvas:
    """A canvas of palette indices; index 0 is the background. Lengths are fractions of the side."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._indices = Image.new("P", (side, side))
        self._draw = ImageDraw.Draw(self._indices)
        self._colours: list[tuple[Colour, Colour]] = []

    def add(self, first: Colour, second: Colour) -> int:
        """Add an index for the two colours that the texture mixes."""
        self._colours.append((first, second))
        return len(self._colours) - 1

    def shade(self, colour: Colour, strength: float = 0.0) -> int:
        """Add an index for a colour that the texture makes lighter and darker by `strength`."""
        red, green, blue = colour
        lighter, darker = ((red + by, green + by, blue + by) for by in (strength, -strength))
        return self.add(lighter, darker)

    def draw(
        self,
        number: int,
        points: Iterable[tuple[float, float]],
        width: float = 0.0,
        edge: int | None = None,
    ) -> None:
        """Draw a line of this width, or a polygon, whose edge has the index `edge` if it is set."""
        scaled = [(x * self.side, y * self.side) for x, y in points]
        if width:
            self._draw.line(scaled, number, max(1, round(width * self.side)), joint="curve")
        else:
            self._draw.polygon(scaled, number, edge, max(1, self.side // 96))

    def fill(self, ground: Image.Image, texture: Image.Image) -> Image.Image:
        """The canvas in colour; `ground` masks the background, `texture` the rest."""
        blend = Image.composite(texture, ground, self._indices.point([0] + 255 * [255], "L"))
        first, second = (self._colour(position) for position in (0, 1))
        return Image.composite(first, second, blend)

    def _colour(self, position: int) -> Image.Image:
        """The canvas with the first or second colour of each index."""
        self._indices.putpalette(
            [round(min(max(v, 0), 255)) for pair in self._colours for v in pair[position]]
        )
        return self._indices.convert("RGB")


def _place(rng: random.Random, count: int) -> list[tuple[float, float, float]]:
    """Centre and half size of each thing, as fractions of the side.

    Two things are on opposite sides, and three or four in the corners.
    """
    if count == 1:
        size = rng.uniform(0.27, 0.47)
        reach = max(0.0, 0.5 - 0.9 * size)
        return [
            (rng.uniform(0.5 - reach, 0.5 + reach), rng.uniform(0.5 - reach, 0.5 + reach), size)
        ]
    if count > 2:
        corners = rng.sample([(x, y) for x in (0.26, 0.74) for y in (0.26, 0.74)], count)
        return [
            (x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04), rng.uniform(0.17, 0.23))
            for x, y in corners
        ]
    across = rng.random() < 0.5
    places = []
    for middle in rng.sample((0.27, 0.73), 2):
        along, beside = rng.uniform(0.3, 0.7), middle + rng.uniform(-0.03, 0.03)
        places.append((*((beside, along) if across else (along, beside)), rng.uniform(0.2, 0.27)))
    return places


def _draw(
    rng: random.Random, canvas: _Canvas, thing: str, ground: Colour, x: float, y: float, size: float
) -> None:
    """Draw one thing with random colours, bent, stretched, rotated and perhaps mirrored."""
    body, trim = _choose_colours(rng, thing, ground)
    strength = rng.uniform(10, 45)
    dark, light = (
        _mix(body, (0, 0, 0), rng.uniform(0.65, 0.9)),
        _mix(body, (255, 255, 255), rng.uniform(0.65, 0.9)),
    )
    tones = [
        canvas.shade(body, strength),
        canvas.shade(trim, strength / 2),
        canvas.shade(dark),
        canvas.shade(light),
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
        canvas.draw(tones[part.tone], move(part.points), part.width * size * 0.9, edge)


def _scatter(
    rng: random.Random, canvas: _Canvas, count: int, smallest: float, largest: float
) -> None:
    """Draw clutter: polygons of 3 to 16 corners, and lines."""
    for _ in range(count):
        number = canvas.shade(_colour(rng), rng.uniform(0, 40))
        x, y, size, turn = (
            rng.random(),
            rng.random(),
            rng.uniform(smallest, largest),
            rng.uniform(0, 6),
        )
        if rng.random() < 0.35:
            across, down = size * math.cos(turn), size * math.sin(turn)
            canvas.draw(
                number, [(x - across, y - down), (x + across, y + down)], rng.uniform(0.01, 0.035)
            )
        else:
            corners = rng.choice((3, 4, 6, 16))
            angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
            canvas.draw(
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
    # At least two waves per half side, so that the texture is visible on small things too.
    waves = rng.uniform(4, 12) * math.pi
    one = np.sin(_ramp(rng, side, waves))
    if kind == "stripes":
        return _mask(np.sign(one))
    two = one * np.sin(_ramp(rng, side, waves))
    return _mask(np.sign(two) if kind == "checks" else np.where(two > 0.3, 1, -0.4))


def _mask(values: Array) -> Image.Image:
    """Map values from [-1, 1] to an 8-bit mask."""
    return Image.fromarray((127.5 + 127.5 * values).clip(0, 255).astype(np.uint8))


def _ramp(rng: random.Random, side: int, top: float) -> Array:
    """(s, s) values that rise from about -top to top in a random direction."""
    angle = rng.uniform(-math.pi, math.pi)
    steps = np.linspace(-top, top, side, dtype=np.float32)
    return math.cos(angle) * steps + math.sin(angle) * steps[:, None]


def _colour(rng: random.Random, *unlike: Colour) -> Colour:
    """A random colour that differs clearly from each of `unlike`."""
    while True:
        share = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 1), rng.uniform(0.25, 1))
        colour = (255 * share[0], 255 * share[1], 255 * share[2])
        if all(math.dist(colour, other) > 110 for other in unlike):
            return colour


def _choose_colours(rng: random.Random, thing: str, ground: Colour) -> tuple[Colour, Colour]:
    """Colours of body and trim: the usual ones, if they differ from the ground, or random ones."""
    if rng.random() < USUAL_COLOURS:
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
