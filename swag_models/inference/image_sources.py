"""Where images come from: files, folders, patterns, tar shards or memory, read ahead by threads.

Axes: N batch, C channels, H W pixels.
"""

import glob
import io
import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from swag_models.archives import find_members
from swag_models.errors import ConfigError, ImageError, argument_errors
from swag_models.formatting import escape_unprintable, printable
from swag_models.image_decoding import read_image
from swag_models.image_formats import FORMATS, check_file_size, image_errors, is_image_name
from swag_models.paths import describe_left_out, expand_path, open_regular, walk_files

if TYPE_CHECKING:
    from torch import Tensor

# Only uncompressed tar files can be read at any offset. The others are listed so that
# they are rejected with a reason, not treated as images.
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Files that belong to the images of a tar shard: labels, captions and metadata
LABEL_SUFFIXES = {".json", ".txt", ".cls", ".id", ".index"}
URL_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")

logger = logging.getLogger("swag_models")


class NoImageError(ConfigError):
    """A folder, pattern or shard has no image; `content` says what else it has, as " (1 .txt)"."""

    content = ""


S = TypeVar("S")
T = TypeVar("T")


class ImageRef(NamedTuple):
    """An image that has not been read yet.

    Attributes:
        name: its name in messages and results.
        source: path of a file, the content of one, or an image in memory.
        span: (offset, size) in bytes of a member of a tar file; None for a separate file.
    """

    name: str
    source: "Path | bytes | Image.Image | Tensor"
    span: tuple[int, int] | None = None

    def read(self, decode: Callable[[Image.Image], T] | None = None) -> "T | Image.Image | Tensor":
        """Read the image.

        Args:
            decode: of a file: as for `read_image`.

        Returns:
            An upright RGB image or what `decode` returned, or the tensor if it was passed as one.

        Raises:
            ImageError: the image cannot be read; the message begins with its name.
        """
        if isinstance(self.source, Image.Image):
            # Pillow decodes an opened image when its pixels are first used, which two threads must
            # not do at once. The lock is stored on the image, because the image may be listed
            # twice; setdefault is atomic.
            with vars(self.source).setdefault("_swag_models_lock", Lock()):
                return read_image(self.source, self.name)
        if isinstance(self.source, bytes):
            return read_image(io.BytesIO(self.source), self.name, decode)
        if not isinstance(self.source, Path):
            if 0 in self.source.shape:
                raise ImageError(f"{self.name} has no pixels")
            return self.source
        if self.span is None:
            return read_image(self.source, self.name, decode)
        content = read_span(self.source, self.span, self.name)
        return read_image(io.BytesIO(content), self.name, decode)


def find_images(images: Any, left_out: Counter[str] | None = None) -> list[ImageRef]:
    """List every image of the given sources, and log how many other files are in them.

    Args:
        images: one source or a sequence of sources. A source is the path of a file, of a folder
            (searched to any depth), of a tar shard, or a shell pattern of those; a PIL image; a
            uint8 array (H, W), (H, W, 3) or (N, H, W, 3); a uint8 tensor (3, H, W) or
            (N, 3, H, W); an `ImageRef`. Links to files and folders are followed.
        left_out: increased by the number of other files, by suffix; by default they are logged.

    Returns:
        The images in the order of the sources; those of a folder or pattern sorted by path, those
        of a tar shard in the order of its members.

    Raises:
        ConfigError: a source is none of these, or a folder, pattern or shard contains no image.
    """
    with argument_errors("images", images):
        single = isinstance(images, (str, os.PathLike, Image.Image, ImageRef))
        sources = [images] if single or hasattr(images, "ndim") else images
    # Iterating over these would give bytes, numbers or keys.
    if not isinstance(sources, Iterable) or isinstance(sources, (bytes, Mapping, io.IOBase)):
        raise ConfigError(
            f"images is a {type(images).__name__}; pass paths, PIL images, arrays or tensors"
        )
    refs, others = list[ImageRef](), Counter[str]() if left_out is None else left_out
    with argument_errors("images", images):  # of any class, for example a generator
        sources = list(sources)
    for source in sources:
        if isinstance(source, ImageRef):
            refs.append(source)
        elif isinstance(source, (str, os.PathLike)):
            refs += _find_files(source, others)
        else:
            start = len(refs)
            refs += [ImageRef(f"image {start + i}", x) for i, x in enumerate(_unbatch(source))]
    if left_out is None:
        log_left_out(others)
    return refs


def log_left_out(left_out: Counter[str]) -> None:
    """Log how many files and links beside the images are left out, if any."""
    if left_out:
        hint = "; convert .heic to JPEG" if left_out[".heic"] else ""
        line = f"left out beside the images: {describe_left_out(left_out)}{hint}"
        logger.warning("%s", escape_unprintable(line, 499))


def read_span(path: Path, span: tuple[int, int], name: str) -> bytes:
    """Read a member of a tar file.

    Args:
        path: the tar file.
        span: offset and size of the member in bytes.
        name: what messages call the member.

    Raises:
        ImageError: the file cannot be read.
    """
    offset, size = span
    with image_errors(name), open_regular(path) as file:
        check_file_size(size)
        file.seek(offset)
        return file.read(size)


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


def _find_files(pattern: str | os.PathLike[str], left_out: Counter[str]) -> list[ImageRef]:
    """Images of a path or a shell pattern, sorted by path; `left_out` is increased."""
    path, others = expand_path(pattern, "images"), Counter[str]()
    # a missing file is listed as well: reading it reports the reason
    matches: Iterable[Path] = [path]
    if not path.exists():
        if URL_START.match(os.fspath(pattern)):
            raise ConfigError(
                f"invalid image {os.fspath(pattern)!r}: URLs are not read; download it and give "
                "the path of the file"
            )
        if glob.has_magic(str(path)):
            matches = _match_pattern(path, others)
    files = {
        file
        for match in matches
        for file in (walk_files(match, is_image_name, others) if match.is_dir() else [match])
    }
    refs = [ref for file in sorted(files) for ref in _list_file(file, others)]
    if not refs:
        content = f" ({describe_left_out(others)})" if others else ""
        error = NoImageError(
            f"no image in {pattern}{content}; pass files, folders, tar shards or patterns with "
            f"{' '.join(sorted(suffixes[0] for suffixes in FORMATS.values()))}"
        )
        error.content = content
        raise error
    left_out.update(others)
    return refs


def _match_pattern(pattern: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Files and folders that match a shell pattern, in which ** stands for folders of any depth."""
    parts = pattern.parts
    # Brackets in the name of an existing folder are not part of the pattern.
    depth = 0
    while Path(*parts[: depth + 1]).exists():
        depth += 1
    start, parts = glob.escape(str(Path(*parts[:depth]))), parts[depth:]
    if "**" not in parts:
        yield from map(Path, glob.glob(os.path.join(start, *parts)))
        return
    depth = parts.index("**")
    inner = parts[depth + 1 :]
    if "**" in inner:
        raise ConfigError(f"invalid pattern {str(pattern)!r}: allowed: ** once")
    # Not by `glob`, which follows a link to a folder above again and again.
    # Other files are left out on purpose where the pattern asks for certain names.
    others = left_out if inner in ((), ("*",)) else Counter[str]()
    for folder in map(Path, glob.glob(os.path.join(start, *parts[:depth]))):
        for file in walk_files(folder, is_image_name, others) if folder.is_dir() else ():
            names = file.relative_to(folder).parts
            # The end of the pattern matches the file, or a folder that contains it.
            stops = range(len(inner), len(names) + 1)
            if not any(name.startswith(".") for name in names) and any(
                all(map(fnmatch, names[stop - len(inner) : stop], inner)) for stop in stops
            ):
                yield file


def _list_file(path: Path, left_out: Counter[str]) -> Iterator[ImageRef]:
    """The images of a tar shard in the order of its members, or the file itself."""
    if not path.name.lower().endswith(TAR_SUFFIXES):
        yield ImageRef(printable(path), path)
        return
    for name, span in find_members(path, left_out):
        suffix = Path(name).suffix.lower()
        if is_image_name(name):
            yield ImageRef(printable(f"{path}/{name}"), path, span)
        elif suffix not in LABEL_SUFFIXES:
            left_out[suffix or "without a suffix"] += 1


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
