"""Labelled images of a study: folders of few images per class, a different draw for each seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(paths: list[Path], seed: int, count: int) -> list[Path]:
    """Draw `count` images, different ones for each seed; a smaller draw is part of a larger one.

    Groups of three seeds share a permutation, and each starts at a different third of it, so that
    their draws overlap little. A draw does not depend on the number of seeds.
    """
    turn, third = divmod(seed, 3)
    order = random.Random(turn).sample(paths, len(paths)) if turn else paths
    start = third * len(order) // 3
    return [order[(start + offset) % len(order)] for offset in range(count)]


def write_labels(
    folder: Path,
    pool: Mapping[str, list[Path]],
    test: Mapping[str, Sequence[Path]],
    shots: Sequence[int],
    seeds: int,
) -> None:
    """Copy images into `test`, and into `<shots>-<seed>`, each with a folder for every class.

    Args:
        folder: where to write; what exists is kept.
        pool: the images of each class that training images are drawn from.
        test: the images of each class to test on.
        shots: numbers of training images of each class.
        seeds: number of seeds.
    """
    sets = {f"{count}-{seed}": (seed, count) for count in shots for seed in range(seeds)}
    for name in ("test", *sets):
        if (target := folder / name).exists():
            continue
        temporary = target.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for label in pool:
            (temporary / label).mkdir(parents=True)
            for path in test[label] if name == "test" else draw(pool[label], *sets[name]):
                shutil.copyfile(path, temporary / label / path.name)
        temporary.rename(target)
