"""Search for similar images in the user's folder.

Axes: N images, D features.
"""

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from swag_models.app.service import FileContent, load_folder_embedder
from swag_models.errors import ConfigError
from swag_models.image_decoding import read_image
from swag_models.inference.image_sources import find_images
from swag_models.inference.predict import Skipped
from swag_models.inference.search import compare
from swag_models.paths import expand_path, open_regular
from swag_models.spec import ModelSpec

THUMBNAIL_SIDE = 320  # pixels


class SimilarImage(NamedTuple):
    """A similar image.

    Attributes:
        name: path within the folder.
        similarity: cosine similarity of the features.
        thumbnail: a small copy.
    """

    name: str
    similarity: float
    thumbnail: Image.Image


class FileVersion(NamedTuple):
    """The state of an image file, for one model: the key under which its embedding is stored."""

    model: ModelSpec
    path: str
    mtime_ns: int
    size: int  # bytes


@dataclass
class SimilarityIndex:
    """Embeddings of the images of any number of folders and models, in memory.

    Attributes:
        embeddings: file -> its features (D,), or the reason why it cannot be read.
        lock: locked while images are embedded.
    """

    embeddings: dict[FileVersion, Tensor | Skipped] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def embed(self, spec: ModelSpec, folder: str, seconds: float = 1) -> tuple[int, int]:
        """Embed images of a folder that are new or have changed, for a limited time.

        Args:
            spec: the model.
            folder: searched to any depth.
            seconds: stop after the first batch that ends later.

        Returns:
            (number of images embedded so far, number of images in the folder).

        Raises:
            ConfigError: the folder is missing or contains no image.
        """
        start = time.monotonic()
        with self.lock:
            versions = list_file_versions(spec, folder)
            missing = {
                path: version
                for path, version in versions.items()
                if version not in self.embeddings
            }
            for batch in load_folder_embedder(spec).run(list(missing)):
                self.embeddings |= {missing[image.name]: image for image in batch.skipped}
                if batch.values is not None:
                    self.embeddings |= {
                        missing[path]: vector for path, vector in zip(batch.names, batch.values)
                    }
                if time.monotonic() > start + seconds:
                    break
        done = sum(version in self.embeddings for version in versions.values())
        return done, len(versions)

    def rank(
        self,
        spec: ModelSpec,
        folder: str,
        image: Image.Image | Tensor,
        count: int = 8,
        exclude: Collection[str] = (),
    ) -> tuple[list[SimilarImage], list[Skipped]]:
        """Find the images of an embedded folder that are most similar to an image.

        Args:
            spec: the model.
            folder: folder as for `embed`; images that are not embedded yet are ignored.
            image: the query, a PIL image or uint8 (3, H, W).
            count: number of neighbours.
            exclude: names of images that are not neighbours.

        Returns:
            The neighbours, best first, and the images that cannot be read.
        """
        embeddings = {
            path: self.embeddings[version]
            for path, version in list_file_versions(spec, folder).items()
            if version in self.embeddings
        }
        root = expand_path(folder, "folder")
        excluded = {str(root / name) for name in exclude}
        vectors = {
            path: x
            for path, x in embeddings.items()
            if isinstance(x, Tensor) and path not in excluded
        }
        skipped = [x for x in embeddings.values() if isinstance(x, Skipped)]
        if not vectors:
            return [], skipped
        paths = list(vectors)
        query = load_folder_embedder(spec)(image).vectors  # (1, D)
        similarity = compare(torch.stack(list(vectors.values())), query[0])  # (N,)
        top = similarity.topk(min(count, len(paths)))
        neighbours = []
        for index, value in zip(top.indices.tolist(), top.values.tolist()):
            thumbnail = read_image(paths[index])
            thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            name = str(Path(paths[index]).relative_to(root))
            neighbours.append(SimilarImage(name, value, thumbnail))
        return neighbours, skipped


def find_indexed_copies(spec: ModelSpec, folder: str, content: FileContent) -> list[str]:
    """Find the files in a folder that have the content of another file.

    Returns:
        Their paths within the folder, sorted.
    """
    root = expand_path(folder, "folder")
    copies = []
    for path, version in list_file_versions(spec, folder).items():
        try:
            if version.size == content.size:
                with open_regular(path) as file:
                    is_copy = FileContent.read(file) == content
                copies += [str(Path(path).relative_to(root))] * is_copy
        except OSError:  # it is gone, or cannot be read
            continue
    return sorted(copies)


def list_file_versions(spec: ModelSpec, folder: str) -> dict[str, FileVersion]:
    """The state of every image file in a folder, by path.

    Raises:
        ConfigError: the folder is missing or contains no image.
    """
    root = expand_path(folder, "folder")
    if not root.is_dir():
        raise ConfigError(
            f"{folder} is not a folder on this machine; enter the path of a folder of images"
        )
    versions = {}
    for image in find_images(root, Counter()):  # logs nothing: the page asks every second
        try:
            status = Path(image.name).stat()
            mtime_ns, size = status.st_mtime_ns, status.st_size
        except OSError:  # reading the file will report the reason
            mtime_ns, size = 0, 0
        versions[image.name] = FileVersion(spec, image.name, mtime_ns, size)
    return versions
