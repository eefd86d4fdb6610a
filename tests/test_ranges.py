"""Values outside the range of their type are rejected: they would be black or white."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_preprocess import array, check_rejected, make_image

from swag_models.errors import ImageError
from swag_models.preprocess import Transform, read_image, to_rgb
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
