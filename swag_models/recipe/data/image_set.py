"""A set of images on disk as thumbnails and hashes, and the search for copies among them.

`index_images` writes a folder, whose files are mapped into memory, so that processes share them:

    locations.parquet  where the images are stored
    thumbnails.npy     (N, 64, 64, 3) uint8: 12 KB for each image
    descriptors.npy    (N, 2, D) float32: of the whole thumbnail and of its centre; 0.9 KB
    pixels.npy         (N,) SHA-256 of the pixels in text; empty for an image that cannot be read
    index.json         record of the finished index

Axes: N images of the set, B images that are searched for, D coefficients.
"""

import hashlib
import heapq
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError, ImageError
from swag_models.formatting import count_noun, list_names
from swag_models.hub.progress import make_bar
from swag_models.image_decoding import read_image
from swag_models.inference.image_sources import read_ahead
from swag_models.recipe.data.image_index import ImageLocation
from swag_models.recipe.data.pack_plan import LOCATIONS_FILE, write_locations
from swag_models.recipe.data.thumbnails import (
    EVEN,
    SIDE,
    WIDTH,
    ZOOM,
    Descriptors,
    Thumbnails,
    compare_descriptors,
    compute_descriptors,
    list_orientations,
    make_thumbnail,
    measure_distance,
)
from swag_models.resumable import run_once
from swag_models.runtime import count_cpus, import_extra

logger = logging.getLogger("swag_models")

INDEX_VERSION = 1  # increase when thumbnails or descriptors change
MIN_SIMILARITY = 0.8  # of descriptors, to compare thumbnails
CANDIDATES = 4  # whose thumbnails are compared with that of an image at most
BATCH = 1024  # images that are read at a time
READ_AHEAD = 64  # images
BLOCK = 64  # images that are compared with a set at once
CHUNK = 16_384  # rows of an index that are compared at a time, which limits the memory
ARRAYS = ("thumbnails.npy", "descriptors.npy", "pixels.npy")


class Fingerprint(NamedTuple):
    """What images are compared by.

    Attributes:
        digest: SHA-256 of the size and of the upright RGB pixels, hexadecimal.
        thumbnail: uint8 (64, 64, 3).
    """

    digest: str
    thumbnail: Thumbnails


class ImageMatch(NamedTuple):
    """The image of a set that another image is a copy of.

    Attributes:
        number: its number in the set.
        distance: 0 for equal pixels; see `thumbnails.measure_distance`.
        mirrored: whether one is mirrored.
        equal: whether the pixels are equal.
    """

    number: int
    distance: float
    mirrored: bool = False
    equal: bool = False


def fingerprint(image: Image.Image) -> Fingerprint:
    """Compute what an upright RGB image is compared by."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return Fingerprint(digest.hexdigest(), make_thumbnail(image))


def index_images(
    sources: Sequence[str], folder: Path, *, progress: bool, **columns: str
) -> dict[str, Any]:
    """Write the index of a set of images, or keep that of an earlier run with the same files.

    Args:
        sources: as for `find_locations`.
        folder: folder of the index, in the folder of a resumable work; created if missing.
        progress: show a progress bar on stderr.
        columns: as for `find_locations`.

    Returns:
        `images`, their number; `unreadable`, the number of those that cannot be read;
        `first_error`; and `sha256`, of the hashes of all pixels.

    Raises:
        ConfigError: there are no images, or none can be read.
    """
    folder.mkdir(exist_ok=True)
    key = [INDEX_VERSION, write_locations(sources, folder, **columns)]
    files = [folder / name for name in ARRAYS]
    facts: dict[str, Any] = run_once(
        folder / "index.json", key, files, lambda: _write_index(folder, files, progress)
    )
    names = list_names(list(sources))
    if not facts["images"]:
        raise ConfigError(f"no images in {names}; give folders, .tar shards or tables of images")
    if facts["unreadable"] == facts["images"]:
        raise ConfigError(
            f"none of {count_noun(facts['images'], 'image')} in {names} can be read; the first: "
            f"{facts['first_error']}"
        )
    return facts


def warn_of_unreadable(
    sources: Sequence[str], images: int, unreadable: int, first_error: str | None, **_: object
) -> None:
    """Log how many of the images are not compared, and the first reason.

    Args:
        sources: of the images.
        images: their number.
        unreadable: number of those that cannot be read.
        first_error: why the first of them cannot be read.
    """
    if unreadable:
        logger.warning(
            "not compared, because they cannot be read: %d of %s in %s; the first: %s",
            unreadable,
            count_noun(images, "image"),
            list_names(list(sources)),
            first_error,
        )


def _write_index(folder: Path, files: Sequence[Path], progress: bool) -> dict[str, Any]:
    count = import_extra("pyarrow.parquet").read_metadata(folder / LOCATIONS_FILE).num_rows
    if not count:
        return {"images": 0}
    # written one after another: a mapped file would end the process when the disk is full
    layouts = {"u1": (SIDE, SIDE, 3), "f4": (2, WIDTH), "S64": ()}
    first_error, unreadable, digest = None, 0, hashlib.sha256()
    with ExitStack() as stack:
        outputs = [
            stack.enter_context(stack.enter_context(atomic_write(path)).open("wb"))
            for path in files
        ]
        for output, (kind, shape) in zip(outputs, layouts.items()):
            header = {"descr": np.dtype(kind).str, "fortran_order": False}
            np.lib.format.write_array_header_1_0(output, {**header, "shape": (count, *shape)})
        bar = stack.enter_context(make_bar(progress, total=count, unit=" images", leave=False))
        for batch in read_locations(folder):
            thumbnails, descriptors, pixels = arrays = [
                np.zeros((len(batch), *shape), kind) for kind, shape in layouts.items()
            ]
            with closing(
                read_ahead(_read_fingerprint, batch, count_cpus(), READ_AHEAD, overlap=True)
            ) as fingerprints:
                for number, item in enumerate(fingerprints):
                    bar.update()
                    if isinstance(item, str):
                        first_error = first_error or item
                    else:
                        pixels[number], thumbnails[number] = item
            for variant, zoom in enumerate((0, ZOOM)):
                descriptors[:, variant] = np.hstack(compute_descriptors(thumbnails, zoom))
            unreadable += int((pixels == b"").sum())
            digest.update(pixels.tobytes())
            for output, array in zip(outputs, arrays):
                output.write(array.tobytes())
    return {
        "images": count,
        "unreadable": unreadable,
        "first_error": first_error,
        "sha256": digest.hexdigest(),
    }


def read_locations(folder: Path) -> Iterator[list[ImageLocation]]:
    """Yield the locations of all images of an index, in batches."""
    with import_extra("pyarrow.parquet").ParquetFile(folder / LOCATIONS_FILE) as file:
        for batch in file.iter_batches(BATCH, columns=list(ImageLocation._fields)):
            yield [ImageLocation(**row) for row in batch.to_pylist()]


def _read_fingerprint(location: ImageLocation) -> Fingerprint | str:
    """The fingerprint of an image, or the reason why it cannot be read."""
    try:
        return fingerprint(read_image(io.BytesIO(location.read()), location.name))
    except ImageError as error:
        return str(error)


class ImageSet:
    """Finds images of a set that others are copies of.

    Args:
        folder: a folder that `index_images` has written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thumbnails, self._descriptors, pixels = (
            np.load(folder / name, mmap_mode="r") for name in ARRAYS
        )
        self._numbers: dict[bytes, int] = {}  # of the first image with these pixels
        for number, digest in enumerate(pixels.tolist()):
            self._numbers.setdefault(digest, number)
        self._numbers.pop(b"", None)

    def __len__(self) -> int:
        return len(self.thumbnails)

    def locate(self, numbers: Sequence[int]) -> list[ImageLocation]:
        """Return the locations of images by number."""
        return [ImageLocation(**row) for row in self._locations.take(list(numbers)).to_pylist()]

    @cached_property
    def _locations(self) -> Any:
        return import_extra("pyarrow.parquet").read_table(
            self.folder / LOCATIONS_FILE, columns=list(ImageLocation._fields)
        )

    def find(
        self, images: Sequence[Fingerprint], threshold: float, before: int | None = None
    ) -> list[ImageMatch | None]:
        """Find the image of the set that each of these is a copy of.

        Args:
            images: B images.
            threshold: largest distance of a near copy.
            before: for images of this set, the number of the first of them: each is compared with
                images of smaller numbers only.

        Returns:
            The closest match of each image; None if there is none.
        """
        stops = [len(self) if before is None else before + row for row in range(len(images))]
        matches: list[ImageMatch | None] = []
        for image, stop in zip(images, stops):
            number = self._numbers.get(image.digest.encode(), stop)
            matches.append(ImageMatch(number, 0.0, equal=True) if number < stop else None)
        rows = [row for row, match in enumerate(matches) if match is None]
        if rows and threshold > 0:
            whole = compute_descriptors(np.stack([images[row].thumbnail for row in rows]))
            centre = compute_descriptors(np.stack([images[row].thumbnail for row in rows]), ZOOM)
            candidates = self._find_candidates(whole, centre, [stops[row] for row in rows])
            for number, (row, numbers) in enumerate(zip(rows, candidates)):
                descriptor = Descriptors(whole.even[number], whole.odd[number])
                matches[row] = self._compare(images[row], descriptor, numbers, threshold)
        return matches

    def _find_candidates(
        self, whole: Descriptors, centre: Descriptors, stops: Sequence[int]
    ) -> list[list[int]]:
        """Numbers of the images whose descriptors are most similar, for each of several images."""
        best: list[list[tuple[float, int]]] = [[] for _ in stops]
        for start in range(0, max(stops), CHUNK):
            chunk = self._descriptors[start : min(start + CHUNK, max(stops))]
            others = [Descriptors(rows[:, :EVEN], rows[:, EVEN:]) for rows in chunk.swapaxes(0, 1)]
            # A crop resembles the centre of the whole image, in either direction.
            similarities = compare_descriptors(whole, others[0])
            for one, other in ((whole, others[1]), (centre, others[0])):
                np.maximum(similarities, compare_descriptors(one, other), out=similarities)
            rows, columns = np.nonzero(similarities >= MIN_SIMILARITY)
            values = similarities[rows, columns]
            for row, number, value in zip(rows.tolist(), (columns + start).tolist(), values):
                if number < stops[row]:
                    best[row].append((-float(value), number))
            best = [heapq.nsmallest(CANDIDATES, pairs) for pairs in best]
        return [[number for _, number in pairs] for pairs in best]

    def _compare(
        self, image: Fingerprint, descriptor: Descriptors, numbers: Sequence[int], threshold: float
    ) -> ImageMatch | None:
        """The closest of some images, or the first that is very close; None if all are distant."""
        best = None
        for number in numbers:
            row = self._descriptors[number, 0]
            for mirrored in list_orientations(descriptor, Descriptors(row[:EVEN], row[EVEN:])):
                thumbnail = image.thumbnail[:, ::-1] if mirrored else image.thumbnail
                distance = measure_distance(thumbnail, self.thumbnails[number], threshold)
                if distance <= (best.distance if best else threshold):
                    best = ImageMatch(number, distance, mirrored)
                if distance <= threshold / 2:
                    return best
        return best
