"""What is in each picture, decided by the seed and its number alone."""

from __future__ import annotations

import hashlib
import io
import random
from typing import NamedTuple

from PIL import Image

from studies.scenes.painter import paint
from studies.scenes.things import CLUBS, NAMES, list_weights

WEIGHTS = {club: list_weights(club) for club in CLUBS}
PAIRS = 0.15  # of the posts show two things


class Scene(NamedTuple):
    """A picture that can be painted: a key that no other picture has, what it shows, and whose club's it is."""

    key: str
    things: tuple[str, ...]
    group: str


def plan_post(seed: int, number: int) -> Scene:
    """The scene of a post: things as often as its club meets them, now and then two."""
    key = f"{seed}/post/{number}"
    rng = random.Random(f"{key}/plan")
    group = rng.choice(CLUBS)
    pair = rng.random() < PAIRS
    things = rng.choices(NAMES, WEIGHTS[group], k=1)
    while pair and len(things) < 2:
        things += [each for each in rng.choices(NAMES, WEIGHTS[group], k=1) if each not in things]
    return Scene(key, tuple(things), group)


def plan_held_out(seed: int, number: int) -> Scene:
    """A scene to test on: one thing, each as often as any other, and in both clubs."""
    return Scene(
        f"{seed}/held_out/{number}",
        (NAMES[number % len(NAMES)],),
        CLUBS[number // len(NAMES) % len(CLUBS)],
    )


def name_scene(scene: Scene) -> str:
    """The id of a picture: 16 hexadecimal digits, in no order."""
    return hashlib.blake2b(scene.key.encode(), digest_size=8).hexdigest()


def render(scene: Scene, image_size: int) -> Image.Image:
    """The picture of a scene, RGB, image_size by image_size."""
    return paint(random.Random(f"{scene.key}/paint"), scene.things, scene.group, image_size)


def encode(scene: Scene, image_size: int) -> bytes:
    """The picture as a JPEG file."""
    stream = io.BytesIO()
    render(scene, image_size).save(stream, "JPEG", quality=90)
    return stream.getvalue()
