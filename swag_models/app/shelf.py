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
from swag_models.app.placeholder import Skipped, find_pictures
from swag_models.errors import ConfigError
from swag_models.preprocess import read_image
from swag_models.spec import ModelSpec

CHUNK = 16  # pictures embedded between two reports
THUMBNAIL = 320  # pixels


class Neighbour(NamedTuple):
    """A picture of the folder: its path within, its cosine similarity, and a small copy."""

    name: str
    similarity: float
    thumbnail: Image.Image


class Version(NamedTuple):
    """A picture file as it is now, for one model: what its embedding is remembered by."""

    model: ModelSpec
    path: Path
    mtime_ns: int
    size: int


@dataclass
class Shelf:
    """Embeddings (D,) of every picture seen so far."""

    vectors: dict[Version, Tensor] = field(default_factory=dict)

    def find(
        self, spec: ModelSpec, picture: Image.Image, folder: str, report: Callable[[int, int], None], count: int = 8
    ) -> tuple[list[Neighbour], list[Skipped]]:
        """The `count` pictures of a folder most like the given one, best first, and those that could not be read.

        ConfigError if there is no such folder, or no picture in it.
        """
        root = Path(folder).expanduser()
        if not root.is_dir():
            raise ConfigError(f"{folder} is no folder on this machine; give the path of a folder of pictures")
        versions = [make_version(spec, Path(each.name)) for each in find_pictures(root)]
        skipped = self.embed([each for each in versions if each not in self.vectors], report, len(versions))
        found = [each for each in versions if each in self.vectors]
        if not found:
            return [], skipped
        query = open_embedder(spec)([picture]).vectors  # (1, D)
        similarity = F.cosine_similarity(torch.stack([self.vectors[each] for each in found]), query)  # (N,)
        best = similarity.topk(min(count, len(found)))
        near = [(found[index].path, value) for index, value in zip(best.indices.tolist(), best.values.tolist())]
        return [Neighbour(str(path.relative_to(root)), value, make_thumbnail(path)) for path, value in near], skipped

    def embed(self, versions: list[Version], report: Callable[[int, int], None], total: int) -> list[Skipped]:
        """Remember these pictures' embeddings; which of them could not be read."""
        skipped = []
        for start in range(0, len(versions), CHUNK):
            report(total - len(versions) + start, total)
            chunk = {str(each.path): each for each in versions[start : start + CHUNK]}
            made = open_embedder(versions[0].model)(list(chunk))
            self.vectors |= {chunk[name]: vector for name, vector in zip(made.names, made.vectors)}
            skipped += made.skipped
        return skipped


def make_version(spec: ModelSpec, path: Path) -> Version:
    try:
        status = path.stat()
    except OSError:  # reading it will say so
        return Version(spec, path, 0, 0)
    return Version(spec, path, status.st_mtime_ns, status.st_size)


def make_thumbnail(path: Path) -> Image.Image:
    picture = read_image(path)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture
