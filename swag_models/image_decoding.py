"""Decode image files to upright 8-bit RGB: at full size, or JPEGs at a fraction of it.

Axes: H W pixels.
"""

import logging
import math
import os
from collections.abc import Callable
from functools import cache
from typing import IO, NamedTuple, TypeVar, overload

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from swag_models.errors import ImageError
from swag_models.image_formats import (
    PROGRAM_FORMATS,
    SEGMENT,
    image_errors,
    open_image,
    read_orientation,
)

logger = logging.getLogger("swag_models")
TIFF_DEPTH = 258  # tag BitsPerSample
# Entries of `Image.info` in which Pillow looks for an orientation
ORIENTATION_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
BLACK_16_BITS = "its 16-bit values are all below 256, which would be black; convert it to 8 bits"
# By EXIF orientation. Pillow's `exif_transpose` also rewrites the other tags, and fails on
# malformed ones.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Fractions of its size at which libjpeg decodes a JPEG at less cost: 1/8, 1/4, 1/2
FRACTIONS = (8, 4, 2)
# Pixels that are decoded at least for each pixel of the result, along each side. The mean deviation
# of normalised inputs is about 0.010 with 2, 0.005 with 2.7 and 0.003 with 4.
OVERSAMPLING = 2.7
# Markers of ITU-T T.81, table B.1, for frames that are made of cosine transforms. The others are
# lossless: libjpeg cannot scale these, and Pillow would write past the end of its memory.
SCALABLE_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
OTHER_SEGMENTS = {0xC4, 0xC8, 0xCC}  # among the markers of frames: tables, and a reserved one
# By EXIF orientation, where padding is that the decoder adds at the right and at the bottom
PADDED_LEFT, PADDED_TOP = {2, 3, 6, 7}, {3, 4, 7, 8}
SIDEWAYS = {5, 6, 7, 8}

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
T = TypeVar("T")


class View(NamedTuple):
    """A part of an image, whose pixels may have been decoded at a fraction of their number.

    Attributes:
        image: upright RGB.
        box: the part, in pixels of `image`.
        size: (width, height) of the file in pixels, upright.
    """

    image: Image.Image
    box: Box
    size: tuple[int, int]

    @property
    def is_scaled(self) -> bool:
        """Whether `image` has fewer pixels than the file."""
        return self.image.size != self.size

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        """Return the part, resized with Pillow to (width, height)."""
        left, top, right, bottom = self.box
        # Crop first: Pillow's resize with a box reads the pixels around the box too.
        x, y = math.floor(left), math.floor(top)
        part = self.image.crop((x, y, math.ceil(right), math.ceil(bottom)))
        return part.resize(size, resample, (left - x, top - y, right - x, bottom - y))


@overload
def read_image(
    source: str | os.PathLike[str] | IO[bytes] | Image.Image, name: str | None = None
) -> Image.Image: ...


@overload
def read_image(
    source: str | os.PathLike[str] | IO[bytes] | Image.Image,
    name: str | None,
    decode: Callable[[Image.Image], T] | None,
) -> T | Image.Image: ...


def read_image(
    source: str | os.PathLike[str] | IO[bytes] | Image.Image,
    name: str | None = None,
    decode: Callable[[Image.Image], object] | None = None,
) -> object:
    """Read an image as upright 8-bit RGB. For an animation, read the first frame.

    Args:
        source: a path, an open file or a PIL image.
        name: what messages call it, if `source` is not a path.
        decode: opened image -> what to return, instead of `to_rgb`; as for `decode_view`. A PIL
            image is decoded before, because `decode` may change it.

    Raises:
        ImageError: not an image, damaged, too large, without pixels, or without a defined
            conversion to RGB.
    """
    decode = decode or to_rgb
    name = name or (str(source) if isinstance(source, (str, os.PathLike)) else "the image")
    with image_errors(name):
        if isinstance(source, Image.Image):
            return decode(to_rgb(source))
        with open_image(source) as image:
            return decode(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright 8-bit RGB.

    The EXIF orientation is applied, 16 bits are scaled to 8, and transparent parts become white.

    Raises:
        ImageError: an image without pixels, or whose range of values is not defined.
    """
    if 0 in image.size:
        raise ImageError("it has no pixels")
    if image.format in PROGRAM_FORMATS:
        raise ImageError(f"{image.format} is not read; convert it to JPEG or PNG")
    has_16_bits = any(";16" in str(tile[-1]) for tile in getattr(image, "tile", None) or ())
    # Pillow reads 12 bits as the low bits of 16. Other tags do not state a range (TIFF 6.0).
    depths = getattr(image, "tag_v2", {}).get(TIFF_DEPTH, ())
    image.load()  # a PNG may state its orientation after the pixels, and a TIFF is made upright
    kind = image.format  # not kept by `transpose`
    if (transposition := TRANSPOSITIONS.get(read_orientation(image))) is not None:
        info = image.info
        image = image.transpose(transposition)
        # Drop the orientation, so that later code does not rotate the image a second time.
        image.info = {key: value for key, value in info.items() if key not in ORIENTATION_KEYS}
    # Pillow reads 16-bit grey as "I;16", but from these formats also as "I", which has 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return _scale_to_8_bits(image, 12 if tuple(depths) == (12,) else 16)
    if has_16_bits:  # of which Pillow keeps the high 8
        warn_of_dark(256 * max(np.ravel(image.getextrema())[1:6:2]))
    if image.mode in ("I", "F"):
        numbers = "32-bit floating-point" if image.mode == "F" else "32-bit integer"
        raise ImageError(f"a {numbers} image has no defined range; convert it to 8 or 16 bits")
    if image.mode == "La":  # premultiplied alpha, which Pillow converts to LA only
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        # Blend with white: Pillow's own conversion would show the colours of transparent pixels.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_to_8_bits(image: Image.Image, depth: int) -> Image.Image:
    """Convert 12- or 16-bit grey to RGB; Pillow's own conversion would clip it."""
    values = np.asarray(image)
    if depth == 12:
        scaled = values.clip(0, 4095).astype(np.uint32) * 255 // 4095
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if 0 < values.max() < 256:
        raise ImageError(BLACK_16_BITS)
    warn_of_dark(int(values.max()))
    return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")


def warn_of_dark(high: int) -> None:
    """Warn, once in a process, of 16-bit values that seem to use fewer bits.

    Args:
        high: the highest value of an image.
    """
    if 0 < high < 1 << 14:
        _log_dark(len(f"{high:b}"))


@cache
def _log_dark(num_bits: int) -> None:
    logger.warning(
        "16-bit images with values below 2^%d are read as they are, as very dark: multiply their "
        "values if they are from a camera or scanner with fewer bits",
        num_bits,
    )


def decode_view(
    image: Image.Image, choose: Callable[[int, int], tuple[Box, float]], *, scaled: bool = True
) -> View:
    """Decode a part of an image that is going to be made smaller, with no more work than needed.

    A JPEG file of which no pixel was decoded yet is decoded at 1/2, 1/4 or 1/8 of its size, where
    that leaves at least `OVERSAMPLING` times as many pixels along each side as the result has.

    Args:
        image: an opened image. Its size changes if it is decoded at a fraction.
        choose: called once with width and height of the upright image in pixels; returns the part,
            and the factor by which the sides of its pixels are going to be multiplied.
        scaled: whether fractions are allowed.

    Raises:
        ImageError: as for `to_rgb`.
    """
    scaled = scaled and _is_scalable(image)
    if not scaled:
        image = to_rgb(image)
    orientation = read_orientation(image) if scaled else 1
    width, height = image.size[::-1] if orientation in SIDEWAYS else image.size
    box, factor = choose(width, height)
    fits = (fraction for fraction in FRACTIONS if OVERSAMPLING * fraction * factor <= 1)
    fraction = next(fits, 1) if scaled else 1
    if fraction == 1:
        return View(to_rgb(image), box, (width, height))
    image.draft(None, (image.width // fraction, image.height // fraction))
    image = to_rgb(image)
    # The last column and row may consist of fewer pixels than the others. Without this, the image
    # would be distorted by up to a pixel.
    x = image.width - width / fraction if orientation in PADDED_LEFT else 0.0
    y = image.height - height / fraction if orientation in PADDED_TOP else 0.0
    left, top, right, bottom = (side / fraction for side in box)
    return View(image, (x + left, y + top, x + right, y + bottom), (width, height))


def _is_scalable(image: Image.Image) -> bool:
    """Whether an opened image is a JPEG that can still be decoded at a fraction of its size."""
    if not (isinstance(image, JpegImageFile) and min(image.size) > 0 and len(image.tile) == 1):
        return False
    assert image.fp  # it has a tile, so it is open
    position = image.fp.tell()
    image.fp.seek(0)
    content, start = image.fp.read(), 2
    image.fp.seek(position)
    while match := SEGMENT.search(content, start):
        start, marker = match.end(), match[0][1]
        if 0xC0 <= marker <= 0xCF and marker not in OTHER_SEGMENTS:
            return marker in SCALABLE_FRAMES
        start += int.from_bytes(content[start : start + 2], "big")
    return False
