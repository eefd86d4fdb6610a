"""Where images come from: files, folders, patterns, tar shards or memory, read ahead by threads.

Axes: N batch, C channels, H W pixels.
"""

import glob
import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.formatting import printable
from swag_models.inference.tar_members import find_members
from swag_models.paths import expand_path
from swag_models.preprocess import read_image

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"}
IMAGE_SUFFIXES |= {".ppm", ".pgm"}
# Only uncompressed tar files can be read at any offset. The others are listed so that
# they are rejected with a reason, not treated as images.
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

S = TypeVar("S")
T = TypeVar("T")


class ImageRef(NamedTuple):
    """An image that has not been read yet.

    Attributes:
        name: its name in messages and results.
        source: path of a file, or an image in memory.
        span: (offset, size) in bytes of a member of a tar file; None for a separate file.
    """

    name: str
    source: "Path | Image.Image | Tensor"
    span: tuple[int, int] | None = None

    def read(self) -> "Image.Image | Tensor":
        """Read the image.

        Returns:
            An upright RGB image, or the tensor if it was passed as one.

        Raises:
            ImageError: the image cannot be read; the message begins with its name.
        """
        image = self._open()
        if 0 in (image.size if isinstance(image, Image.Image) else image.shape):
            raise ImageError(f"{self.name} has no pixels")
        return image

    def _open(self) -> "Image.Image | Tensor":
        if isinstance(self.source, Image.Image):
            # Pillow decodes an opened image when its pixels are first used, which two threads must
            # not do at once. The lock is stored on the image, because the image may be listed
            # twice; setdefault is atomic.
            with vars(self.source).setdefault("_swag_models_lock", Lock()):
                return read_image(self.source, self.name)
        if not isinstance(self.source, Path):
            return self.source
        if self.span is None:
            return read_image(self.source, self.name)
        offset, size = self.span
        try:
            with self.source.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read: {error.strerror}") from None
        return read_image(io.BytesIO(content), self.name)


def find_images(images: Any) -> list[ImageRef]:
    """List every image of the given sources.

    Args:
        images: one source or a sequence of sources. A source is the path of a file, of a folder
            (searched to any depth), of a tar shard, or a shell pattern of those; a PIL image; a
            uint8 array (H, W), (H, W, 3) or (N, H, W, 3); a uint8 tensor (3, H, W) or
            (N, 3, H, W); an `ImageRef`.

    Returns:
        The images in the order of the sources; those of a folder or pattern sorted by path, those
        of a tar shard in the order of its members.

    Raises:
        ConfigError: a source is none of these, or a folder, pattern or shard contains no image.
    """
    single = isinstance(images, (str, os.PathLike, Image.Image, ImageRef))
    sources = [images] if single or hasattr(images, "ndim") else images
    # Iterating over these would give bytes, numbers or keys.
    if not isinstance(sources, Iterable) or isinstance(sources, (bytes, Mapping, io.IOBase)):
        raise ConfigError(
            f"images is a {type(images).__name__}; pass paths, PIL images, arrays or tensors"
        )
    refs: list[ImageRef] = []
    for source in sources:
        if isinstance(source, ImageRef):
            refs.append(source)
        elif isinstance(source, (str, os.PathLike)):
            refs += _find_files(source)
        else:
            start = len(refs)
            refs += [ImageRef(f"image {start + i}", x) for i, x in enumerate(_unbatch(source))]
    return refs


def read_ahead(
    read: Callable[[S], T], items: Sequence[S], workers: int, ahead: int, *, overlap: bool
) -> Generator[T, None, None]:
    """Apply `read` to every item with threads, and yield the results in order.

    Args:
        read: runs in a worker thread. Threads suffice, because Pillow releases the interpreter
            while it decodes and resizes, and no result has to be copied between processes.
        items: the items to read.
        workers: number of threads.
        ahead: number of items that are read before the first of them is used.
        overlap: whether to keep reading while results are used, as is best for a GPU. If false,
            reading and using alternate: on a CPU both need all cores, and contention between
            their threads costs more than overlapping saves.

    Yields:
        The result for each item, in the order of `items`.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            if overlap:
                pending: deque[Future[T]] = deque()
                for item in items:
                    pending.append(pool.submit(read, item))
                    if len(pending) > ahead:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            else:
                for start in range(0, len(items), ahead):
                    # a list, so that the whole chunk is read before its first item is used
                    yield from list(pool.map(read, items[start : start + ahead]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _find_files(pattern: str | os.PathLike[str]) -> list[ImageRef]:
    """Images of a path or a shell pattern, sorted by path."""
    path = expand_path(pattern, "images")
    # a missing file is listed as well: reading it reports the reason
    matches = [path]
    if glob.has_magic(str(pattern)) and not path.exists():
        matches = [Path(match) for match in glob.glob(str(pattern), recursive=True)]
    # a set, because ** matches a folder and the folders in it
    files = {
        file for match in matches for file in (_walk_images(match) if match.is_dir() else [match])
    }
    refs = [ref for file in sorted(files) for ref in _list_file(file)]
    if not refs:
        raise ConfigError(
            f"no image in {pattern}; pass files, folders, tar shards or patterns with "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return refs


def _walk_images(folder: Path) -> Iterator[Path]:
    """Files in a folder, at any depth, with the suffix of an image."""

    def reject(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be searched: {error.strerror}")

    for root, _, names in os.walk(folder, onerror=reject):
        yield from (Path(root, name) for name in names if _is_image(name))


def _list_file(path: Path) -> list[ImageRef]:
    """The images of a tar shard in the order of its members, or the file itself."""
    if not path.name.lower().endswith(TAR_SUFFIXES):
        return [ImageRef(printable(path), path)]
    return [
        ImageRef(printable(f"{path}/{name}"), path, span)
        for name, span in find_members(path)
        if _is_image(name)
    ]


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _unbatch(image: Any) -> "list[Image.Image | Tensor]":
    """Split a batch in memory into images; a single image is returned as a list."""
    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and (
            image.ndim == 2 or (image.ndim in (3, 4) and image.shape[-1] == 3)
        ):
            return [Image.fromarray(x) for x in (image if image.ndim == 4 else image[None])]
        raise ConfigError(
            f"invalid array {image.shape} of {image.dtype}; "
            f"pass uint8 (H, W), (H, W, 3) or (N, H, W, 3)"
        )
    import torch  # here, because the CLI lists files before it needs a model

    if isinstance(image, torch.Tensor):
        if image.dtype == torch.uint8 and image.ndim in (3, 4) and image.shape[-3] == 3:
            return list(image if image.ndim == 4 else image[None])
        raise ConfigError(
            f"invalid tensor {tuple(image.shape)} of {image.dtype}; "
            f"pass uint8 (3, H, W) or (N, 3, H, W)"
        )
    raise ConfigError(
        f"cannot read a {type(image).__name__}; pass paths, PIL images, arrays or tensors"
    )
