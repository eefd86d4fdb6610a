"""Write the folder of generated scenes.

images/<two digits>/<id>.jpg    the images of the posts
posts.jsonl                     id, url, path, caption, license, group: input of the recipe
truth.jsonl                     id, things, hashtags, wrong, repost_of: for analysis only
held_out/<thing>/<id>.jpg       test images, the same number of each thing
held_out.jsonl                  id, path, thing, synset, group
wordnet/                        nouns of WordNet 3.0 about these things
scenes.json                     the arguments, the things, and those more frequent in one group

The folder is written as `<folder>.work` and renamed when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from studies.scenes.posts import SceneImage, make_held_out, make_post
from studies.scenes.scene import encode
from studies.scenes.things import CLUBS, PLANTED, PLANTED_RATIO, THINGS
from swag_models.atomic import atomic_write, disk_errors, write_json_lines
from swag_models.errors import ConfigError
from swag_models.hub.progress import make_bar
from swag_models.recipe.worker_pool import map_parallel
from swag_models.resumable import WorkFolder
from swag_models.runtime import count_cpus

VERSION = 2  # of images and captions; equal versions and arguments produce equal folders
RANGES = {
    "posts": (1, math.inf),
    "held_out": (0, math.inf),
    "image_size": (32, 512),
    "seed": (0, math.inf),
    "processes": (1, math.inf),
}
PIXELS_PER_TASK = 2**17  # take a tenth of a second, so that progress is reported often
RECORD = "scenes.json"
WORDNET = Path(__file__).parent / "wordnet"


class ScenesSummary(NamedTuple):
    """Folder, numbers of images, and whether an earlier run had completed them."""

    path: Path
    posts: int
    held_out: int
    existed: bool


def write_scenes(
    folder: str | os.PathLike[str],
    posts: int = 20_000,
    held_out: int = 2_000,
    image_size: int = 64,
    seed: int = 0,
    *,
    processes: int | None = None,
    progress: bool = True,
) -> ScenesSummary:
    """Write a folder of scenes, or resume an earlier run. A complete folder is not changed.

    The same arguments produce the same bytes with the same versions of Pillow and NumPy.

    Args:
        folder: folder to create.
        posts: number of images with captions; things and hashtags follow Zipf's law.
        held_out: number of images with true labels; all things are equally frequent.
        image_size: side of the images in pixels.
        seed: random seed.
        processes: number of processes that paint, by default one per CPU. The result does not
            depend on it. They are spawned, so a script needs `if __name__ == "__main__":`.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: an argument is out of range, or the folder contains something else.
        OutputError: the folder cannot be written.
    """
    folder, processes = Path(folder), count_cpus() if processes is None else processes
    job = {"posts": posts, "held_out": held_out, "image_size": image_size, "seed": seed}
    _check(folder, {**job, "processes": processes})
    job["version"] = VERSION
    if _is_complete(folder, job):
        return ScenesSummary(folder, posts, held_out, existed=True)
    if not folder.absolute().parent.is_dir():
        raise ConfigError(
            f"{folder.absolute().parent} is not a folder; create it, or choose another one for "
            f"{folder.name}"
        )
    work = folder.with_name(f"{folder.name}.work")
    description = {**job, **_describe_world()}
    with (
        disk_errors(folder, resumable=True),
        WorkFolder(work, description, output=folder, record=RECORD),
    ):
        post_images = [make_post(seed, number) for number in range(posts)]
        test_images = [make_held_out(seed, number) for number in range(held_out)]
        with make_bar(progress, total=posts + held_out, unit=" images", smoothing=0.1) as bar:
            _write_images(work, [*post_images, *test_images], image_size, processes, bar)
        write_json_lines(work / "posts.jsonl", (image.row for image in post_images))
        write_json_lines(work / "truth.jsonl", (image.truth for image in post_images))
        write_json_lines(work / "held_out.jsonl", (image.row for image in test_images))
        shutil.copytree(WORDNET, work / "wordnet", dirs_exist_ok=True)
        (work / ".lock").unlink()
        os.replace(work, folder)
    return ScenesSummary(folder, posts, held_out, existed=False)


def _check(folder: Path, arguments: dict[str, int]) -> None:
    """Raise ConfigError if an argument is out of range, or the folder has no name."""
    for name, value in arguments.items():
        low, high = RANGES[name]
        if not low <= value <= high:
            limit = "or more" if high == math.inf else f"to {high} pixels"
            raise ConfigError(f"{name} is {value}; allowed: {low} {limit}")
    if folder.name in ("", ".."):
        raise ConfigError(f"{folder} has no name; pass a new folder, such as {folder / 'scenes'}")


def _is_complete(folder: Path, job: dict[str, int]) -> bool:
    """Whether the folder contains these scenes; raises ConfigError for other contents."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / RECORD).is_file():
        raise ConfigError(f"{folder} exists and contains no scenes; choose another name")
    try:
        stored = dict(json.loads((folder / RECORD).read_text("utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(
            f"{folder / RECORD} is damaged; delete {folder} or choose another name"
        ) from None
    differences = [
        f"{name} {stored.get(name)}, not {value}"
        for name, value in job.items()
        if stored.get(name) != value
    ]
    if differences:
        raise ConfigError(
            f"{folder} contains scenes with {', '.join(differences)}; delete it or choose "
            "another name"
        )
    return True


def _describe_world() -> dict[str, Any]:
    things = [
        {
            "name": thing.name,
            "synset": thing.synset,
            "words": thing.words(),
            "broader": thing.broader.split(),
            "foreign": thing.foreign.split(),
            "planted": PLANTED.get(thing.name),
        }
        for thing in THINGS
    ]
    return {"groups": list(CLUBS), "planted_ratio": PLANTED_RATIO, "things": things}


def _write_images(
    work: Path, images: Sequence[SceneImage], image_size: int, processes: int, bar: Any
) -> None:
    """Paint the missing images. Only this process writes files, so killing it stops all writing."""
    missing = [image for image in images if not (work / image.path).exists()]
    bar.update(len(images) - len(missing))
    for folder in {(work / image.path).parent for image in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    chunk = max(1, PIXELS_PER_TASK // image_size**2)
    paint = partial(encode, image_size=image_size)
    scenes = [image.scene for image in missing]
    with closing(map_parallel(paint, scenes, chunk, processes)) as jpegs:
        for image, jpeg in zip(missing, jpegs, strict=True):
            with atomic_write(work / image.path) as temporary:
                temporary.write_bytes(jpeg)
            bar.update()
