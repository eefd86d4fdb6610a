"""Remove location, author, comments and previews from image files; keep the pixels.

Axes: H W pixels.
"""

import io
import re
from collections.abc import Iterator

from PIL import ExifTags, Image

from swag_models.image_decoding import read_image
from swag_models.image_formats import image_errors, open_image

JPEG_QUALITY = 95  # of resized images
# The chunks of a WebP file that contain one image; others are metadata or an animation.
WEBP_IMAGE_CHUNKS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"}
# Names of JPEG markers as in ITU-T T.81, table B.1.
SOI, EOI, SOS, APP0, APP15, COM, TEM = b"\xff\xd8", 0xD9, 0xDA, 0xE0, 0xEF, 0xFE, 0x01
# Application segments of a JPEG that affect how pixels are decoded: marker -> start of content.
PIXEL_SEGMENTS = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
# What ends a scan: a marker other than a stuffed byte or a restart marker.
MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)


def strip_metadata(
    content: bytes,
    name: str,
    short_side: int | None = None,
    upright: Image.Image | None = None,
) -> tuple[bytes, str]:
    """Remove the metadata of an image file.

    A JPEG keeps its compressed pixels bit for bit, its colour profile and its orientation. A WebP
    without metadata is returned unchanged. Any other file becomes a PNG of its upright RGB pixels.
    An image larger than `short_side` is turned upright, resized, and written as a JPEG.

    Args:
        content: the file.
        name: name of the image for messages.
        short_side: pixels; an image whose shorter side is longer is resized to it. None for no
            limit.
        upright: the image as `read_image` returns it, if it was read already.

    Returns:
        The new file and the suffix of its format, without a dot.

    Raises:
        ImageError: the image cannot be decoded to the end; the message names it.
    """
    # decodes all pixels, to find truncated files
    upright = upright or read_image(io.BytesIO(content), name)
    with image_errors(name):  # an encoder has limits too
        if short_side and min(upright.size) > short_side:
            scale = short_side / min(upright.size)
            width, height = (max(short_side, round(side * scale)) for side in upright.size)
            resized = upright.resize((width, height), Image.Resampling.BICUBIC)
            return _encode_image(resized, "JPEG", quality=JPEG_QUALITY), "jpg"
        with open_image(io.BytesIO(content)) as image:
            kind, orientation = image.format, image.getexif().get(ExifTags.Base.Orientation, 1)
        if kind in ("JPEG", "MPO"):
            return strip_jpeg(content, orientation), "jpg"
        if kind == "WEBP" and _is_bare_webp(content):
            return content, "webp"
        return _encode_image(upright, "PNG"), "png"


def strip_jpeg(content: bytes, orientation: int = 1) -> bytes:
    """Remove EXIF, XMP, IPTC, comments, previews and data after the end from a JPEG.

    The pixels are not decoded, so they stay exactly the same. Segments are those of ITU-T T.81,
    annex B.

    Args:
        content: the file.
        orientation: value of the EXIF tag; unless it is 1, it is written to a new EXIF segment.
    """
    segments = [
        segment for marker, segment in _split_jpeg(content) if _affects_pixels(marker, segment)
    ]
    has_jfif = segments[0][1] == APP0
    if has_jfif:  # rewritten without its preview
        segments[0] = segments[0][:2] + b"\x00\x10" + segments[0][4:16] + b"\0\0"
    if orientation in range(2, 9):
        segments.insert(has_jfif, _make_exif(orientation))  # JFIF must come first
    return b"".join([SOI, *segments])


def _affects_pixels(marker: int, segment: bytes) -> bool:
    if APP0 <= marker <= APP15:
        # A segment begins with two bytes of marker and two of length.
        return marker in PIXEL_SEGMENTS and segment.startswith(PIXEL_SEGMENTS[marker], 4)
    return marker != COM


def _split_jpeg(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the bytes of each segment of a JPEG after SOI; a scan with its data."""
    offset = 2
    while match := MARKER.search(content, offset):
        marker, start = content[match.end() - 1], match.end() - 2
        if marker == EOI:
            break
        stop = start + 2
        if marker != TEM:  # the only other marker without a length
            stop += int.from_bytes(content[stop : stop + 2], "big")
        if marker == SOS:
            scan_end = MARKER.search(content, stop)
            stop = scan_end.start() if scan_end else len(content)
        yield marker, content[start:stop]
        offset = stop
    yield EOI, b"\xff\xd9"


def _is_bare_webp(content: bytes) -> bool:
    """Return whether a WebP file contains one image and nothing else."""
    # RIFF: 12 bytes of header; each chunk has a name, a length, and content padded to even length.
    offset = 12
    while content[offset : offset + 4] in WEBP_IMAGE_CHUNKS:
        size = int.from_bytes(content[offset + 4 : offset + 8], "little")
        offset += 8 + size + size % 2
    return offset == len(content)


def _make_exif(orientation: int) -> bytes:
    """Make an EXIF segment that contains only an orientation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    body = exif.tobytes()
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def _encode_image(image: Image.Image, kind: str, **options: int) -> bytes:
    file, profile = io.BytesIO(), image.info.get("icc_profile") or b""  # None for a damaged one
    image.info = {}  # otherwise Pillow would write the original comment
    # Bytes 16 to 19 of a profile name its colour space; only RGB fits the pixels.
    is_rgb = isinstance(profile, bytes) and profile[16:20] == b"RGB "
    image.save(file, kind, icc_profile=profile if is_rgb else None, **options)
    return file.getvalue()
