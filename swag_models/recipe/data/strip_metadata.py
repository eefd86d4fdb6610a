"""Pictures without what they tell of their makers: location, names, comments and previews go, the pixels stay.

Axes: H W pixels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from PIL import ExifTags, Image

from swag_models.errors import ImageError
from swag_models.preprocess import read_image

QUALITY = 95  # of the JPEGs that resizing writes
PIXELS_OF_WEBP = {
    b"VP8 ",
    b"VP8L",
    b"VP8X",
    b"ALPH",
    b"ICCP",
}  # the chunks that one picture is made of
SOI, EOI, SOS, APP0, APP15, COM, TEM = b"\xff\xd8", 0xD9, 0xDA, 0xE0, 0xEF, 0xFE, 0x01
KEPT = {
    0xE0: b"JFIF\0",
    0xE2: b"ICC_PROFILE\0",
    0xEE: b"Adobe",
}  # application segments that affect the pixels
MARKER = re.compile(
    rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL
)  # what ends a scan: neither a stuffed byte nor a restart


def scrub_image(content: bytes, name: str, short_side: int | None = None) -> tuple[bytes, str]:
    """A picture's file without its metadata, and the suffix of its format.

    A JPEG keeps its compressed pixels bit by bit, its colour profile and its orientation; a WebP that is nothing but a picture
    is kept; any other file becomes a PNG of its upright RGB pixels. If the shorter side has more than `short_side` pixels, the
    picture is turned upright, made smaller in proportion and written as a JPEG. ImageError, which names the picture, if it
    cannot be decoded to the end.
    """
    upright = read_image(io.BytesIO(content), name)  # decodes all of it: a cut file is found here
    if 0 in upright.size:
        raise ImageError(f"{name} has no pixels")
    if short_side and min(upright.size) > short_side:
        scale = short_side / min(upright.size)
        size = (
            max(short_side, round(upright.width * scale)),
            max(short_side, round(upright.height * scale)),
        )
        return _encode(
            upright.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=QUALITY
        ), "jpg"
    with Image.open(io.BytesIO(content)) as image:
        kind, orientation = image.format, image.getexif().get(ExifTags.Base.Orientation, 1)
    if kind in ("JPEG", "MPO"):
        return strip_jpeg(content, orientation), "jpg"
    if kind == "WEBP" and _is_bare(content):
        return content, "webp"
    return _encode(upright, "PNG"), "png"


def strip_jpeg(content: bytes, orientation: int = 1) -> bytes:
    """A JPEG that decodes to the same pixels, without EXIF, XMP, IPTC, comments, previews and what follows its end.

    If `orientation` is not 1, it is all that a new EXIF segment holds. Segments are those of ITU-T T.81, annex B.
    """
    kept = [segment for marker, segment in _split(content) if _matters(marker, segment)]
    jfif = kept[0][1] == APP0
    if jfif:
        kept[0] = kept[0][:2] + b"\x00\x10" + kept[0][4:16] + b"\0\0"  # without a preview
    if orientation in range(2, 9):
        kept.insert(jfif, _orient(orientation))
    return b"".join([SOI, *kept])


def _matters(marker: int, segment: bytes) -> bool:
    """Whether a segment affects the pixels."""
    if APP0 <= marker <= APP15:
        return marker in KEPT and segment.startswith(KEPT[marker], 4)
    return marker != COM


def _split(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The segments between a JPEG's start and end, the end included, a scan with its compressed data, each with its marker."""
    place = 2
    while found := MARKER.search(content, place):
        marker, start = content[found.end() - 1], found.end() - 2
        if marker == EOI:
            break
        stop = start + 2
        if marker != TEM:  # the one other marker without a length
            stop += int.from_bytes(content[stop : stop + 2], "big")
        if marker == SOS:
            end = MARKER.search(content, stop)
            stop = end.start() if end else len(content)
        yield marker, content[start:stop]
        place = stop
    yield EOI, b"\xff\xd9"


def _is_bare(content: bytes) -> bool:
    """Whether a WebP file (RIFF: a name and a length before each chunk, padded to even) is one picture and nothing else."""
    place = 12
    while content[place : place + 4] in PIXELS_OF_WEBP:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return place == len(content)


def _orient(orientation: int) -> bytes:
    """An EXIF segment that holds an orientation alone."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    body = exif.tobytes()
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    file, profile = io.BytesIO(), image.info.get("icc_profile", b"")
    image.info = {}  # else Pillow would write the original's comment again
    image.save(file, kind, icc_profile=profile if profile[16:20] == b"RGB " else None, **options)
    return file.getvalue()
