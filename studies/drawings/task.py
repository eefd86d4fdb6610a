"""The labelled task of the study: Unicode's groups of emoji, drawn by the held-out artist.

The groups are the Unicode Consortium's, so they are no keywords of people. Their folders have
nouns as names, so that a classification head can start from hashtags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from studies.drawings.fetch import fetch_npm, read_json
from studies.drawings.names import read_posts
from studies.drawings.sources import EMOJI, HELD_OUT_ARTIST
from studies.labels import write_labels
from swag_models.errors import ConfigError

GROUPS = {
    "Activities": "sport",
    "Animals & Nature": "animal",
    "Flags": "flag",
    "Food & Drink": "food",
    "Objects": "tool",
    "People & Body": "person",
    "Smileys & Emotion": "face",
    "Symbols": "symbol",
    "Travel & Places": "vehicle",
}
POOL = 30  # images of each group that training labels are drawn from
MAX_TEST = 100  # further images of each group to test on, at most


def group_emoji(drawings: Path, groups: Mapping[str, list[str]]) -> dict[str, list[Path]]:
    """Return the images of each group, in a fixed random order.

    Args:
        drawings: folder of `build_drawings`.
        groups: the names of the icons of each group of Unicode.
    """
    folder = drawings / HELD_OUT_ARTIST
    label_of = {
        f"{HELD_OUT_ARTIST}-{icon}": GROUPS[group]
        for group, icons in groups.items()
        if group in GROUPS
        for icon in icons
    }
    images: dict[str, list[Path]] = {label: [] for label in GROUPS.values()}
    rows = sorted(read_posts(folder), key=lambda row: _hash(row["id"]))
    for row in rows:
        if label := label_of.get(row["id"]):
            images[label].append(folder / row["path"])
    for label, paths in images.items():
        if len(paths) <= POOL:
            raise ConfigError(f"{folder} has {len(paths)} images of {label!r}; {POOL + 1} needed")
    return images


def write_task(
    folder: Path, drawings: Path, cache: Path, shots: tuple[int, ...], seeds: int
) -> None:
    """Write the labelled folders of the study.

    Args:
        folder: where to write.
        drawings: folder of `build_drawings`.
        cache: folder of downloaded packages.
        shots: numbers of training images of each group.
        seeds: number of seeds.
    """
    (source,) = [source for source in EMOJI if source.name == HELD_OUT_ARTIST]
    metadata = read_json(fetch_npm(source.package, cache), "metadata.json")
    images = group_emoji(drawings, metadata["categories"])
    write_labels(
        folder,
        {label: paths[:POOL] for label, paths in images.items()},
        {label: paths[POOL : POOL + MAX_TEST] for label, paths in images.items()},
        shots,
        seeds,
    )


def _hash(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()
