"""Where pictures come from: files, folders, shell patterns, tar shards, or memory -> one ordered list, read ahead by threads.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import glob
import io
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.preprocess import read_image

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SHARDS = (
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
)  # only the first can be read, at any offset
TAR_BLOCK = 512
LOCKS = [
    Lock() for _ in range(61)
]  # an image in memory that is given twice must not be decoded by two threads at once

S = TypeVar("S")
T = TypeVar("T")


class ImageRef(NamedTuple):
    """A picture that is not read yet: a name for reports, and where it is.

    `source` is a file's path, or an image in memory; `span` is (offset, bytes) of a member within a tar file.
    """

    name: str
    source: Path | Image.Image | Tensor
    span: tuple[int, int] | None = None

    def read(self) -> Image.Image | Tensor:
        """An upright RGB image, or the tensor it is; ImageError, which names the picture, says what is wrong with it."""
        image = self._open()
        if 0 in (image.size if isinstance(image, Image.Image) else image.shape):
            raise ImageError(f"{self.name} has no pixels")
        return image

    def _open(self) -> Image.Image | Tensor:
        if isinstance(self.source, Image.Image):
            with LOCKS[id(self.source) % len(LOCKS)]:
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
    """Every picture in `images`, in order: one of these, or a sequence of them.

    A path of a file, a folder (searched to any depth), a tar shard, or a shell pattern of those; a PIL image; an array
    (H, W), (H, W, 3) or (N, H, W, 3) or a tensor (3, H, W) or (N, 3, H, W), of bytes. Folders, patterns and shards are listed
    in sorted order. ConfigError names what is none of these, and a folder or pattern without a picture.
    """
    single = isinstance(images, (str, os.PathLike, Image.Image, ImageRef)) or hasattr(
        images, "ndim"
    )
    given = [images] if single else images
    if not isinstance(given, Iterable):
        raise ConfigError(
            f"images is a {type(images).__name__}; give paths, PIL images, arrays or tensors"
        )
    pictures: list[ImageRef] = []
    for each in given:
        if isinstance(each, ImageRef):
            pictures.append(each)
        elif isinstance(each, (str, os.PathLike)):
            pictures += _find_files(each)
        else:
            pictures += [
                ImageRef(f"image {len(pictures) + i}", image)
                for i, image in enumerate(_unbind(each))
            ]
    return pictures


def find_members(path: Path) -> list[tuple[str, tuple[int, int]]]:
    """The names of the files in a tar shard and their spans, in the order they lie there; ConfigError if it was cut."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [
                (member.name, (member.offset_data, member.size))
                for member in archive
                if member.isfile()
            ]
            end = archive.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(TAR_BLOCK) != bytes(
                TAR_BLOCK
            ):  # tarfile itself takes a cut before a member for the end
                raise tarfile.ReadError("unexpected end of data")
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read as an uncompressed tar file: {reason}") from None
    return members


def read_ahead(
    read: Callable[[S], T], items: Sequence[S], workers: int, ahead: int, *, overlap: bool
) -> Iterator[T]:
    """`read` of every item, in order, each by one of `workers` threads.

    Threads do: Pillow decodes and resizes without holding the interpreter, and nothing has to be copied between processes.
    With `overlap` they read up to `ahead` items while earlier ones are used: right if those are used on a GPU. Without, reading
    so many and using them take turns: right on a processor, whose cores both need.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            if overlap:
                waiting: deque[Future[T]] = deque()
                for item in items:
                    waiting.append(pool.submit(read, item))
                    if len(waiting) > ahead:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            else:
                for start in range(0, len(items), ahead):
                    yield from list(pool.map(read, items[start : start + ahead]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _find_files(pattern: str | os.PathLike[str]) -> list[ImageRef]:
    path = Path(pattern)
    given = [path]  # also if it is missing: reading it will say so
    if glob.has_magic(str(pattern)) and not path.exists():
        given = [Path(each) for each in glob.glob(str(pattern), recursive=True)]
    found = {file for each in given for file in (_search(each) if each.is_dir() else [each])}
    pictures = [picture for each in sorted(found) for picture in _expand(each)]
    if not pictures:
        raise ConfigError(
            f"no picture in {pattern}; give files, folders, tar shards or patterns with {' '.join(sorted(SUFFIXES))}"
        )
    return pictures


def _search(folder: Path) -> Iterator[Path]:
    """The files in a folder, at any depth, that are named like pictures."""

    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be searched: {error.strerror}")

    for root, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(root, name) for name in names if Path(name).suffix.lower() in SUFFIXES)


def _expand(path: Path) -> list[ImageRef]:
    """The pictures of a tar shard in the order they lie there, or the file itself."""
    if not path.name.lower().endswith(SHARDS):
        return [ImageRef(_spell(path), path)]
    return [
        ImageRef(_spell(f"{path}/{name}"), path, span)
        for name, span in find_members(path)
        if Path(name).suffix.lower() in SUFFIXES
    ]


def _spell(path: str | os.PathLike[str]) -> str:
    """A path as text that can be written to any file; bytes that are no UTF-8 are spelled out."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _unbind(image: Any) -> list[Image.Image | Tensor]:
    """The single images of an image or a batch in memory."""
    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and (
            image.ndim == 2 or (image.ndim in (3, 4) and image.shape[-1] == 3)
        ):
            return [Image.fromarray(each) for each in (image if image.ndim == 4 else image[None])]
        raise ConfigError(
            f"array {image.shape} of {image.dtype}; give bytes (H, W), (H, W, 3) or (N, H, W, 3)"
        )
    import torch

    if isinstance(image, torch.Tensor):
        if image.dtype == torch.uint8 and image.ndim in (3, 4) and image.shape[-3] == 3:
            return list(image if image.ndim == 4 else image[None])
        raise ConfigError(
            f"tensor {tuple(image.shape)} of {image.dtype}; give bytes (3, H, W) or (N, 3, H, W)"
        )
    raise ConfigError(
        f"cannot read a {type(image).__name__}; give paths, PIL images, arrays or tensors"
    )
