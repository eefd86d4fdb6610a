"""A folder of the user's pictures, and which of them are most like another one.

Axes: N pictures, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from swag_models.app.desk import open_embedder
from swag_models.errors import ConfigError
from swag_models.inference import Embedder, Skipped
from swag_models.pictures import Picture, find_pictures
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

Report = Callable[[int, int], None]  # is told how many are done, and of how many
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
    """The embeddings (D,) of every picture seen so far."""

    vectors: dict[Version, Tensor] = field(default_factory=dict)

    def find(
        self, spec: ModelSpec, picture: Image.Image, folder: str, report: Report, count: int = 8
    ) -> tuple[list[Neighbour], list[Skipped]]:
        """The `count` pictures of a folder most like the given one, best first, and those that could not be read.

        ConfigError if there is no such folder, or no picture in it.
        """
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise ConfigError(f"{folder} is no folder on this machine; give the path of a folder of pictures")
        pictures = find_pictures(root)
        versions = {each.name: make_version(spec, each.name) for each in pictures}
        missing = [each for each in pictures if versions[each.name] not in self.vectors]
        embedder = open_embedder(spec)
        skipped = self.embed(embedder, missing, versions, report)
        found = {name: self.vectors[version] for name, version in versions.items() if version in self.vectors}
        if not found:
            return [], skipped
        query = embedder(picture).vectors  # (1, D)
        similarity = F.cosine_similarity(torch.stack(list(found.values())), query)  # (N,)
        best = similarity.topk(min(count, len(found)))
        names = [list(found)[index] for index in best.indices.tolist()]
        near = [
            Neighbour(str(Path(name).relative_to(root)), value, make_thumbnail(name))
            for name, value in zip(names, best.values.tolist())
        ]
        return near, skipped

    def embed(self, embedder: Embedder, pictures: list[Picture], versions: dict[str, Version], report: Report) -> list[Skipped]:
        """Remember the embeddings of pictures; which of them could not be read."""
        skipped: list[Skipped] = []
        done = len(versions) - len(pictures)
        for batch in embedder.run(pictures):
            done += len(batch.pictures)
            skipped += batch.skipped
            if batch.values is not None:
                self.vectors |= {versions[name]: vector for name, vector in zip(batch.names, batch.values)}
            report(done, len(versions))
        return skipped


def make_version(spec: ModelSpec, path: str) -> Version:
    try:
        status = Path(path).stat()
    except OSError:  # reading it will say so
        return Version(spec, path, 0, 0)
    return Version(spec, path, status.st_mtime_ns, status.st_size)


def make_thumbnail(path: str) -> Image.Image:
    picture = read_image(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture
