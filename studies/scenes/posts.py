"""Rows of the files: posts, ground truth, labels of held-out images."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from studies.scenes.captions import write_caption
from studies.scenes.scene import WEIGHTS, Scene, name_scene, plan_held_out, plan_post
from studies.scenes.things import BY_NAME, NAMES

# Fraction of the posts that repeat an earlier image and its URL, with another id and caption.
REPOSTS = 0.005
LICENSES = ("CC BY 2.0", "CC BY-SA 2.0", "CC BY-NC 2.0", "CC0 1.0", "All rights reserved")


class SceneImage(NamedTuple):
    """An image to be written: path in the folder, scene, row of the post, and ground truth."""

    path: str
    scene: Scene
    row: dict[str, Any]
    truth: dict[str, Any]


def make_post(seed: int, number: int) -> SceneImage:
    """A post with its hashtags, and the ground truth: its things and wrong hashtags."""
    original = _find_original(seed, number)
    scene, identifier = plan_post(seed, original), name_scene(plan_post(seed, number))
    rng = random.Random(f"{seed}/post/{number}/caption")
    caption = write_caption(rng, scene, WEIGHTS[scene.group])
    path = f"images/{identifier[:2]}/{identifier}.jpg"
    row = {
        "id": identifier,
        "url": f"https://clubs.example/{scene.group}/{name_scene(scene)}.jpg",
        "path": path,
        "caption": caption.text,
        "license": rng.choice(LICENSES),
        "group": scene.group,
    }
    truth = {
        "id": identifier,
        "things": scene.things,
        "hashtags": caption.hashtags,
        "wrong": caption.wrong,
        "repost_of": None if original == number else name_scene(scene),
    }
    return SceneImage(path, scene, row, truth)


def make_held_out(seed: int, number: int) -> SceneImage:
    """A held-out image with its true label."""
    scene = plan_held_out(seed, number)
    identifier, thing = name_scene(scene), scene.things[0]
    path = f"held_out/{thing}/{identifier}.jpg"
    row = {
        "id": identifier,
        "path": path,
        "thing": thing,
        "synset": BY_NAME[thing].synset,
        "group": scene.group,
    }
    return SceneImage(path, scene, row, {})


def split_held_out(
    pool: int, test: int, seed: int = 0
) -> tuple[list[SceneImage], list[SceneImage]]:
    """Held-out images: `pool` of each thing to train on, and `test` different ones to test on."""
    images = [make_held_out(seed, number) for number in range(len(NAMES) * (pool + test))]
    return images[: len(NAMES) * pool], images[len(NAMES) * pool :]


def _find_original(seed: int, number: int) -> int:
    """The number of the post whose image this post shows, which differs for a repost."""
    rng = random.Random(f"{seed}/post/{number}/original")
    return (
        _find_original(seed, rng.randrange(number)) if number and rng.random() < REPOSTS else number
    )
