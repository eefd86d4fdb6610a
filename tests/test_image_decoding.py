"""Scaled decoding: JPEGs of all kinds nearly equal the full decoding; all else equals it."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import hostile_images
import numpy as np
import pytest
import torch
from hostile_images import encode, make_jpeg_segment
from PIL import ExifTags, Image

from swag_models.errors import ImageError
from swag_models.image_decoding import OVERSAMPLING, decode_view, read_image, to_rgb
from swag_models.preprocess import Transform
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.data.transforms import Augmentation
from swag_models.spec import Preprocess

PREPROCESS = Preprocess(image_size=32)
EXACT, SCALED = Transform(PREPROCESS), Transform(PREPROCESS, scaled=True)


@cache
def make_photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Make an image whose corners and edges differ, with details of all sizes."""
    random = np.random.default_rng(width * height)
    pixels = np.zeros((height, width, 3))
    for cells, strength in ((4, 110), (16, 50), (64, 25)):
        values = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer) * (strength / 255)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image.convert(mode)


def encode_photo(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    return encode("JPEG", make_photo(width, height, mode), **{"quality": 90, **options})


def read(content: bytes, transform: Transform) -> torch.Tensor:
    return transform(read_image(io.BytesIO(content), "NAME", transform.decode))


def decoded_size(content: bytes, transform: Transform = SCALED) -> tuple[int, int]:
    return read_image(io.BytesIO(content), "NAME", transform.decode).image.size


def deviate(content: bytes, transform: Transform = SCALED) -> float:
    """The mean deviation from the full decoding, in normalised units."""
    exact = Transform(transform.preprocess, vectorised=transform.vectorised)
    return float((read(content, transform) - read(content, exact)).abs().mean())


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize(
    ("width", "height", "fraction"),
    [(400, 300, 2), (397, 291, 2), (801, 359, 4), (1103, 707, 8), (699, 2003, 8)],
)
def test_the_deviation_is_small_for_every_size(
    width: int, height: int, fraction: int, vectorised: bool
) -> None:
    content = encode_photo(width, height)
    assert decoded_size(content) == (-(-width // fraction), -(-height // fraction))
    transform = Transform(PREPROCESS, vectorised=vectorised, scaled=True)
    assert read(content, transform).shape == (3, 32, 32)
    assert 0 < deviate(content, transform) < 0.01


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_modes_and_kinds_of_jpeg(mode: str, options: dict[str, object]) -> None:
    content = encode_photo(403, 301, mode, **options)
    assert decoded_size(content) == (202, 151)
    assert 0 < deviate(content) < 0.01


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_without_a_shift(orientation: int, vectorised: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode_photo(1103, 705, exif=exif)  # pads 1 column and 7 rows
    transform = Transform(PREPROCESS, vectorised=vectorised, scaled=True)
    size = (138, 89) if orientation < 5 else (89, 138)
    assert decoded_size(content, transform) == size
    assert 0 < deviate(content, transform) < 0.01


def test_the_shorter_side_and_the_crop_decide() -> None:
    side = int(32 * OVERSAMPLING)
    assert decoded_size(encode_photo(2000, 2 * side)) == (2000, 2 * side)
    assert decoded_size(encode_photo(2000, 2 * side + 2)) == (1000, side + 1)
    cropped = Transform(replace(PREPROCESS, crop_pct=0.5), scaled=True)  # resized to twice the side
    assert decoded_size(encode_photo(400, 300), cropped) == (400, 300)
    wide = Transform(Preprocess(image_size=(32, 64)), scaled=True)
    assert decoded_size(encode_photo(300, 300), wide) == (300, 300)
    assert decoded_size(encode_photo(400, 200), wide) == (200, 100)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "MPO", "small JPEG"])
def test_other_files_are_equal_bit_for_bit(kind: str) -> None:
    if kind == "MPO":  # a JPEG for Pillow
        image = make_photo(400, 300)
        content = encode("MPO", image, save_all=True, append_images=[image])
        assert decoded_size(content) == (200, 150)
        return
    image = make_photo(170, 130) if "small" in kind else make_photo(400, 300)
    content = encode(kind.split()[-1], image)
    assert torch.equal(read(content, SCALED), read(content, EXACT))


def test_images_of_the_caller_keep_their_size() -> None:
    with Image.open(io.BytesIO(encode_photo(400, 300))) as image:
        SCALED(image)
        Augmentation(Augment(), 32, scaled=True)(image)
        read_image(image, "NAME", SCALED.decode)
        assert image.size == (400, 300)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.3, 0.5)])
def test_the_augmentation_sees_the_same_crop(scale: tuple[float, float]) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode_photo(1103, 705, exif=exif)
    augment = Augment(scale=scale)
    results = []
    for scaled in (False, True):
        torch.manual_seed(1)
        augmentation = Augmentation(augment, 32, scaled=scaled)
        results.append(augmentation(read_image(io.BytesIO(content), "NAME", augmentation.decode)))
    torch.manual_seed(1)
    plain = Augmentation(augment, 32)(read_image(io.BytesIO(content)))
    assert torch.equal(plain, results[0])
    difference = (results[1].float() - results[0].float()).abs()
    assert 0 < difference.mean() < 1


@pytest.mark.parametrize("kind", hostile_images.BOMBS)
def test_limits_are_those_of_the_full_decoding(kind: str) -> None:
    content = hostile_images.BOMBS[kind]()
    messages = []
    for transform in (EXACT, SCALED):
        with pytest.raises(ImageError) as error:
            read_image(io.BytesIO(content), "NAME", transform.decode)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_files_are_rejected(progressive: bool) -> None:
    content = encode_photo(400, 300, progressive=progressive)
    for stop in (100, len(content) // 2, len(content) - 300):
        with pytest.raises(ImageError, match=r"^NAME .*"):
            read_image(io.BytesIO(content[:stop]), "NAME", SCALED.decode)


def test_the_number_of_pixels_is_limited_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # it is restored
    monkeypatch.setenv("SWAG_MODELS_MAX_PIXELS", "100000")
    with pytest.raises(ImageError, match="400x300 pixels; at most 100000"):
        read_image(io.BytesIO(encode_photo(400, 300)), "NAME", SCALED.decode)


def make_lossless_jpeg(side: int, *before: bytes) -> bytes:
    """A lossless JPEG, for which a decoder cannot be scaled; every pixel equals its predictor."""
    frame = make_jpeg_segment(0xC3, bytes([8, *2 * divmod(side, 256), 1, 1, 0x11, 0]))
    table = make_jpeg_segment(0xC4, bytes([0, 1, *15 * [0], 0]))
    scan = make_jpeg_segment(0xDA, bytes([1, 1, 0, 1, 0, 0]))
    data = bytes(side * side // 8 + 8)
    return b"\xff\xd8" + b"".join(before) + frame + table + scan + data + b"\xff\xd9"


def test_lossless_files_do_not_overwrite_memory(tmp_path: Path) -> None:
    """Pillow 12 writes past the end of its memory if these are scaled: in a process of its own."""
    before = [b"", b"\xff", make_jpeg_segment(0xE0, b"\xff\xc0"), make_jpeg_segment(0xFE, b"x")]
    paths = [tmp_path / f"{number}.jpg" for number in range(len(before))]
    for path, segment in zip(paths, before):
        path.write_bytes(make_lossless_jpeg(800, segment))
    program = (
        "import sys\n"
        "from swag_models.image_decoding import read_image\n"
        "from swag_models.preprocess import Transform\n"
        "from swag_models.spec import Preprocess\n"
        "transform = Transform(Preprocess(image_size=32), scaled=True)\n"
        "for path in sys.argv[1:]: print(read_image(path, None, transform.decode).image.size)\n"
    )
    command = [sys.executable, "-c", program, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "(800, 800)\n" * len(before)


def test_the_part_is_given_in_pixels_of_the_decoded_image() -> None:
    with Image.open(io.BytesIO(encode_photo(400, 300))) as image:
        view = decode_view(image, lambda width, height: ((100, 40, 300, 240), 0.1))
    assert (view.size, view.image.size, view.box) == ((400, 300), (200, 150), (50, 20, 150, 120))
    exact = (
        make_photo(400, 300).crop((100, 40, 300, 240)).resize((20, 20), Image.Resampling.BICUBIC)
    )
    resized = view.resize((20, 20), Image.Resampling.BICUBIC)
    difference = np.subtract(exact, resized, dtype=np.int16)
    assert np.abs(difference).mean() < 2
    assert to_rgb(view.image) is view.image
