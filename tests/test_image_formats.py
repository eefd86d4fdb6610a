"""Image files: formats, limits of the work that they cause, one error for everything else."""

from __future__ import annotations

import io
import os
import random
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import hostile_images
import numpy as np
import pytest
from hostile_images import encode
from PIL import ExifTags, Image, ImageOps

from swag_models.errors import ConfigError, ImageError
from swag_models.image_decoding import read_image
from swag_models.image_formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    get_max_pixels,
    image_errors,
    open_image,
)
from swag_models.inference.image_sources import find_images

Image.init()
WRITABLE = {
    suffix: kind
    for kind, suffixes in FORMATS.items()
    for suffix in suffixes
    if kind in Image.SAVE and suffix != ".pfm"  # has floating-point values
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 9 moveto\n%%EOF\n"


def check_rejected(source: Path | bytes) -> str:
    """The message for an image that is not read."""
    with pytest.raises(ImageError) as error:
        read_image(io.BytesIO(source) if isinstance(source, bytes) else source, "NAME")
    message = str(error.value)
    assert message.startswith("NAME ")
    assert message.isprintable()
    assert len(message) < 500
    return message


@pytest.mark.parametrize("suffix", WRITABLE)
def test_every_suffix_is_found_in_a_folder_and_read(suffix: str, tmp_path: Path) -> None:
    image = Image.new("1" if suffix == ".xbm" else "RGB", (16, 16))
    (tmp_path / f"x{suffix.upper()}").write_bytes(encode(WRITABLE[suffix], image))
    (found,) = find_images(tmp_path)
    assert found.read().size == (16, 16)


def test_formats_are_those_of_pillow_without_programs() -> None:
    assert set(FORMATS) - {"AVIF"} <= set(Image.OPEN)  # older versions lack AVIF
    assert not {"EPS", "WMF"} & set(FORMATS)
    assert {".jfif", ".jpe", ".avif", ".jp2", ".mpo", ".tga", ".ico", ".webp"} <= IMAGE_SUFFIXES


@pytest.mark.parametrize("name", ["x.jpg", "x.eps", "x"])
def test_postscript_starts_no_program(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / name).write_bytes(EPS)
    assert "it is PostScript, which is not read" in check_rejected(tmp_path / name)
    with Image.open(tmp_path / name) as opened, pytest.raises(ImageError, match="EPS is not read"):
        read_image(opened)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    ],
)
def test_kinds_that_are_not_read_are_named(content: bytes, kind: str) -> None:
    assert f"it is {kind}, which is not read; convert it to JPEG or PNG" in check_rejected(content)


@pytest.mark.parametrize("kind", hostile_images.BOMBS)
def test_a_file_that_would_cause_much_work_is_rejected_at_once(kind: str) -> None:
    if "avif" in kind and "AVIF" not in Image.SAVE:
        pytest.skip("this version of Pillow reads no AVIF")
    content = hostile_images.BOMBS[kind]()
    start = time.process_time()
    check_rejected(content)
    assert time.process_time() - start < 2


def test_large_but_ordinary_metadata_is_read() -> None:
    segments = hostile_images.make_jpeg_segment(0xE2, b"x" * 65_000) * 80  # as in 5 MB of depth
    exif = hostile_images.make_jpeg_segment(
        0xE1, b"Exif\0\0" + hostile_images.make_exif(60, 60_000)
    )
    jpeg = encode("JPEG")
    assert read_image(io.BytesIO(jpeg[:2] + exif + segments + jpeg[2:])).size == (16, 12)
    gif = encode("GIF", comment=b"x" * 100_000)
    assert read_image(io.BytesIO(gif)).size == (16, 12)
    assert read_image(io.BytesIO(hostile_images.make_png(1, 65_535, bytes(2 * 65_535))))


def make_photo(kind: str) -> bytes:
    """Encode an image with the metadata that phones and tools write."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(range(250)) * 800
    if kind != "JPEG":
        return encode(kind, exif=exif)
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    segments = [
        hostile_images.make_jpeg_segment(0xE1, b"Exif\0\0" + content[start : start + 65_000])
        for start in range(0, len(content), 65_000)
    ]
    jpeg = encode("JPEG")
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_of_200_kb_is_read(kind: str) -> None:
    if kind not in Image.SAVE:
        pytest.skip("this version of Pillow reads no AVIF")
    content = make_photo(kind)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert expected.size == (12, 16)
    assert np.array_equal(read_image(io.BytesIO(content)), expected)


def test_scans_are_counted_up_to_the_end_of_the_image() -> None:
    photo = encode("JPEG", progressive=True)
    video = b"\xff\xda" * 10_000
    comment = hostile_images.make_jpeg_segment(0xFE, video)
    assert read_image(io.BytesIO(photo[:2] + comment + photo[2:] + video)).size == (16, 12)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_made_upright_once(orientation: int, options: dict[str, str]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode("TIFF", exif=exif, **options)
    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    for source in (io.BytesIO(content), Image.open(io.BytesIO(content)), expected):
        assert np.array_equal(read_image(source), expected)


def make_special(kind: str, path: Path) -> None:
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["named pipe", "socket", "device", "folder"])
def test_files_that_are_not_regular_are_rejected_without_reading(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is limited to 100 bytes
    make_special(kind, Path("x.jpg"))
    assert (
        check_rejected(Path("x.jpg")) == f"NAME cannot be read: it is a {kind}, not a regular file"
    )


ERRORS = [
    RuntimeError("x"),
    NotImplementedError("x"),
    IndexError(),
    AssertionError(),
    MemoryError(),
    RecursionError("x"),
    UserWarning("x\x1b[2J\nx"),
    subprocess.CalledProcessError(1, ["gs"]),
    OSError(5, "Input/output error"),
    KeyError("x" * 1000),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_decoder_raises_is_an_image_error(error: Exception) -> None:
    with pytest.raises(ImageError) as caught, image_errors("NAME"):
        raise error
    message = str(caught.value)
    assert message.startswith("NAME cannot be read: ")
    assert not message.endswith(": ")
    assert message.isprintable()
    assert len(message) < 500


def test_an_interrupt_is_not_an_image_error() -> None:
    with pytest.raises(KeyboardInterrupt), image_errors("NAME"):
        raise KeyboardInterrupt


class TestMaxPixels:
    content = encode("PNG", Image.new("L", (40, 30)))

    def test_pillows_limit_is_heeded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
        message = check_rejected(self.content)
        assert "40x30 pixels; at most 1199 in all are read: resize it first, or set SWAG" in message
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
        assert read_image(io.BytesIO(self.content)).size == (40, 30)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert read_image(io.BytesIO(self.content)).size == (40, 30)

    def test_a_photo_of_108_million_pixels_is_refused_or_read_as_the_variable_says(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        content = encode("PNG", Image.new("1", (12_000, 9_000)))
        message = check_rejected(content)
        assert "it is 12000x9000 pixels; at most 89478485 in all are read" in message
        assert message.endswith("set SWAG_MODELS_MAX_PIXELS=108000000")
        assert capfd.readouterr().err == ""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        monkeypatch.setenv("SWAG_MODELS_MAX_PIXELS", "108000000")
        with open_image(io.BytesIO(content)) as image:
            assert image.size == (12_000, 9_000)

    def test_the_variable_replaces_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        monkeypatch.setenv("SWAG_MODELS_MAX_PIXELS", "1200")
        assert read_image(io.BytesIO(self.content)).size == (40, 30)

    @pytest.mark.parametrize("value", ["0", "-1", "1e6", "x", "\u00b2", "9" * 30])
    def test_other_values_are_rejected(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SWAG_MODELS_MAX_PIXELS", value)
        with pytest.raises(ConfigError, match="invalid SWAG_MODELS_MAX_PIXELS"):
            get_max_pixels()
        with pytest.raises(ConfigError, match="invalid SWAG_MODELS_MAX_PIXELS"):
            read_image(io.BytesIO(self.content))


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw", "packbits", "group4"])
def test_libtiff_prints_nothing(compression: str, capfd: pytest.CaptureFixture[str]) -> None:
    order, file = random.Random(0), io.BytesIO()
    mode = "1" if compression == "group4" else "RGB"
    Image.effect_noise((64, 64), 90).convert(mode).save(file, "TIFF", compression=compression)
    num_rejected = 0
    for _ in range(30):
        content = bytearray(file.getvalue())
        for _ in range(5):
            content[order.randrange(8, len(content))] = order.randrange(256)
        try:
            read_image(io.BytesIO(content))
        except ImageError:
            num_rejected += 1
    assert num_rejected
    assert capfd.readouterr().err == ""


def test_an_open_file_is_read_from_its_start() -> None:
    file = io.BytesIO(encode("PNG"))
    file.seek(30)
    assert np.asarray(read_image(file)).shape == (12, 16, 3)
