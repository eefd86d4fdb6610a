"""Shapes: polygons and lines in the square from (-1, -1), top left, to (1, 1), bottom right."""

from __future__ import annotations

import math
from typing import NamedTuple

BODY, TRIM, DARK, LIGHT = range(4)
Points = tuple[tuple[float, float], ...]


class Part(NamedTuple):
    """A filled polygon, or a line if it has a width; `tone` is BODY, TRIM, DARK or LIGHT."""

    tone: int
    points: Points
    width: float = 0.0


def area(tone: int, *numbers: float) -> Part:
    """A polygon: x, y, x, y ..."""
    return Part(tone, tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def line(tone: int, width: float, *numbers: float) -> Part:
    """A line: x, y, x, y ..."""
    return Part(tone, area(tone, *numbers).points, width)


def box(tone: int, left: float, top: float, right: float, bottom: float) -> Part:
    """A rectangle."""
    return area(tone, left, top, right, top, right, bottom, left, bottom)


def disc(tone: int, x: float, y: float, rx: float, ry: float = 0.0, turn: float = 0.0) -> Part:
    """An ellipse about (x, y), turned clockwise by `turn` degrees."""
    return Part(tone, curve(x, y, rx, ry or rx, 0, 360, turn))


def half(tone: int, x: float, y: float, rx: float, ry: float) -> Part:
    """The upper half of an ellipse."""
    return Part(tone, curve(x, y, rx, ry, 180, 360))


def arc(
    tone: int,
    width: float,
    x: float,
    y: float,
    rx: float,
    ry: float,
    start: float = 0,
    stop: float = 360,
) -> Part:
    """A line along an ellipse, clockwise from `start` to `stop` degrees; 0 points right."""
    return Part(tone, curve(x, y, rx, ry, start, stop), width)


def smooth(part: Part) -> Part:
    """The polygon with its corners cut twice (Chaikin's algorithm)."""
    points = part.points
    for _ in range(2):
        pairs = list(zip(points, points[1:] + points[:1], strict=True))
        points = tuple(
            ((1 - share) * ax + share * bx, (1 - share) * ay + share * by)
            for (ax, ay), (bx, by) in pairs
            for share in (0.25, 0.75)
        )
    return part._replace(points=points)


def mirror(*parts: Part) -> tuple[Part, ...]:
    """The parts, each followed by its mirror image."""
    return tuple(
        side
        for part in parts
        for side in (part, part._replace(points=tuple((-x, y) for x, y in part.points)))
    )


def curve(
    x: float, y: float, rx: float, ry: float, start: float, stop: float, turn: float = 0.0
) -> Points:
    """Points along an ellipse."""
    steps = max(6, round((stop - start) / 15))
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    ends = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    around = [(rx * math.cos(angle), ry * math.sin(angle)) for angle in ends]
    return tuple((x + u * cos - v * sin, y + u * sin + v * cos) for u, v in around)


def star(tone: int, x: float, y: float, outer: float, inner: float, tips: int) -> Part:
    """A star; its inner corners are at the inner radius."""
    ends = [
        (inner if step % 2 else outer, math.pi * (step / tips - 0.5)) for step in range(2 * tips)
    ]
    return Part(
        tone,
        tuple(
            (x + radius * math.cos(angle), y + radius * math.sin(angle)) for radius, angle in ends
        ),
    )
