"""The folder of generated scenes.

It holds
  images/<two digits>/<id>.jpg    the pictures of the posts
  posts.jsonl                     id, url, path, caption, license, group: all that a recipe may use
  truth.jsonl                     id, things, hashtags, wrong, repost_of: for analysis, never for training
  held_out/<thing>/<id>.jpg       pictures to test on, as many of each thing
  held_out.jsonl                  id, path, thing, synset, group
  wordnet/                        nouns of WordNet 3.0 about these things
  scenes.json                     the arguments, the things, and which of them were planted in which group
It is made as `<folder>.work` and gets its name when it is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from studies.scenes.posts import SceneImage, make_held_out, make_post
from studies.scenes.scene import Scene, encode
from studies.scenes.things import CLUBS, MORE, PLANTED, THINGS
from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
from swag_models.recipe.worker_pool import open_pool
from swag_models.runtime import count_cpus

VERSION = 2  # of the pictures and captions: the same arguments give the same folder
RANGES = {
    "posts": (1, math.inf),
    "held_out": (0, math.inf),
    "image_size": (32, 512),
    "seed": (0, math.inf),
    "processes": (1, math.inf),
}
TASK = 2**17  # pixels a process paints before it reports: within a tenth of a second
WORDNET = Path(__file__).parent / "wordnet"


class ScenesSummary(NamedTuple):
    """Where the scenes are, how many, and whether they were there before."""

    path: Path
    posts: int
    held_out: int
    old: bool


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
    """Write a folder of scenes, or continue what an earlier run began.

    The same arguments give the same bytes, with one version of Pillow and NumPy.

    posts: pictures with captions, of things and hashtags as frequent as Zipf's law says. held_out: pictures with true labels,
    all things equally often. image_size: pixels, each way. processes: as many as there are cores by default; they change
    nothing, but start the program anew, so a script calls this under `if __name__ == "__main__":`.
    A folder that is complete is left alone. ConfigError for other arguments than those it was made with, or a foreign folder;
    OutputError if it cannot be written.
    """
    folder, processes = Path(folder), count_cpus() if processes is None else processes
    job = {"posts": posts, "held_out": held_out, "image_size": image_size, "seed": seed}
    _check(folder, {**job, "processes": processes})
    job["version"] = VERSION
    if _is_done(folder, job):
        return ScenesSummary(folder, posts, held_out, True)
    if not folder.absolute().parent.is_dir():
        raise ConfigError(
            f"{folder.absolute().parent} is no folder; make it, or choose another one for {folder.name}"
        )
    work = folder.with_name(f"{folder.name}.work")
    with disk_errors(folder), _hold(work, job):
        pictures = [make_post(seed, number) for number in range(posts)]
        labelled = [make_held_out(seed, number) for number in range(held_out)]
        with tqdm(
            total=posts + held_out, unit=" pictures", disable=not progress, smoothing=0.1
        ) as bar:
            _write_pictures(work, [*pictures, *labelled], image_size, processes, bar)
        _write_lines(work / "posts.jsonl", (picture.row for picture in pictures))
        _write_lines(work / "truth.jsonl", (picture.truth for picture in pictures))
        _write_lines(work / "held_out.jsonl", (picture.row for picture in labelled))
        shutil.copytree(WORDNET, work / "wordnet", dirs_exist_ok=True)
        (work / "lock").unlink()
        os.replace(work, folder)
    return ScenesSummary(folder, posts, held_out, False)


def _check(folder: Path, arguments: dict[str, int]) -> None:
    """ConfigError for an argument out of range, or a folder that cannot get its name at the end."""
    for name, value in arguments.items():
        least, most = RANGES[name]
        if not least <= value <= most:
            raise ConfigError(
                f"{name} is {value}; it is {least} {'or more' if most == math.inf else f'to {most} pixels'}"
            )
    if folder.name in ("", ".."):
        raise ConfigError(
            f"{folder} is no name for a new folder; give it one, such as {folder / 'scenes'}"
        )


def _is_done(folder: Path, job: dict[str, int]) -> bool:
    """Whether these scenes are there already; ConfigError if something else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "scenes.json").is_file():
        raise ConfigError(f"{folder} exists and holds no scenes; choose another name")
    _compare(folder, job)
    return True


def _compare(folder: Path, job: dict[str, int]) -> None:
    """ConfigError if the folder was begun with other arguments."""
    try:
        found = dict(json.loads((folder / "scenes.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(
            f"{folder / 'scenes.json'} is broken; delete {folder} or choose another name"
        ) from None
    if differing := [
        f"{name} {found.get(name)}, not {value}"
        for name, value in job.items()
        if found.get(name) != value
    ]:
        raise ConfigError(
            f"{folder} holds scenes with {', '.join(differing)}; delete it or choose another name"
        )


@contextmanager
def _hold(work: Path, job: dict[str, int]) -> Iterator[None]:
    """The folder of work under way, for one process at a time, with its description; ConfigError if it is of another job."""
    work.mkdir(exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"another process is writing {work}; wait for it, or choose another name"
        ) from None
    try:
        if (work / "scenes.json").exists():
            _compare(work, job)
        with atomic_write(work / "scenes.json") as to:
            to.write_text(
                json.dumps({**job, **_describe_world()}, indent=1, ensure_ascii=False) + "\n",
                encoding="utf-8",
            )
        yield
    finally:
        lock.release()


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
    return {"groups": list(CLUBS), "planted_ratio": MORE, "things": things}


def _write_pictures(
    work: Path, pictures: Sequence[SceneImage], image_size: int, processes: int, bar: Any
) -> None:
    """Paint those that are not there yet; only this process writes, so that whoever kills it stops everything."""
    missing = [picture for picture in pictures if not (work / picture.path).exists()]
    bar.update(len(pictures) - len(missing))
    for folder in {(work / picture.path).parent for picture in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    with closing(_paint([picture.scene for picture in missing], image_size, processes)) as painted:
        for picture, data in zip(missing, painted, strict=True):
            path = work / picture.path
            with atomic_write(path) as to:
                to.write_bytes(data)
            bar.update()


def _paint(
    scenes: Sequence[Scene], image_size: int, processes: int
) -> Generator[bytes, None, None]:
    """The scenes as JPEG files, in their order; closed early, it ends its processes."""
    chunk = max(1, TASK // image_size**2)
    count = min(processes, -(-len(scenes) // chunk))
    encode_one = partial(encode, image_size=image_size)
    if count <= 1:
        yield from map(encode_one, scenes)
        return
    with open_pool(count) as pool:
        # The pool's own `map` would cancel what waits when it is closed, and break where processes are ended at once.
        futures = deque(
            pool.submit(_encode_all, encode_one, scenes[at : at + chunk])
            for at in range(0, len(scenes), chunk)
        )
        while futures:
            yield from futures.popleft().result()


def _encode_all(encode_one: Callable[[Scene], bytes], scenes: Sequence[Scene]) -> list[bytes]:
    return [encode_one(scene) for scene in scenes]


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as to:
        to.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
