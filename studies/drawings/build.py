"""Build the folder of drawings: fetch, render, write posts, hold out, curate and pack.

images/<source>/<id>.png  training images; posts.jsonl: their keywords and captions
curated/, shards/         the training data of the recipe; shards/excluded.png: near copies of
                          held-out images, which were left out
val/ twemoji/ clipart_test/  held-out images with the same files: images/, posts.jsonl,
                          labels.parquet (classes of the training vocabulary), shards/
rejects.jsonl             drawings that cannot be rendered, with the reasons
drawings.json             the settings; summary.json: counts
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from studies.drawings.fetch import fetch_clip_art, fetch_npm
from studies.drawings.held_out import LABELS_FILE, label_held_out
from studies.drawings.posts import Drawing, list_clip_art, list_emoji
from studies.drawings.render import Job, render_all
from studies.drawings.sources import EMOJI, KEYWORDS
from studies.drawings.split import SPLITS, Split
from swag_models.atomic import disk_errors, write_json, write_json_lines
from swag_models.errors import ConfigError, check_maximum, check_minimum
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.paths import expand_path
from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.data.pack import pack
from swag_models.resumable import WorkFolder, run_once
from swag_models.runtime import count_cpus

VERSION = 1  # of images and posts; equal versions and settings produce equal folders
SHARD_SIZE, SUMMARY_FILE = 1000, "summary.json"
# Distance of a near copy; `pack`'s default is for photos, and drawings on white are more alike.
LIKE_THRESHOLD = 0.1

logger = logging.getLogger("swag_models")


def build_drawings(
    output: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    size: int = 192,
    min_images: int = 12,
    wordnet: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Build the folder of drawings, or resume an earlier run.

    Args:
        output: folder to create.
        cache: folder of downloaded packages; by default cache/ in the output.
        size: side of the images in pixels.
        min_images: minimum number of images of a class.
        wordnet: folder of WordNet's database files, as for `curate`.
        processes: number of processes that render, by default one per CPU. They are spawned, so a
            script needs `if __name__ == "__main__":`.
        progress: whether to show progress bars.

    Returns:
        Numbers of images: of each set, and those left out, by reason.

    Raises:
        ConfigError: an argument is invalid, or the folder contains other work.
        FetchError: a package could not be downloaded.
        OutputError: the folder cannot be written.
    """
    output = expand_path(output, "output")
    check_minimum(16, size=size)
    check_maximum(1024, size=size)
    check_minimum(1, min_images=min_images, processes=processes)
    packages = expand_path(cache, "cache") if cache is not None else output / "cache"
    processes = processes or count_cpus()
    settings = {"version": VERSION, "size": size, "min_images": min_images}
    with (
        disk_errors(output, resumable=True),
        WorkFolder(output, settings, record="drawings.json"),
    ):
        key, folders = [VERSION, size], [_folder(output, split) for split in SPLITS]
        written = [folder / name for folder in folders for name in ("images", "posts.jsonl")]
        summary: dict[str, Any] = run_once(
            output / "images.json",
            key,
            [*written, output / "rejects.jsonl"],
            lambda: _write_images(output, packages, size, processes, progress),
        )
        summary |= curate_drawings(
            output,
            output,
            [output / "posts.jsonl"],
            min_images=min_images,
            wordnet=wordnet,
            processes=processes,
            progress=progress,
        )
        write_json(output / SUMMARY_FILE, summary)
    return summary


def check_drawings(drawings: Path) -> None:
    """Raise ConfigError unless `build_drawings` has finished this folder.

    Args:
        drawings: the folder.
    """
    if not (drawings / SUMMARY_FILE).is_file():
        raise ConfigError(f"{drawings} has no drawings; run python -m studies.drawings {drawings}")


def _folder(output: Path, split: Split) -> Path:
    return output if split == "train" else output / split


def _write_images(
    output: Path, cache: Path, size: int, processes: int, progress: bool
) -> dict[str, Any]:
    """Fetch the packages, render the drawings, and write posts.jsonl of each set."""
    left_out = Counter[str]()
    drawings = list(_list_drawings(cache, left_out))
    paths = {
        drawing.id: _folder(output, drawing.split) / drawing.row["path"] for drawing in drawings
    }
    jobs = [Job(drawing.svg, paths[drawing.id]) for drawing in drawings]
    reasons = dict(render_all(jobs, size, processes, progress))
    rejects = [
        {"id": drawing.id, "reason": reasons[paths[drawing.id]]}
        for drawing in drawings
        if paths[drawing.id] in reasons
    ]
    write_json_lines(output / "rejects.jsonl", rejects)
    for reason, count in Counter(reject["reason"] for reject in rejects).items():
        left_out[f"not rendered: {reason}"] += count
    images = {}
    for split in SPLITS:
        rows = [
            drawing.row
            for drawing in drawings
            if drawing.split == split and paths[drawing.id] not in reasons
        ]
        _folder(output, split).mkdir(parents=True, exist_ok=True)
        write_json_lines(_folder(output, split) / "posts.jsonl", rows)
        images[split] = dict(Counter(row["source"] for row in rows))
    return {"images": images, "left_out": dict(left_out)}


def _list_drawings(cache: Path, left_out: Counter[str]) -> Iterable[Drawing]:
    keywords = fetch_npm(KEYWORDS, cache)
    packages = {source: fetch_npm(source.package, cache) for source in EMOJI}
    clip_art = fetch_clip_art(cache)
    yield from list_emoji(packages, keywords, left_out)
    yield from list_clip_art(clip_art, left_out)


def curate_drawings(
    drawings: Path,
    output: Path,
    posts: Sequence[Path],
    *,
    min_images: int,
    image_short_side: int | None = None,
    wordnet: str | os.PathLike[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Choose the classes, label and pack the images; near copies of held-out ones are left out.

    Args:
        drawings: folder of `build_drawings`, with the held-out images.
        output: gets curated/, shards/, and labels and shards of each held-out set.
        posts: files of training posts: those of the drawings, and others.
        min_images: minimum number of images of a class.
        image_short_side: of the packed training images, as for `pack`.
        wordnet: folder of WordNet's database files, as for `curate`.
        processes: as for `pack`.
        progress: whether to show progress bars.

    Returns:
        "labelled": number of labelled images of each set.
    """
    curation, curated = Curation(min_images=min_images), output / "curated"
    curate(posts, curated, curation, wordnet=wordnet, progress=progress)
    held_out = [split for split in SPLITS if split != "train"]
    manifest = pack(
        curated / LABELS_FILE,
        posts,
        output / "shards",
        shard_size=SHARD_SIZE,
        image_short_side=image_short_side,
        exclude_like=[drawings / split / "images" for split in held_out],
        like_threshold=LIKE_THRESHOLD,
        processes=processes,
        progress=progress,
    )
    labelled = {
        split: label_held_out(
            drawings / split / "posts.jsonl",
            output / split,
            curated / VOCABULARY_FILE,
            curation,
            wordnet=wordnet,
            processes=processes,
            progress=progress,
        )
        for split in held_out
    }
    return {"labelled": {"train": manifest["count"], **labelled}}
