"""Which things each image shows: a function of only the seed and the image's number."""

from __future__ import annotations

import hashlib
import io
import random
from typing import NamedTuple

from PIL import Image

from studies.scenes.painter import paint
from studies.scenes.things import CLUBS, NAMES, list_weights

WEIGHTS = {club: list_weights(club) for club in CLUBS}
PAIRS = 0.15  # fraction of the posts that show two things


class Scene(NamedTuple):
    """What an image shows.

    Args:
        key: unique key, which seeds the painter.
        things: one or two names of `NAMES`.
        group: the club that posted it, "a" or "b".
    """

    key: str
    things: tuple[str, ...]
    group: str


def plan_post(seed: int, number: int) -> Scene:
    """The scene of a post: one or two things, drawn with the weights of its club."""
    key = f"{seed}/post/{number}"
    rng = random.Random(f"{key}/plan")
    group = rng.choice(CLUBS)
    pair = rng.random() < PAIRS
    things = rng.choices(NAMES, WEIGHTS[group], k=1)
    while pair and len(things) < 2:
        things += [name for name in rng.choices(NAMES, WEIGHTS[group], k=1) if name not in things]
    return Scene(key, tuple(things), group)


def plan_held_out(seed: int, number: int) -> Scene:
    """A test scene with one thing; all things and both clubs are equally frequent."""
    return Scene(
        f"{seed}/held_out/{number}",
        (NAMES[number % len(NAMES)],),
        CLUBS[number // len(NAMES) % len(CLUBS)],
    )


def name_scene(scene: Scene) -> str:
    """The id of an image: 16 hexadecimal digits."""
    return hashlib.blake2b(scene.key.encode(), digest_size=8).hexdigest()


def render(scene: Scene, image_size: int) -> Image.Image:
    """The image of a scene, RGB, image_size x image_size pixels."""
    return paint(random.Random(f"{scene.key}/paint"), scene.things, scene.group, image_size)


def encode(scene: Scene, image_size: int) -> bytes:
    """The image as the bytes of a JPEG file."""
    stream = io.BytesIO()
    render(scene, image_size).save(stream, "JPEG", quality=90)
    return stream.getvalue()
