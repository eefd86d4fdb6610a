"""Image files that make a decoder fail, run a program, or work for minutes. Most have a few KB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

ROWS = 89_478_485  # of one pixel: within Pillow's limit of pixels


def encode(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """Encode a small image, or another one."""
    if image is None:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_chunk(kind: bytes, content: bytes) -> bytes:
    """Make a chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def make_png(width: int, height: int, data: bytes = b"", *chunks: bytes) -> bytes:
    """Make a PNG that claims a size, in 8-bit grey."""
    header = make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = make_chunk(b"IDAT", zlib.compress(data, 9)) + make_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def make_exif(num_tags: int, size: int) -> bytes:
    """Make EXIF whose tags all refer to the same bytes."""
    entries = [struct.pack("<HHII", 0x1000 + tag, 7, size, 8) for tag in range(num_tags)]
    table = struct.pack("<H", num_tags) + b"".join(entries) + bytes(4)
    start = 8 + size
    return b"II*\0" + struct.pack("<I", start) + bytes(size) + table


def make_jpeg_segment(marker: int, content: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def make_ico(content: bytes) -> bytes:
    """Make an icon whose table claims 16x16 pixels, of the content of another file."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22)
    return b"\0\0\1\0\1\0" + entry + content


def make_gif_comment() -> bytes:
    gif = encode("GIF", Image.new("P", (4, 4)))
    start = gif.index(b"\x2c")
    return gif[:start] + b"!\xfe" + (b"\xff" + b"x" * 255) * 20_000 + b"\0" + gif[start:]


def make_progressive_scans() -> bytes:
    jpeg = encode("JPEG", Image.new("RGB", (4000, 4000)), progressive=True)
    last_scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last_scan * 2000 + b"\xff\xd9"


def make_many_exif_segments() -> bytes:
    jpeg, exif = encode("JPEG"), make_exif(40_000, 500_000)
    parts = [exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    return jpeg[:2] + b"".join(make_jpeg_segment(0xE1, b"Exif\0\0" + p) for p in parts) + jpeg[2:]


def make_tiff_tags() -> bytes:
    tags = {256: (3, 4), 257: (3, 4), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8)}
    tags |= {278: (3, 4), 279: (4, 16)}
    entries = [struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in tags.items()]
    size = 2_000_000
    entries += [struct.pack("<HHII", 0x1000 + tag, 7, size, 8) for tag in range(20_000)]
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + table


def make_avif_exif() -> bytes:
    exif = make_exif(40_000, 1_000_000)
    harmless = b"II*\0\x08\0\0\0" + bytes(len(exif) - 8)
    return encode("AVIF", exif=harmless).replace(harmless, exif)  # Pillow would read the tags


def make_swapped_header(exif: bytes) -> bytes:
    """Give EXIF a header that is not valid TIFF, but that Pillow accepts."""
    return exif[:2] + exif[3:1:-1] + exif[4:]


def make_late_exif() -> bytes:
    png, chunk = make_png(1, 1, bytes(2)), make_chunk(b"eXIf", make_exif(40_000, 500_000))
    return png[:-12] + chunk + png[-12:]


def make_text_exif() -> bytes:
    """Make a PNG with EXIF as text, as ImageMagick writes it."""
    text = f"\nexif\n{500_000:8}\n{make_exif(40_000, 500_000).hex()}"
    content = b"Raw profile type exif\0\0" + zlib.compress(text.encode())
    return make_png(1, 1, bytes(2), make_chunk(b"zTXt", content))


def make_webp_exif() -> bytes:
    exif = make_exif(10_000, 1_000_000)
    harmless = b"II*\0\x08\0\0\0" + bytes(len(exif) - 8)
    return encode("WEBP", exif=harmless).replace(harmless, exif)


def make_tiff_exif(tag: int) -> bytes:
    """Make a TIFF whose first table of tags is harmless, but refers to a second table."""
    exif = make_exif(3000, 900_000)
    tags = {256: (3, 3), 257: (3, 3), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 8)}
    tags |= {278: (3, 3), 279: (4, 9), tag: (4, 8 + 900_000)}
    entries = [struct.pack("<HHII", key, kind, 1, value) for key, (kind, value) in tags.items()]
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return exif[:4] + struct.pack("<I", len(exif)) + exif[8:] + table


def make_bmp_rows() -> bytes:
    """Make a compressed BMP whose rows end after their first pixel."""
    rows = b"\1\1\0\0" * 9000 + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(1024) + rows


# Each is refused at once. The numbers are what Pillow does with them.
BOMBS: dict[str, Callable[[], bytes]] = {
    "wide png": lambda: make_png(ROWS, 1),  # MemoryError, or 360 MB for 57 bytes
    "high png": lambda: make_png(1, 10**6, bytes(2 * 10**6)),  # 36 s and 2.5 GB with ROWS
    "high pgm": lambda: b"P5 1 %d 255\n" % ROWS + bytes(1000),
    "high bmp": lambda: encode("BMP")[:18] + struct.pack("<ii", 1, ROWS) + encode("BMP")[26:],
    "png in ico": lambda: make_ico(make_png(1, ROWS)),
    "bmp in ico": lambda: make_ico(struct.pack("<IiiHHIIiiII", 40, 1, ROWS, 1, 8, *[0] * 6)),
    "comments of a gif": make_gif_comment,  # 35 s
    "segments of a jpeg": lambda: (
        encode("JPEG")[:2] + make_jpeg_segment(0xFE, b"x") * 100_000 + encode("JPEG")[2:]
    ),
    "scans of a jpeg": make_progressive_scans,
    "exif of a jpeg": make_many_exif_segments,  # 20 GB
    "exif of a png": lambda: make_png(1, 1, bytes(2), make_chunk(b"eXIf", make_exif(9999, 10**6))),
    "exif of an avif": make_avif_exif,  # 40 GB
    "exif of a webp": make_webp_exif,  # 10 GB
    "exif after the pixels of a png": make_late_exif,  # 20 GB
    "exif of a png as text": make_text_exif,  # 20 GB
    "exif of a png with a swapped header": lambda: make_png(
        1, 1, bytes(2), make_chunk(b"eXIf", make_swapped_header(make_exif(9999, 10**6)))
    ),
    "tags of a tiff": make_tiff_tags,  # 40 GB
    "exif of a tiff": lambda: make_tiff_exif(0x8769),  # 3 GB
    "gps of a tiff": lambda: make_tiff_exif(0x8825),
    "rows of a bmp": make_bmp_rows,  # 10 s
    "plain pgm": lambda: b"P2 4000 4000 255\n" + b"1 " * 16_000_000,  # 6 s
    "pgm of 7 bits": lambda: b"P5 4000 4000 100\n" + bytes(16_000_000),  # 14 s
    "large qoi": lambda: b"qoif" + struct.pack(">IIBB", 9000, 9000, 3, 0) + b"\xfd" * 2_000_000,
}
