"""A folder of the user's pictures, and which of them are most like another one.

Axes: N pictures, D width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from swag_models.app.service import open_embedder
from swag_models.errors import ConfigError
from swag_models.inference.image_sources import find_images
from swag_models.inference.predict import Skipped
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

THUMBNAIL = 320  # pixels


class Neighbour(NamedTuple):
    """A picture of the folder: its path within, its cosine similarity, and a small copy."""

    name: str
    similarity: float
    thumbnail: Image.Image


class Version(NamedTuple):
    """A picture file as it is now, for one model: what its embedding is remembered by."""

    model: ModelSpec
    path: str
    mtime_ns: int
    size: int


@dataclass
class Shelf:
    """The embedding (D,) of every picture seen so far, or why there is none."""

    known: dict[Version, Tensor | Skipped] = field(default_factory=dict)
    busy: Lock = field(default_factory=Lock)

    def embed(self, spec: ModelSpec, folder: str, seconds: float = 1) -> tuple[int, int]:
        """Work on a folder for about so long; how many of its pictures are embedded, and of how many.

        ConfigError if there is no such folder, or no picture in it.
        """
        start = time.monotonic()
        with self.busy:
            versions = find_versions(spec, folder)
            missing = {
                path: version for path, version in versions.items() if version not in self.known
            }
            for batch in open_embedder(spec).run(list(missing)):
                self.known |= {missing[each.name]: each for each in batch.skipped}
                if batch.values is not None:
                    self.known |= {
                        missing[path]: vector for path, vector in zip(batch.names, batch.values)
                    }
                if time.monotonic() > start + seconds:
                    break
        return sum(version in self.known for version in versions.values()), len(versions)

    def rank(
        self, spec: ModelSpec, folder: str, picture: Image.Image, count: int = 8
    ) -> tuple[list[Neighbour], list[Skipped]]:
        """The `count` pictures of an embedded folder most like the given one, best first, and those that could not be read."""
        known = {
            path: self.known[version]
            for path, version in find_versions(spec, folder).items()
            if version in self.known
        }
        vectors = {path: each for path, each in known.items() if isinstance(each, Tensor)}
        skipped = [each for each in known.values() if isinstance(each, Skipped)]
        if not vectors:
            return [], skipped
        query = open_embedder(spec)(picture).vectors  # (1, D)
        similarity = F.cosine_similarity(torch.stack(list(vectors.values())), query)  # (N,)
        best = similarity.topk(min(count, len(vectors)))
        paths = list(vectors)
        root = Path(folder).expanduser()
        near = []
        for index, value in zip(best.indices.tolist(), best.values.tolist()):
            thumbnail = read_image(paths[index])
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
            near.append(Neighbour(str(Path(paths[index]).relative_to(root)), value, thumbnail))
        return near, skipped


def find_versions(spec: ModelSpec, folder: str) -> dict[str, Version]:
    """Every picture of a folder by its path, or ConfigError."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ConfigError(
            f"{folder} is no folder on this machine; give the path of a folder of pictures"
        )
    versions = {}
    for picture in find_images(root):
        try:
            status = Path(picture.name).stat()
            versions[picture.name] = Version(spec, picture.name, status.st_mtime_ns, status.st_size)
        except OSError:  # reading it will say so
            versions[picture.name] = Version(spec, picture.name, 0, 0)
    return versions
