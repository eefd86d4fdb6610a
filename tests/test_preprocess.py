"""Preprocessing equals that of training; damaged images are rejected by name."""

from __future__ import annotations

import itertools
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.models import (
    RegNet_Y_16GF_Weights,
    ViT_B_16_Weights,
    ViT_H_14_Weights,
    ViT_L_16_Weights,
)
from torchvision.transforms.v2 import functional as F

from swag_models import load_preprocess
from swag_models.api import SPECS
from swag_models.errors import ImageError
from swag_models.image_decoding import read_image, to_rgb
from swag_models.preprocess import MAX_PIXELS, Transform, cover_size
from swag_models.spec import Preprocess

PRESETS = {
    "vit_b16_in1k_linear": ViT_B_16_Weights.IMAGENET1K_SWAG_LINEAR_V1,
    "vit_b16_in1k": ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,
    "vit_l16_in1k": ViT_L_16_Weights.IMAGENET1K_SWAG_E2E_V1,
    "vit_h14_in1k": ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1,
    "regnety_16gf_in1k": RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_E2E_V1,
}
SIZES = [
    (224, 224),
    (1, 1),
    (7, 5),
    (223, 225),
    (640, 481),
    (333, 1000),
    (1500, 41),
    (40, 1999),
    (384, 512),
    (519, 518),
]


def make_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Make an image of smooth colours with noise, the same in every call."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    noise = np.random.default_rng(0).uniform(-20, 20, (height, width, 4))
    channels = (
        np.stack([255 * x, 255 * y, 128 + 120 * np.sin(9 * x * y), 255 * (1 - x)], axis=-1) + noise
    )
    rgba = Image.fromarray(channels.clip(0, 255).astype(np.uint8))
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


def array(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


class TestTransform:
    @pytest.mark.parametrize("name", PRESETS)
    def test_equals_torchvisions_preset(self, name: str) -> None:
        preset, ours = PRESETS[name].transforms(), load_preprocess(name)
        assert ours.preprocess.size == tuple(preset.crop_size) * 2
        for width, height in SIZES:
            image = make_image(width, height)
            assert torch.equal(ours(image), preset(image)), (width, height)

    @pytest.mark.parametrize("floats", [False, True])
    def test_a_batch_is_normalised_like_its_images_and_not_changed(self, floats: bool) -> None:
        transform = Transform(Preprocess(32))
        picked = torch.randint(
            0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        picked = picked / 255 if floats else picked
        layouts = [
            picked,
            picked.contiguous(memory_format=torch.channels_last),
            picked[:1].expand(4, -1, -1, -1),
        ]
        for batch in layouts:
            before = batch.clone()
            normalised = transform.normalise(batch)
            expected = torch.stack([transform.normalise(image) for image in before])
            assert torch.equal(normalised, expected)
            assert torch.equal(batch, before)

    def test_grey_images_equal_torchvisions_on_rgb(self) -> None:
        image = make_image(300, 200, "L")
        expected = PRESETS["vit_b16_in1k"].transforms()(image.convert("RGB"))
        assert torch.equal(load_preprocess("vit_b16_in1k")(image), expected)

    @pytest.mark.parametrize("size", [(640, 480), (100, 300), (224, 224)])
    def test_tensors_and_images_give_nearly_equal_results(self, size: tuple[int, int]) -> None:
        image, transform = make_image(*size), Transform(Preprocess(224))
        tensor = F.pil_to_tensor(image)
        from_tensor = transform(tensor)
        assert (
            from_tensor - transform(image)
        ).abs().max() < 0.04  # two steps of 255 after normalisation
        assert torch.equal(transform(torch.stack([tensor, tensor]))[1], from_tensor)

    @pytest.mark.parametrize("size", [(640, 480), (100, 300), (1600, 1200), (224, 224)])
    def test_vectorised_resizing_is_torchs_and_nearly_equals_pillows(
        self, size: tuple[int, int]
    ) -> None:
        image, preprocess = make_image(*size), Preprocess(224)
        quick = Transform(preprocess, vectorised=True)
        vectorised, exact = quick.fit(image), Transform(preprocess).fit(image)
        assert torch.equal(vectorised, quick.fit(F.pil_to_tensor(image)))
        difference = (vectorised.int() - exact.int()).abs()
        assert difference.max() <= 2
        assert (difference > 0).float().mean() <= 0.02
        # A resumed file of embeddings detects the other method by its representation.
        assert repr(quick) != repr(Transform(preprocess))

    @pytest.mark.parametrize("bilinear", [True, False])
    def test_applies_the_interpolation_mean_and_std(self, bilinear: bool) -> None:
        preprocess = Preprocess(
            32, "bilinear" if bilinear else "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        )
        image = make_image(50, 40)
        kind = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        expected = F.pil_to_tensor(image.resize((40, 32), kind).crop((4, 0, 36, 32))).float() / 255
        torch.testing.assert_close(Transform(preprocess)(image), expected)

    @pytest.mark.parametrize("target", [(128, 256), (256, 128), (224, 225)])
    @pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (1000, 31)])
    def test_oblong_target_covers_and_crops_the_centre(
        self, size: tuple[int, int], target: tuple[int, int]
    ) -> None:
        (width, height), (to_height, to_width) = size, target
        output = Transform(Preprocess(target))(make_image(*size))
        assert output.shape == (3, *target)
        resized_height, resized_width = cover_size(height, width, *target)
        assert (resized_height, resized_width) in (
            (to_height, resized_width),
            (resized_height, to_width),
        )
        assert resized_height >= to_height
        assert resized_width >= to_width
        assert abs(resized_width * height - resized_height * width) <= max(width, height)
        centre = Transform(Preprocess((resized_height, resized_width)))(make_image(*size))
        top, left = round((resized_height - to_height) / 2), round((resized_width - to_width) / 2)
        assert torch.equal(output, centre[:, top : top + to_height, left : left + to_width])

    @pytest.mark.parametrize(
        ("size", "target"), [((3, 2), (333, 500)), ((7, 3), (49, 21)), ((1999, 37), (512, 512))]
    )
    def test_resized_image_always_covers(
        self, size: tuple[int, int], target: tuple[int, int]
    ) -> None:
        for height, width in itertools.permutations(size):
            resized = cover_size(height, width, *target)
            assert resized[0] >= target[0]
            assert resized[1] >= target[1]
            assert target[0] == resized[0] or target[1] == resized[1]

    def test_can_be_pickled(self) -> None:
        transform, image = load_preprocess("vit_b16", image_size=(96, 64)), make_image(99, 70)
        assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
        assert repr(transform) == f"Transform({transform.preprocess})"

    def test_image_size_replaces_the_specs(self) -> None:
        assert load_preprocess("vit_b16_in1k").preprocess == SPECS["vit_b16_in1k"].preprocess
        assert load_preprocess("vit_b16_in1k", image_size=[64, 96])(make_image(9, 9)).shape == (
            3,
            64,
            96,
        )  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("value", "description"),
        [
            ("photo.jpg", "str"),
            (np.zeros((3, 8, 8)), "ndarray"),
            (torch.zeros(8, 8), r"\(8, 8\)"),
            (torch.zeros(1, 8, 8), r"\(1, 8, 8\)"),
            (torch.zeros(8, 8, 3), r"\(8, 8, 3\)"),
        ],
    )
    def test_anything_else_is_rejected(self, value: Any, description: str) -> None:
        with pytest.raises(
            ImageError,
            match=rf"cannot preprocess {description}; give a PIL image "
            r"or a tensor \(\.\.\., 3, H, W\)",
        ):
            Transform(Preprocess(32))(value)


class TestColours:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation_is_applied(self, orientation: int, tmp_path: Path) -> None:
        undo = [
            None,
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_90,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_270,
        ][orientation - 1]
        upright = make_image(30, 20)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright if undo is None else upright.transpose(undo)
        stored.save(tmp_path / "turned.png", exif=exif)
        assert np.array_equal(array(read_image(tmp_path / "turned.png")), array(upright))
        with Image.open(tmp_path / "turned.png") as image:
            transform = Transform(Preprocess(32))
            assert torch.equal(transform(image), transform(upright))

    @pytest.mark.parametrize("mode", ["RGB", "P", "L"])
    def test_an_image_is_rotated_once_whatever_else_its_exif_contains(
        self, mode: str, tmp_path: Path
    ) -> None:
        orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
        unit = struct.pack(">HHI4s", 0x0128, 2, 2, b"a")  # text where a number is required
        entries = orientation + unit
        exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
        upright = make_image(30, 20).quantize(16) if mode == "P" else make_image(30, 20, mode)
        more = {"transparency": 3} if mode == "P" else {}
        upright.save(tmp_path / "upright.png", **more)
        upright.transpose(Image.Transpose.ROTATE_90).save(
            tmp_path / "turned.png", exif=exif, **more
        )
        with Image.open(tmp_path / "turned.png") as image, pytest.raises(struct.error):
            ImageOps.exif_transpose(image)
        rotated = read_image(tmp_path / "turned.png")
        assert np.array_equal(array(rotated), array(read_image(tmp_path / "upright.png")))
        assert np.array_equal(array(to_rgb(rotated)), array(rotated))

    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path: Path) -> None:
        exact = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
        Image.fromarray(exact).save(tmp_path / "deep.png")
        read = array(read_image(tmp_path / "deep.png"))
        assert np.array_equal(read, np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))
        every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        Image.fromarray(every).save(tmp_path / "all.tiff")
        read = array(read_image(tmp_path / "all.tiff"))[..., 0].ravel()
        assert abs(read - np.arange(65536) / 257).max() <= 1
        assert (np.diff(read) >= 0).all()

    @pytest.mark.parametrize("mode", ["I;16", "I;16B"])
    def test_16_bit_modes_agree(self, mode: str) -> None:
        values = np.array([[0, 257, 25700, 65535]])
        kind = {"I;16": "<u2", "I;16B": ">u2"}[mode]
        image = Image.frombytes(mode, (4, 1), values.astype(kind).tobytes())
        assert array(to_rgb(image))[0, :, 0].tolist() == [0, 1, 100, 255]

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
    def test_transparency_becomes_white(self, mode: str) -> None:
        levels, alphas = (200, 0, 100), (255, 0, 128)
        image = Image.merge(
            "LA", [Image.frombytes("L", (3, 1), bytes(band)) for band in (levels, alphas)]
        )
        if mode == "PA":
            image = Image.frombytes("PA", (3, 1), bytes([0, 255, 1, 0, 2, 128]))
            image.putpalette([level for level in levels for _ in range(3)])
        elif mode != "LA":
            image = image.convert("La" if mode == "La" else "RGBA").convert(mode)
        rgb = to_rgb(image)
        assert rgb.mode == "RGB"
        assert np.abs(array(rgb)[0] - [[200], [255], [177]]).max() <= 1

    @pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
    def test_transparent_colour_of_a_png_is_white(self, mode: str, tmp_path: Path) -> None:
        image = Image.new("RGB", (2, 1), "black").convert(mode)
        image.putpixel((1, 0), {"P": 1, "L": 80, "RGB": (80, 80, 80), "1": 1}[mode])
        if mode == "P":
            image.putpalette([10, 20, 30, 80, 80, 80])
        image.save(tmp_path / "clear.png", transparency={"RGB": (0, 0, 0)}.get(mode, 0))
        left, right = array(read_image(tmp_path / "clear.png"))[0].tolist()
        assert left == [255, 255, 255]
        assert right == ([255, 255, 255] if mode == "1" else [80, 80, 80])

    def test_palette_with_partial_transparency_becomes_white(self, tmp_path: Path) -> None:
        image = Image.new("P", (3, 1))
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        image.putdata([0, 1, 2])
        image.save(tmp_path / "palette.png", transparency=bytes([255, 0, 128]))
        read = array(read_image(tmp_path / "palette.png"))[0]
        assert np.abs(read - [[200, 0, 0], [255, 255, 255], [127, 127, 227]]).max() <= 1

    def test_one_bit_images_are_converted(self, tmp_path: Path) -> None:
        image = make_image(20, 10, "1")
        image.save(tmp_path / "fax.tiff")
        read = array(read_image(tmp_path / "fax.tiff"))
        assert np.array_equal(read[..., 0], 255 * array(image))
        assert read.shape == (10, 20, 3)

    def test_cmyk_jpeg_is_converted(self, tmp_path: Path) -> None:
        original = make_image(64, 48)
        original.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
        read = read_image(tmp_path / "print.jpg")
        assert read.mode == "RGB"
        assert np.abs(array(read) - array(original)).mean() < 8

    def test_first_frame_of_an_animation_is_read(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
        frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
        assert array(read_image(tmp_path / "moving.gif"))[4, 4].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "YCbCr", "LAB", "HSV", "CMYK"])
    def test_other_modes_are_converted_as_pillow_does(self, mode: str) -> None:
        image = (
            make_image(16, 12, "RGB")
            if mode != "LAB"
            else Image.new("LAB", (16, 12), (128, 140, 120))
        )
        image = image if mode == "LAB" else image.convert(mode)
        assert np.array_equal(array(to_rgb(image)), array(image.convert("RGB")))

    def test_the_argument_is_not_changed(self) -> None:
        image = make_image(16, 12, "RGBA")
        before = image.copy()
        to_rgb(image)
        Transform(Preprocess(8))(image)
        assert image == before


def check_rejected(path: Path) -> str:
    with pytest.raises(ImageError) as error:
        read_image(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


class TestBrokenFiles:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("empty.jpg", b""),
            ("text.jpg", b"hello\n"),
            ("page.png", b"<!DOCTYPE html>"),
            ("half.png", b"\x89PNG\r\n\x1a\n"),
        ],
    )
    def test_file_that_is_not_an_image(self, name: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        assert "is not an image" in check_rejected(tmp_path / name)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
    @pytest.mark.parametrize("share", [0.03, 0.3, 0.6])
    def test_truncated_file(self, suffix: str, share: float, tmp_path: Path) -> None:
        path = tmp_path / f"cut.{suffix}"
        make_image(200, 150).save(path)
        content = path.read_bytes()
        assert read_image(path).size == (200, 150)
        path.write_bytes(content[: int(share * len(content))])
        check_rejected(path)

    @pytest.mark.filterwarnings(
        "ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning"
    )
    @pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp"])
    def test_flipped_bytes_read_or_are_rejected(self, suffix: str, tmp_path: Path) -> None:
        chance, path = np.random.default_rng(0), tmp_path / f"flipped.{suffix}"
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        make_image(20, 15).save(path, exif=exif)
        content = path.read_bytes()
        outcomes = {True: 0, False: 0}
        for _ in range(300):
            flipped = bytearray(content)
            for position in chance.integers(min(len(content), 300), size=chance.integers(1, 4)):
                flipped[position] = chance.integers(256)
            path.write_bytes(flipped)
            try:
                outcomes[read_image(path).mode == "RGB"] += 1
            except ImageError:
                outcomes[False] += 1
        assert min(outcomes.values()) > 0

    def test_floating_point_tiff(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
        assert "floating-point" in check_rejected(tmp_path / "float.tiff")
        with pytest.raises(ImageError, match="floating-point"):
            Transform(Preprocess(8))(Image.new("F", (4, 4)))

    def test_folder_and_missing_file(self, tmp_path: Path) -> None:
        assert "it is a folder, not a regular file" in check_rejected(tmp_path)
        assert "No such file" in check_rejected(tmp_path / "missing.jpg")

    def test_the_largest_image_is_a_quarter_of_a_gibibyte(self) -> None:
        assert MAX_PIXELS == 2**30 // 4 // 3

    @pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 13_000, 60_000])
    def test_header_of_a_decompression_bomb(self, side: int, tmp_path: Path) -> None:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return (
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
            )

        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = (
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(bytes(1000))),
            chunk(b"IEND", b""),
        )
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        assert "pixels" in check_rejected(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_an_image_too_narrow_to_resize_is_rejected(size: tuple[int, int]) -> None:
    resized = "x".join(str(384 * side) for side in size)
    with pytest.raises(
        ImageError,
        match=f"an image of {size[0]}x{size[1]} would be {resized} when resized; crop it first",
    ):
        Transform(Preprocess(384))(Image.new("RGB", size))
