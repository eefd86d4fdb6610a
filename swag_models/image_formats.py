"""Open image files: which formats are read, and how much work a file may cause.

A decoder does what a file says. These limits are checked before it runs, so that a file of a few
bytes cannot occupy a machine, and every error that it raises becomes an `ImageError`.
"""

import ctypes
import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, cast

from PIL import ExifTags, Image, TiffTags, UnidentifiedImageError

from swag_models.errors import ConfigError, ImageError
from swag_models.formatting import describe_error
from swag_models.paths import open_regular

# Name of each format in Pillow -> suffixes of its files. Formats that Pillow hands to a program
# (EPS to Ghostscript), draws with the operating system (WMF) or cannot decode (GRIB, HDF5, MPEG)
# are not read, and neither are those of a single program, whose decoders are tested least.
# TGA is last, because its files do not begin with a signature.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "PCX": (".pcx",),
    "PSD": (".psd",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "DDS": (".dds",),
    "QOI": (".qoi",),
    "XBM": (".xbm",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# An image that the caller opened can be of any format. Decoding it would start a program.
PROGRAM_FORMATS = ("EPS", "WMF")

MAX_PIXELS_VARIABLE = "SWAG_MODELS_MAX_PIXELS"
MAX_SIDE = 65_535  # pixels; the limit of JPEG. Pillow takes half a minute for 89 million rows.
MAX_FILE_BYTES = 1 << 30
# A million pixels take Pillow about a second where its decoder is written in Python, as for QOI,
# and for some kinds of DDS, BMP and PPM.
MAX_SLOW_PIXELS = 1 << 22
# Pillow joins the parts of a comment one by one, so the time grows with the square of their number.
MAX_HEADER_READS = 4000
MAX_EXIF_BYTES = 1 << 22  # in the segments of a JPEG
MAX_SCANS = 100  # of a progressive JPEG; each goes through all pixels, and about 10 are usual
TOO_MUCH_METADATA = "it has too much metadata; save it without"
TIFF_HEADER = re.compile(rb"II\*\0|MM\0\*|MM\*\0|II\0\*")  # Pillow accepts the last two as well
# Begins a segment of a JPEG. Other bytes after FF are data, restart markers and padding.
SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
EXIF_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes
# Start of a file -> its kind, for messages
OTHER_KINDS = {
    b"ftyphei": "HEIC",
    b"ftyphev": "HEIC",
    b"ftypmif1": "HEIC",
    b"ftypmsf1": "HEIC",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"\xd7\xcd\xc6\x9a": "WMF",
    b"<svg": "SVG",
    b"JXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
}


@contextmanager
def image_errors(name: str) -> Iterator[None]:
    """Raise ImageError for every error that decoding an image raises in the `with` block.

    Args:
        name: what the message calls the image.
    """
    try:
        yield
    except ConfigError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name} has too many pixels; at most {get_max_pixels()} are read: resize it first, or "
            f"set {MAX_PIXELS_VARIABLE}"
        ) from None
    # Pillow's decoders raise errors of any type for damaged files, such as RuntimeError,
    # NotImplementedError, IndexError, AssertionError, MemoryError, struct.error and zlib.error.
    except Exception as error:
        raise ImageError(f"{name} cannot be read: {describe_error(error)}") from None


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Put the name of an image before the message of an ImageError in the `with` block."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None


@contextmanager
def open_image(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image file; its pixels are not decoded yet.

    It raises errors of any type: use it within `image_errors`.

    Args:
        source: a path or an open file.
    """
    # `_HeaderReader` closes the file that it reads.
    with _HeaderReader(_open_raw(source)) as file:
        _check_start(file)
        max_pixels = get_max_pixels()
        with _identify(file) as image:
            if image.format == "TIFF":  # decoding would read it, without a limit
                _read_tiff_exif(image)
            file.limited = False
            pixels = image.width * image.height
            if max_pixels is not None and pixels > max_pixels:
                raise ImageError(
                    f"it is {image.width}x{image.height} pixels; at most {max_pixels} in all are "
                    f"read: resize it first, or set {MAX_PIXELS_VARIABLE}={pixels}"
                )
            _check_side(*image.size)
            if pixels > MAX_SLOW_PIXELS and any(
                tile[0] in Image.DECODERS for tile in getattr(image, "tile", None) or ()
            ):
                raise ImageError(
                    f"it has {pixels} pixels; at most {MAX_SLOW_PIXELS} are read of this kind of "
                    f"{image.format}: convert it to PNG"
                )
            if image.info.get("progressive"):
                _check_scans(file)
            yield image


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image whose pixels have been decoded: 1 is upright.

    Raises:
        ImageError: reading its EXIF would take too much memory.
    """
    content = image.info.get("exif")
    # ImageMagick writes EXIF as text: three lines, then hexadecimal digits.
    if content is None and (text := image.info.get("Raw profile type exif")):
        content = bytes.fromhex("".join(text.split("\n")[3:]))
    if isinstance(content, bytes):
        _check_exif(content)
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


def is_image_name(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def get_max_pixels() -> int | None:
    """Return the largest number of pixels of an image file that is read.

    It is the environment variable SWAG_MODELS_MAX_PIXELS, which worker processes inherit, or
    otherwise `PIL.Image.MAX_IMAGE_PIXELS`: 89,478,485, or None for no limit.

    Raises:
        ConfigError: the variable is not a positive integer.
    """
    if text := os.environ.get(MAX_PIXELS_VARIABLE):
        if not (text.isascii() and text.isdigit() and 0 < len(text) < 19 and int(text)):
            raise ConfigError(
                f"invalid {MAX_PIXELS_VARIABLE} {text!r}: allowed: a number of pixels of at least 1"
            )
        Image.MAX_IMAGE_PIXELS = int(text)  # Pillow itself rejects twice as many
    return Image.MAX_IMAGE_PIXELS


class _HeaderReader(io.BufferedReader):
    """A file whose reads are limited in number and bytes until the header is parsed.

    Args:
        raw: the file.

    Raises:
        ImageError: the file is too large.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        size = self.seek(0, os.SEEK_END)
        check_file_size(size)
        self.limited = True
        self._num_reads, self._exif = 0, b""
        # Some decoders read the whole file at once, after its beginning; and Pillow reads the tags
        # of a TIFF twice.
        self._num_bytes_left = 3 * size + 2**20

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        if self.limited:
            self._num_reads += 1
            self._num_bytes_left -= len(content)
            # Pillow joins the EXIF segments of a JPEG, and parses them before the file is open.
            if content.startswith(b"Exif\0\0"):
                self._exif += content[6:]
                _check_exif(self._exif)
            if (
                self._num_reads > MAX_HEADER_READS
                or self._num_bytes_left < 0
                or len(self._exif) > MAX_EXIF_BYTES
            ):
                raise ImageError(TOO_MUCH_METADATA)
        return content


def check_file_size(size: int) -> None:
    """Raise ImageError if an image file has more bytes than are read."""
    if size > MAX_FILE_BYTES:
        raise ImageError(f"it has {size} bytes; at most {MAX_FILE_BYTES} are read")


def _open_raw(source: str | os.PathLike[str] | IO[bytes]) -> io.RawIOBase:
    """Open a path, or copy an open file, without a buffer."""
    if isinstance(source, (str, os.PathLike)):
        try:
            return cast("io.BufferedReader", open_regular(source)).detach()
        except OSError as error:
            if error.errno is not None:
                raise
            # a folder, device or pipe; the caller puts the name before the message
            reason = str(error).removeprefix(os.fspath(source))
            raise ImageError(f"it{reason}") from None
    if source.seekable():
        source.seek(0)
    return cast("io.RawIOBase", io.BytesIO(source.read()))


@cache
def _list_formats() -> tuple[str, ...]:
    Image.init()
    # libtiff, which Pillow's module links except on Windows, prints a line for a damaged file.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # type: ignore[attr-defined]
    return tuple(name for name in FORMATS if name in Image.OPEN)  # older versions lack some


def _identify(file: io.BufferedReader) -> Image.Image:
    """Open a file as `Image.open` does, without its warning about images that are too large."""
    start = file.read(16)
    for name in _list_formats():
        factory, accept = Image.OPEN[name]
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # of another format
            result = accept is None or accept(start)
            if result and not isinstance(result, str):  # a text is a reason to refuse it
                file.seek(0)
                return factory(file, "")
    for mark, kind in OTHER_KINDS.items():
        if mark in start:
            raise ImageError(f"it is {kind}, which is not read; convert it to JPEG or PNG")
    raise UnidentifiedImageError


def _check_start(file: io.BufferedReader) -> None:
    """Check contents that Pillow decodes while opening a file, or does not check itself."""
    file.seek(0)
    start = file.read(12)
    if start.startswith(b"\0\0\1\0"):
        _check_icons(file, int.from_bytes(start[4:6], "little"))
    elif start[4:8] == b"ftyp":  # AVIF, whose EXIF is parsed when the file is opened
        file.seek(0)
        _check_exif(file.read())
    file.seek(0)


def _check_icons(file: io.BufferedReader, count: int) -> None:
    """Check the size of each image in an .ico file, which can differ from the size in its table."""
    for number in range(count):
        file.seek(6 + 16 * number + 12)
        file.seek(int.from_bytes(file.read(4), "little"))
        header = file.read(24)
        if len(header) == 24 and header.startswith(b"\x89PNG"):
            _check_side(*struct.unpack(">II", header[16:]))
        elif len(header) == 24 and header[0] >= 40:  # BITMAPINFOHEADER
            _check_side(*struct.unpack("<ii", header[4:12]))


def _check_exif(content: bytes) -> None:
    """Check that the tags of EXIF do not refer to the same bytes again and again.

    Pillow reads them all, which would take memory by the square of their number.
    """
    for match in TIFF_HEADER.finditer(content):
        start, order = match.start(), "<" if match[0].startswith(b"II") else ">"
        num_bytes = 0
        with suppress(struct.error):
            offset = start + struct.unpack_from(f"{order}I", content, start + 4)[0]
            (count,) = struct.unpack_from(f"{order}H", content, offset)
            for entry in range(offset + 2, offset + 2 + 12 * count, 12):
                _, unit, length = struct.unpack_from(f"{order}HHI", content, entry)
                size = length * EXIF_UNITS.get(unit, 0)
                num_bytes += size if size <= len(content) else 0
        if num_bytes > 2 * len(content) + 2**22:
            raise ImageError(TOO_MUCH_METADATA)


def _check_side(width: int, height: int) -> None:
    if max(abs(width), abs(height)) > MAX_SIDE:
        raise ImageError(
            f"it is {width}x{height} pixels; at most {MAX_SIDE} on a side are read: crop it first"
        )


def _read_tiff_exif(image: Image.Image) -> None:
    """Read what Pillow reads of the EXIF of a TIFF when it decodes it; it keeps the result."""
    exif = image.getexif()
    for tag in TiffTags.TAGS_V2_GROUPS:
        if tag in exif and not getattr(image, "is_animated", False):
            exif.get_ifd(tag)


def _check_scans(file: io.BufferedReader) -> None:
    """Check the number of scans of a JPEG, up to its end: a video may follow."""
    position = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(position)
    num_scans, num_segments, start = 0, 0, 2
    while match := SEGMENT.search(content, start):
        start, marker = match.end(), match[0][1]
        if marker == 0xD9:
            return
        num_segments += 1
        num_scans += marker == 0xDA
        if num_scans > MAX_SCANS or num_segments > MAX_HEADER_READS:
            raise ImageError(f"it has more than {MAX_SCANS} scans; save it again")
        start += int.from_bytes(content[start : start + 2], "big")
