"""Stripping an image removes all metadata and changes no pixel."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from image_support import make_pixels
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from swag_models.errors import ImageError
from swag_models.image_decoding import read_image
from swag_models.recipe.data.strip_metadata import strip_metadata

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRET = b"Rue de Secret 7"
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><exif:GPSLatitude>'
    + SECRET
    + b"</exif:GPSLatitude></x:xmpmeta>"
)


def make_exif(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = SECRET.decode()
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {1: "N", 2: (48.0, 51.0, 29.5), 3: "E", 4: (2.0, 17.0, 40.2)}
    )
    return exif


def write(kind: str, pixels: Any = None, **options: Any) -> bytes:
    file = io.BytesIO()
    image = (
        pixels
        if isinstance(pixels, Image.Image)
        else Image.fromarray(make_pixels(3, 40, 56) if pixels is None else pixels)
    )
    image.save(file, kind, **options)
    return file.getvalue()


def insert(content: bytes, marker: int, body: bytes) -> bytes:
    """Insert another segment after the first one of a JPEG."""
    end = 4 + int.from_bytes(content[4:6], "big")
    return (
        content[:end]
        + bytes([0xFF, marker])
        + (len(body) + 2).to_bytes(2, "big")
        + body
        + content[end:]
    )


def decode(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(read_image(io.BytesIO(content), "x"))


JPEGS: dict[str, Callable[[], bytes]] = {
    "exif": lambda: write("JPEG", exif=make_exif()),
    "turned": lambda: write("JPEG", exif=make_exif(6)),
    "xmp": lambda: write("JPEG", xmp=XMP),
    "iptc": lambda: insert(
        write("JPEG"), 0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f" + SECRET
    ),
    "comment": lambda: write("JPEG", comment=SECRET),
    "segment of a camera": lambda: insert(write("JPEG"), 0xEA, b"AROT" + SECRET),
    "extended JFIF": lambda: insert(write("JPEG"), 0xE0, b"JFXX\0\x10" + SECRET),
    "image after the end": lambda: write("JPEG") + write("JPEG", comment=SECRET),
    "several images": lambda: write(
        "MPO",
        save_all=True,
        append_images=[Image.new("RGB", (40, 40))],
        exif=make_exif(),
        comment=SECRET,
    ),
    "all, progressive": lambda: write(
        "JPEG", progressive=True, exif=make_exif(3), xmp=XMP, comment=SECRET, icc_profile=PROFILE
    ),
    "all, with restarts": lambda: write(
        "JPEG", restart_marker_blocks=2, exif=make_exif(8), xmp=XMP, comment=SECRET
    ),
    "grey": lambda: write(
        "JPEG", make_pixels(1, 30, 50)[..., 0].copy(), exif=make_exif(5), comment=SECRET
    ),
    "CMYK": lambda: write(
        "JPEG",
        Image.fromarray(make_pixels(2, 30, 50)).convert("CMYK"),
        exif=make_exif(),
        comment=SECRET,
    ),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_loses_its_metadata_and_keeps_its_pixels(name: str) -> None:
    content = JPEGS[name]()
    assert SECRET in content
    stripped, suffix = strip_metadata(content, name)
    assert suffix == "jpg"
    assert SECRET not in stripped
    assert np.array_equal(decode(stripped), decode(content))
    with Image.open(io.BytesIO(content)) as before, Image.open(io.BytesIO(stripped)) as after:
        assert set(after.getexif()) <= {ExifTags.Base.Orientation}
        assert not after.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert not {"xmp", "comment", "photoshop", "mp"} & set(after.info)
        assert after.info.get("icc_profile") == before.info.get("icc_profile")
        assert after.mode == before.mode
        assert after.quantization == before.quantization, "the pixels were not compressed again"  # type: ignore[attr-defined]
    assert strip_metadata(stripped, name) == (stripped, suffix), "stripping again changes nothing"


BARE_FILES: dict[str, Callable[[], bytes]] = {
    "jpg": lambda: write("JPEG"),
    "progressive.jpg": lambda: write("JPEG", progressive=True, icc_profile=PROFILE),
    "webp": lambda: write("WEBP"),
    "odd.webp": lambda: write("WEBP", make_pixels(1, 3, 5), lossless=True),
    "transparent.webp": lambda: write(
        "WEBP", Image.fromarray(make_pixels(1)).convert("RGBA"), icc_profile=PROFILE
    ),
}


@pytest.mark.parametrize("name", BARE_FILES)
def test_a_file_without_metadata_keeps_every_byte(name: str) -> None:
    content = BARE_FILES[name]()
    assert strip_metadata(content, "x") == (content, name.rpartition(".")[2])


def test_a_preview_in_the_first_segment_is_removed() -> None:
    content = write("JPEG")
    preview = (
        content[:4]
        + (16 + 3).to_bytes(2, "big")
        + content[6:18]
        + b"\1\1"
        + b"\xaa\xbb\xcc"
        + content[20:]
    )
    assert np.array_equal(decode(preview), decode(content))
    assert strip_metadata(preview, "x") == (content, "jpg")


def make_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Location", SECRET.decode())
    return info


def make_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


OTHER_FORMATS: dict[str, Callable[[], bytes]] = {
    "PNG with text": lambda: write("PNG", pnginfo=make_text()),
    "PNG with text after its pixels": lambda: (
        write("PNG")[:-12] + make_chunk(b"tEXt", b"Place\0" + SECRET) + write("PNG")[-12:]
    ),
    "PNG with a private chunk": lambda: (
        write("PNG")[:33] + make_chunk(b"caBX", SECRET) + write("PNG")[33:]
    ),
    "PNG with exif": lambda: write("PNG", exif=make_exif(6)),
    "WebP with xmp": lambda: write("WEBP", xmp=XMP),
    "WebP with exif": lambda: write("WEBP", exif=make_exif(8)),
    "WebP with bytes after its end": lambda: write("WEBP") + SECRET,
    "animated WebP": lambda: (
        write("WEBP", save_all=True, append_images=[Image.new("RGB", (56, 40))]) + SECRET
    ),
    "GIF with a comment": lambda: write("GIF", comment=SECRET),
    "TIFF": lambda: write("TIFF", description=SECRET.decode()),
    "BMP": lambda: write("BMP") + SECRET,
    "PPM": lambda: write("PPM").replace(b"P6\n", b"P6\n# " + SECRET + b"\n"),
    "transparent PNG": lambda: write(
        "PNG", Image.fromarray(make_pixels(0)).convert("LA"), pnginfo=make_text()
    ),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_with_metadata_become_png(name: str) -> None:
    content = OTHER_FORMATS[name]()
    assert SECRET in content
    stripped, suffix = strip_metadata(content, name)
    assert suffix == "png"
    assert SECRET not in stripped
    assert not Image.open(io.BytesIO(stripped)).getexif()
    assert np.array_equal(decode(stripped), decode(content))


@pytest.mark.parametrize(("orientation", "size"), [(1, (56, 20)), (6, (20, 56))])
def test_a_large_image_is_turned_upright_and_resized(
    orientation: int, size: tuple[int, int]
) -> None:
    content = write(
        "JPEG", make_pixels(0, 40, 112), exif=make_exif(orientation), xmp=XMP, icc_profile=PROFILE
    )
    resized, suffix = strip_metadata(content, "x", 20)
    with Image.open(io.BytesIO(resized)) as image:
        assert (suffix, image.format, image.size) == ("jpg", "JPEG", size)
        assert not image.getexif()
        assert image.info["icc_profile"] == PROFILE
    assert SECRET not in resized
    same_size, _ = strip_metadata(content, "x", 40)
    assert np.array_equal(decode(same_size), decode(content)), "not enlarged, not compressed again"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_rejected(kind: str) -> None:
    content = write(kind)
    for length in (0, 10, len(content) // 2, len(content) * 9 // 10):
        with pytest.raises(ImageError, match=re.escape("photo 7 ")):
            strip_metadata(content[:length], "photo 7")
