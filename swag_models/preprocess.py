"""Convert image files to model input: decode to upright RGB, then resize, crop and normalise.

Axes: C channels, H W pixels.
"""

from __future__ import annotations

import logging
import math
import os
from functools import cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.formatting import describe
from swag_models.image_formats import PROGRAM_FORMATS, image_errors, open_image, read_orientation
from swag_models.spec import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger("swag_models")
TIFF_DEPTH = 258  # tag BitsPerSample
MAX_PIXELS = 89_478_485  # of a resized image: a quarter of 1 GiB as RGB
# Entries of `Image.info` in which Pillow looks for an orientation
ORIENTATION_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
BLACK_16_BITS = "its 16-bit values are all below 256, which would be black; convert it to 8 bits"
TENSOR_TYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")
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


def read_image(
    source: str | os.PathLike[str] | IO[bytes] | Image.Image, name: str | None = None
) -> Image.Image:
    """Read an image as upright 8-bit RGB. For an animation, read the first frame.

    Args:
        source: a path, an open file or a PIL image.
        name: what messages call it, if `source` is not a path.

    Raises:
        ImageError: not an image, damaged, too large, without pixels, or without a defined
            conversion to RGB.
    """
    name = name or (str(source) if isinstance(source, (str, os.PathLike)) else "the image")
    with image_errors(name):
        if isinstance(source, Image.Image):
            return to_rgb(source)
        with open_image(source) as image:
            return to_rgb(image)


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
        _warn_of_dark(256 * max(np.ravel(image.getextrema())[1:6:2]))
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
    _warn_of_dark(int(values.max()))
    return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")


def _warn_of_dark(high: int) -> None:
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


@cache
def _copy_constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values of the channels on a device, (3, 1, 1)."""
    import torch

    return torch.tensor(values, device=device).view(-1, 1, 1)


class Transform:
    """Preprocessing of a model: PIL image or tensor (..., 3, H, W) -> float32 (..., 3, h, w).

    The values of a tensor are uint8 from 0 to 255, uint16 from 0 to 65535, or floating point from
    0 to 1.

    On PIL images the result equals that of torchvision's preset for the same weights, bit for bit.
    Instances can be pickled, for worker processes.

    Args:
        preprocess: sizes, interpolation, mean and std.
        vectorised: resize PIL images with torch instead of Pillow. With the vector instructions
            that `acceleration.has_fast_resize` tests for, this takes a fifth of the time; about
            one byte in several hundred differs by 1.
        crop_pct: side of the crop as a share of that of the resized image, as timm's.
    """

    def __init__(
        self, preprocess: Preprocess, *, vectorised: bool = False, crop_pct: float = 1.0
    ) -> None:
        self.preprocess = preprocess
        self.vectorised = vectorised
        if not (isinstance(crop_pct, (int, float)) and 0 < crop_pct <= 1):
            raise ConfigError(f"crop_pct is {describe(crop_pct)}; allowed: above 0, at most 1")
        self.crop_pct = crop_pct

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return self.normalise(self.fit(image))

    def fit(self, image: Image.Image | Tensor) -> Tensor:
        """Resize and crop: the first half of the work, for worker threads.

        Args:
            image: a PIL image or a tensor (..., 3, H, W).

        Returns:
            (..., 3, h, w): uint8 for a PIL image, float32 for uint16, else of the dtype of `image`.

        Raises:
            ImageError: not an image, too large when resized, or with values of another range.
        """
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        image, (height, width) = open_input(image, vectorised=self.vectorised)
        cover = [math.floor(side / self.crop_pct) for side in self.preprocess.size]
        # Without this limit, the long side of a very narrow image could become arbitrarily long.
        resized = list(cover_size(height, width, *cover))
        if resized[0] * resized[1] > MAX_PIXELS:
            raise ImageError(
                f"an image of {width}x{height} would be {resized[1]}x{resized[0]} when resized; "
                "crop it first"
            )
        image = F.resize(
            image, resized, InterpolationMode(self.preprocess.interpolation), antialias=True
        )
        image = F.center_crop(image, list(self.preprocess.size))
        return image if isinstance(image, torch.Tensor) else to_tensor(image)

    def normalise(self, tensor: Tensor) -> Tensor:
        """Scale to [0, 1] and normalise: the second half, for whole batches on any device.

        Args:
            tensor: (..., 3, h, w), uint8 or floating point.

        Returns:
            float32 tensor of the same shape.

        Raises:
            ImageError: not such a tensor, or with values of another range.
        """
        import torch
        from torchvision.transforms.functional import convert_image_dtype
        from torchvision.transforms.v2 import functional as F

        if not isinstance(tensor, torch.Tensor) or tensor.ndim < 3 or tensor.shape[-3] != 3:
            kind = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else describe(tensor)
            raise ImageError(f"cannot normalise {kind}; give a tensor (..., 3, h, w)")
        if tensor.dtype != torch.uint8:
            check_range(tensor, margin=1)  # resizing may have enlarged the range
            tensor = convert_image_dtype(tensor, torch.float32)  # v2's differs in the last bit
            return F.normalize(tensor, list(self.preprocess.mean), list(self.preprocess.std))
        # In place, because allocating memory for a batch takes longer than the arithmetic.
        tensor = tensor.to(torch.float32).div_(255)
        if tensor.device.type == "cuda":  # F.normalize would wait for the GPU, to copy mean and std
            constants = (self.preprocess.mean, self.preprocess.std)
            mean, std = (_copy_constants(values, tensor.device) for values in constants)
            return tensor.sub_(mean).div_(std)
        return F.normalize(
            tensor, list(self.preprocess.mean), list(self.preprocess.std), inplace=True
        )

    def __repr__(self) -> str:
        crop = f", crop_pct={self.crop_pct}" if self.crop_pct != 1 else ""
        return f"Transform({self.preprocess}{', vectorised=True' if self.vectorised else ''}{crop})"


def open_input(
    image: Image.Image | Tensor, *, vectorised: bool = False
) -> tuple[Any, tuple[int, int]]:
    """Check an image that is about to be resized.

    Args:
        image: a PIL image or a tensor (..., 3, H, W).
        vectorised: as for `Transform`.

    Returns:
        It as upright RGB or as a tensor, and its (height, width) in pixels.

    Raises:
        ImageError: not an image, or with values of another range.
    """
    import torch

    if isinstance(image, Image.Image):
        with image_errors("the image"):  # it may not be decoded yet
            image = to_rgb(image)
        width, height = image.size
        return to_tensor(image) if vectorised else image, (height, width)
    if not (isinstance(image, torch.Tensor) and image.ndim >= 3 and image.shape[-3] == 3):
        kind = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
        raise ImageError(f"cannot preprocess {kind}; give a PIL image or a tensor (..., 3, H, W)")
    check_range(image)
    size = (image.shape[-2], image.shape[-1])
    # torchvision's resizing would overflow for uint16
    return image.float() / 65535 if image.dtype == torch.uint16 else image, size


def check_range(image: Tensor, margin: float = 0.25) -> None:
    """Raise ImageError if a tensor has no pixels, or values outside the range of its type.

    Args:
        image: (..., 3, H, W).
        margin: how far floating-point values may be outside of 0 to 1, because resizing with a
            bicubic filter overshoots.
    """
    import torch

    shape = tuple(image.shape)
    if 0 in shape[-2:]:
        raise ImageError(f"a tensor {shape} has no pixels")
    is_dense = image.layout is torch.strided and not (image.is_meta or image.is_nested)
    if not is_dense or str(image.dtype).removeprefix("torch.") not in TENSOR_TYPES:
        raise ImageError(
            f"cannot preprocess a tensor {shape} of {image.dtype}, {image.layout}; give uint8 from "
            "0 to 255 or floating point from 0 to 1"
        )
    if image.dtype == torch.uint8 or not image.numel():
        return
    is_float = image.is_floating_point()
    # Few operations are defined for uint16.
    low, high = (image if is_float else image.int()).detach().aminmax()
    if is_float and not (-margin <= low and high <= 1 + margin):  # also for NaN
        raise ImageError(
            f"a floating-point image has values from {low:.4g} to {high:.4g}; allowed: 0 to 1: "
            "divide by 255, or give uint8"
        )
    if not is_float:
        if 0 < high < 256:
            raise ImageError(BLACK_16_BITS)
        _warn_of_dark(int(high))


def cover_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """Return the smallest size with an image's aspect ratio that covers a target size.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        to_height: height of the target in pixels.
        to_width: width of the target in pixels.

    Returns:
        (height, width). For a square target the longer side is truncated to an integer, as
        torchvision does; for a rectangle it is rounded, as timm does.
    """
    square = to_height == to_width
    if to_height * width >= to_width * height:
        longer = int(to_height * width / height) if square else round(width / (height / to_height))
        return to_height, max(to_width, longer)
    longer = int(to_width * height / width) if square else round(height / (width / to_width))
    return max(to_height, longer), to_width


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an image, uint8 (3, H, W) on the CPU whatever the default device is."""
    import torch
    from torchvision.transforms.v2 import functional as F

    with torch.device("cpu"):
        return F.pil_to_tensor(image)
