"""Convert images to model input: resize, crop and normalise.

Axes: C channels, H W pixels.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from swag_models.errors import ImageError
from swag_models.formatting import describe
from swag_models.image_decoding import (
    BLACK_16_BITS,
    Box,
    View,
    decode_view,
    to_rgb,
    warn_of_dark,
)
from swag_models.image_formats import image_errors
from swag_models.spec import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_PIXELS = 89_478_485  # of a resized image: a quarter of 1 GiB as RGB
TENSOR_TYPES = ("uint8", "uint16", "float16", "bfloat16", "float32", "float64")


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
        scaled: let `decode` decode a JPEG at 1/2, 1/4 or 1/8 of its size, where that is still at
            least 2.7 times the resized image along each side.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        vectorised: bool = False,
        scaled: bool = False,
    ) -> None:
        self.preprocess = preprocess
        self.vectorised = vectorised
        self.scaled = scaled

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return self.normalise(self.fit(image))

    def decode(self, image: Image.Image) -> View:
        """Decode an image file for `fit`; pass this to `read_image`.

        Args:
            image: opened, and if possible not decoded.
        """

        def choose(width: int, height: int) -> tuple[Box, float]:
            rows, columns = resized_size(self.preprocess, height, width)
            return (0, 0, width, height), max(rows / height, columns / width)

        return decode_view(image, choose, scaled=self.scaled)

    def fit(self, image: Image.Image | View | Tensor) -> Tensor:
        """Resize and crop: the first half of the work, for worker threads.

        Args:
            image: a PIL image, what `decode` returned, or a tensor (..., 3, H, W).

        Returns:
            (..., 3, h, w): uint8 for a PIL image, float32 for uint16, else of the dtype of `image`.

        Raises:
            ImageError: not an image, too large when resized, or with values of another range.
        """
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        view = image if isinstance(image, View) else None
        pixels, (height, width) = open_input(
            image.image if isinstance(image, View) else image, vectorised=self.vectorised
        )
        if view:
            width, height = view.size
        # Without this limit, the long side of a very narrow image could become arbitrarily long.
        resized = list(resized_size(self.preprocess, height, width))
        if resized[0] * resized[1] > MAX_PIXELS:
            raise ImageError(
                f"an image of {width}x{height} would be {resized[1]}x{resized[0]} when resized; "
                "crop it first"
            )
        interpolation = self.preprocess.interpolation
        if view and view.is_scaled:
            pixels = _resize_view(view, pixels, (resized[0], resized[1]), interpolation)
        else:
            pixels = F.resize(pixels, resized, InterpolationMode(interpolation), antialias=True)
        pixels = F.center_crop(pixels, list(self.preprocess.size))
        return pixels if isinstance(pixels, torch.Tensor) else to_tensor(pixels)

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
        vectorised = ", vectorised=True" if self.vectorised else ""
        scaled = ", scaled=True" if self.scaled else ""
        return f"Transform({self.preprocess}{vectorised}{scaled})"


def _resize_view(
    view: View, image: Image.Image | Tensor, size: tuple[int, int], interpolation: str
) -> Image.Image | Tensor:
    """Resize an image that was decoded at a fraction of its size.

    Args:
        view: the image.
        image: its pixels, as a PIL image or as a tensor (3, H, W).
        size: (height, width) of the result.
        interpolation: "bicubic" or "bilinear".
    """
    import torch
    from torch.nn import functional

    height, width = size
    if not isinstance(image, torch.Tensor):
        return view.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top, right, bottom = view.box
    # The box ends at two sides of the image: at the others, torch can leave out a part of a pixel.
    flips = [dim for dim, offset in ((-1, left), (-2, top)) if offset]
    # Sides of the result are rounded down.
    scales = [side * (1 + 1e-9) for side in (height / (bottom - top), width / (right - left))]
    image = functional.interpolate(
        image.flip(flips)[None], scale_factor=scales, mode=interpolation, antialias=True
    )[0]
    return image[..., :height, :width].flip(flips)


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
        warn_of_dark(int(high))


def resized_size(preprocess: Preprocess, height: int, width: int) -> tuple[int, int]:
    """Return the size (height, width) to which preprocessing resizes an image, before the crop.

    Args:
        preprocess: sizes and crop.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    if preprocess.crop_mode == "squash":
        return preprocess.resized
    return cover_size(height, width, *preprocess.resized)


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
