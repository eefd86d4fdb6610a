"""Values outside the range of their type are rejected: they would be black or white."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_preprocess import array, check_rejected, make_image

from swag_models import image_decoding
from swag_models.errors import ImageError
from swag_models.image_decoding import read_image, to_rgb
from swag_models.preprocess import Transform
from swag_models.spec import Preprocess


class TestRanges:
    pixels = np.asarray(make_image(30, 20))

    def tensor(self, scale: float, dtype: torch.dtype) -> torch.Tensor:
        values = torch.from_numpy(self.pixels.copy()).permute(2, 0, 1)
        return (values.double() * scale).to(dtype)

    @pytest.mark.parametrize(
        ("scale", "dtype"),
        [
            (1, torch.uint8),
            (257, torch.uint16),
            (1 / 255, torch.float32),
            (1 / 255, torch.float64),
            (1 / 255, torch.float16),
            (1 / 255, torch.bfloat16),
            (1.1 / 255, torch.float32),  # as after resizing with a bicubic filter
        ],
    )
    def test_ranges_of_each_type_agree(self, scale: float, dtype: torch.dtype) -> None:
        transform = Transform(Preprocess(16))
        expected = transform(self.tensor(1, torch.uint8))
        got = transform(self.tensor(scale, dtype))
        assert (got - expected).abs().max() < (0.6 if scale == 1.1 / 255 else 0.05)

    @pytest.mark.parametrize(
        ("scale", "dtype", "message"),
        [
            (1, torch.float32, r"values from .* to .*; allowed: 0 to 1: divide by 255"),
            (1, torch.float16, "allowed: 0 to 1"),
            (2 / 255, torch.float32, "allowed: 0 to 1"),
            (-1 / 255, torch.float64, "allowed: 0 to 1"),
            (float("nan"), torch.float32, "allowed: 0 to 1"),
            (float("inf"), torch.float32, "allowed: 0 to 1"),
            (1, torch.uint16, "16-bit values are all below 256"),
            (1, torch.int16, "cannot preprocess a tensor"),
            (1, torch.int32, "cannot preprocess a tensor"),
            (1, torch.int64, "cannot preprocess a tensor"),
            (1, torch.bool, "cannot preprocess a tensor"),
            (1, torch.complex64, "cannot preprocess a tensor"),
            (1, torch.float8_e4m3fn, "cannot preprocess a tensor"),
        ],
    )
    def test_others_are_rejected(self, scale: float, dtype: torch.dtype, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            Transform(Preprocess(16))(self.tensor(scale, dtype))

    @pytest.mark.parametrize(
        ("values", "dtype", "allowed"),
        [
            ((-0.25, 1.25), torch.float32, True),
            ((-0.26, 1), torch.float32, False),
            ((0, 1.26), torch.float32, False),
            ((0, 0), torch.uint16, True),
            ((0, 1), torch.uint16, False),
            ((0, 255), torch.uint16, False),
            ((0, 256), torch.uint16, True),
        ],
    )
    def test_limits(
        self, values: tuple[float, float], dtype: torch.dtype, allowed: bool, tmp_path: Path
    ) -> None:
        tensor = torch.tensor(values).expand(3, 2, 2).to(dtype)
        read: list[tuple[Callable[[Any], Any], Any]] = [(Transform(Preprocess(16)), tensor)]
        if dtype == torch.uint16:
            Image.fromarray(tensor[0].numpy()).save(tmp_path / "x.png")
            read.append((read_image, tmp_path / "x.png"))
        for function, value in read:
            if allowed:
                assert function(value) is not None
            else:
                with pytest.raises(ImageError, match=r"0 to 1: divide|below 256"):
                    function(value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
    def test_normalise_rejects_other_ranges(self, dtype: torch.dtype) -> None:
        with pytest.raises(ImageError, match=r"allowed: 0 to 1|cannot preprocess a tensor"):
            Transform(Preprocess(16)).normalise(self.tensor(1, dtype))

    @pytest.mark.parametrize("shape", [(5, 5), (4, 5, 5), (3,), (2, 1, 5, 5)])
    def test_normalise_rejects_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError, match=r"cannot normalise .*; give a tensor \(\.\.\., 3"):
            Transform(Preprocess(16)).normalise(torch.zeros(shape))

    @pytest.mark.parametrize("kind", ["sparse", "meta"])
    def test_tensors_without_values_are_rejected(self, kind: str) -> None:
        tensor = self.tensor(1 / 255, torch.float32)
        tensor = tensor.to_sparse() if kind == "sparse" else tensor.to("meta")
        with pytest.raises(ImageError, match="cannot preprocess a tensor"):
            Transform(Preprocess(16))(tensor)

    @pytest.mark.parametrize("shape", [(3, 0, 5), (3, 5, 0), (2, 3, 0, 0)])
    def test_no_pixels(self, shape: tuple[int, ...]) -> None:
        for dtype in (torch.uint8, torch.float32):
            with pytest.raises(ImageError, match="has no pixels"):
                Transform(Preprocess(16))(torch.zeros(shape, dtype=dtype))
        with pytest.raises(ImageError, match="has no pixels"):
            Transform(Preprocess(16))(Image.new("RGB", (0, 5)))
        assert Transform(Preprocess(16))(torch.zeros(0, 3, 5, 5)).shape == (0, 3, 16, 16)

    @pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32])
    def test_images_in_memory(self, dtype: type) -> None:
        image = Image.fromarray(self.pixels[..., 0].astype(dtype))
        for read in (read_image, to_rgb, Transform(Preprocess(16))):
            with pytest.raises(ImageError, match=r"defined range|black"):
                read(image)

    @pytest.mark.parametrize("name", ["x.png", "x.pgm", "x.tiff", "x.jp2"])
    def test_16_bit_files(self, name: str, tmp_path: Path) -> None:
        deep = self.pixels[..., 0].astype(np.uint16) * 257
        if name == "x.pgm":  # by hand: older versions of Pillow cannot write it
            header = f"P5 {deep.shape[1]} {deep.shape[0]} 65535\n".encode()
            (tmp_path / name).write_bytes(header + deep.astype(">u2").tobytes())
        else:
            Image.fromarray(deep).save(tmp_path / name)
        assert np.array_equal(array(read_image(tmp_path / name))[..., 0], self.pixels[..., 0])

    def test_32_bit_files(self, tmp_path: Path) -> None:
        Image.fromarray(self.pixels[..., 0].astype(np.int32)).save(tmp_path / "x.tiff")
        assert "32-bit integer image has no defined range" in check_rejected(tmp_path / "x.tiff")

    def test_a_lazily_opened_damaged_image(self, tmp_path: Path) -> None:
        make_image(64, 64).save(tmp_path / "x.png")
        (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
        with Image.open(tmp_path / "x.png") as image:
            for _ in range(2):
                with pytest.raises(ImageError, match="the image cannot be read"):
                    Transform(Preprocess(16))(image)


def encode_grey(values: np.ndarray[Any, Any], kind: str) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, kind)
    return file


def encode_12_bits(values: np.ndarray[Any, Any]) -> io.BytesIO:
    """A TIFF with BitsPerSample 12: two values in three bytes."""
    height, width = values.shape
    bits = "".join(f"{value:012b}" for value in values.ravel())
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    entries = [(tag, 4, 1, value) for tag, value in [*tags.items(), (279, len(data))]]
    offset = 8 + len(data) + len(data) % 2
    head = struct.pack("<2sHI", b"II", 42, offset) + data + b"\0" * (len(data) % 2)
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return io.BytesIO(head + struct.pack("<H", len(entries)) + table + bytes(4))


class TestDepths:
    values = np.linspace(0, 4095, 64 * 32).astype(int).reshape(32, 64)

    def test_a_tiff_of_12_bits_has_the_range_of_12_bits(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        image = read_image(encode_12_bits(self.values))
        assert (array(image)[..., 0] == self.values * 255 // 4095).all()
        assert caplog.messages == []

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "tensor"])
    @pytest.mark.parametrize("high", [1023, 4095, 16383])
    def test_fewer_bits_in_16_are_said_once(
        self, kind: str, high: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        image_decoding._log_dark.cache_clear()
        values = self.values * high // 4095
        for _ in range(2):
            if kind == "tensor":
                x = torch.from_numpy(np.stack([values] * 3)).to(torch.uint16)
                Transform(Preprocess(16))(x)
            else:
                image = read_image(encode_grey(values, kind))
                assert (array(image)[..., 0] == values // 257).all()
        (message,) = caplog.messages
        assert f"below 2^{high.bit_length()} are read as they are" in message

    def test_fewer_bits_in_a_colour_image_are_said(self, caplog: pytest.LogCaptureFixture) -> None:
        image_decoding._log_dark.cache_clear()
        read_image(encode_rgb(self.values))
        (message,) = caplog.messages
        assert "below 2^12" in message

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bits_are_not_mentioned(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        read_image(encode_grey(self.values * 16, kind))
        read_image(encode_rgb(self.values * 16))
        assert caplog.messages == []


def encode_rgb(values: np.ndarray[Any, Any]) -> io.BytesIO:
    """A PNG with 16 bits in each of three channels."""
    pixels = np.stack([values] * 3, axis=-1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    return io.BytesIO(content)
