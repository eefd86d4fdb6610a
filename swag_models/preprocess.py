"""Convert image files to model input: decode to upright RGB, then resize, crop and normalise.

Axes: C channels, H W pixels.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from swag_models.errors import ImageError
from swag_models.formatting import describe
from swag_models.spec import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 89_478_485  # Pillow's own threshold for a suspicious file: a quarter of 1 GiB as RGB
# Entries of `Image.info` in which Pillow looks for an orientation
ORIENTATION_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
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
        ImageError: not an image, damaged, too large, or without a defined conversion to RGB.
    """
    name = name or str(source)
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source)
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return to_rgb(image)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name} has too many pixels; at most {MAX_PIXELS} are read, resize it first"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise ImageError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright 8-bit RGB.

    The EXIF orientation is applied, 16 bits are scaled to 8, and transparent parts become white.

    Raises:
        ImageError: a 32-bit floating-point image, whose range of values is not defined.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if (transposition := TRANSPOSITIONS.get(orientation)) is not None:
        info = image.info
        image = image.transpose(transposition)
        # Drop the orientation, so that later code does not rotate the image a second time.
        image.info = {key: value for key, value in info.items() if key not in ORIENTATION_KEYS}
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            "a 32-bit floating-point image has no defined range; convert it to 8 or 16 bits"
        )
    if image.mode == "La":  # premultiplied alpha, which Pillow converts to LA only
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        # Blend with white: Pillow's own conversion would show the colours of transparent pixels.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


class Transform:
    """Preprocessing of a model: PIL image or uint8 tensor (..., 3, H, W) -> float32 (..., 3, h, w).

    On PIL images the result equals that of torchvision's preset for the same weights, bit for bit.
    Instances can be pickled, for worker processes.

    Args:
        preprocess: sizes, interpolation, mean and std.
        vectorised: resize PIL images with torch instead of Pillow. With the vector instructions
            that `acceleration.has_fast_resize` tests for, this takes a fifth of the time; about
            one byte in several hundred differs by 1.
    """

    def __init__(self, preprocess: Preprocess, *, vectorised: bool = False) -> None:
        self.preprocess = preprocess
        self.vectorised = vectorised

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return self.normalise(self.fit(image))

    def fit(self, image: Image.Image | Tensor) -> Tensor:
        """Resize and crop: the first half of the work, for worker threads.

        Args:
            image: a PIL image or a tensor (..., 3, H, W).

        Returns:
            (..., 3, h, w), uint8 for a PIL image, else of the dtype of `image`.

        Raises:
            ImageError: not an image, or too large when resized.
        """
        import torch
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        if isinstance(image, Image.Image):
            image = to_rgb(image)
            width, height = image.size
            image = F.pil_to_tensor(image) if self.vectorised and width * height else image
        elif isinstance(image, torch.Tensor) and image.ndim >= 3 and image.shape[-3] == 3:
            height, width = image.shape[-2:]
        else:
            kind = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise ImageError(
                f"cannot preprocess {kind}; give a PIL image or a tensor (..., 3, H, W)"
            )
        if not width * height:
            raise ImageError(f"an image of {width}x{height} has no pixels")
        # Without this limit, the long side of a very narrow image could become arbitrarily long.
        resized = list(cover_size(height, width, *self.preprocess.size))
        if resized[0] * resized[1] > MAX_PIXELS:
            raise ImageError(
                f"an image of {width}x{height} would be {resized[1]}x{resized[0]} when resized; "
                "crop it first"
            )
        image = F.resize(
            image, resized, InterpolationMode(self.preprocess.interpolation), antialias=True
        )
        image = F.center_crop(image, list(self.preprocess.size))
        return image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)

    def normalise(self, tensor: Tensor) -> Tensor:
        """Scale to [0, 1] and normalise: the second half, for whole batches on any device.

        Args:
            tensor: (..., 3, h, w), uint8 or floating point.

        Returns:
            float32 tensor of the same shape.
        """
        import torch
        from torchvision.transforms.functional import convert_image_dtype
        from torchvision.transforms.v2 import functional as F

        if not isinstance(tensor, torch.Tensor) or tensor.ndim < 3 or tensor.shape[-3] != 3:
            kind = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else describe(tensor)
            raise ImageError(f"cannot normalise {kind}; give a tensor (..., 3, h, w)")
        if tensor.dtype != torch.uint8:
            tensor = convert_image_dtype(tensor, torch.float32)  # v2's differs in the last bit
            return F.normalize(tensor, list(self.preprocess.mean), list(self.preprocess.std))
        # In place, because allocating memory for a batch takes longer than the arithmetic.
        tensor = tensor.to(torch.float32).div_(255)
        return F.normalize(
            tensor, list(self.preprocess.mean), list(self.preprocess.std), inplace=True
        )

    def __repr__(self) -> str:
        return f"Transform({self.preprocess}{', vectorised=True' if self.vectorised else ''})"


def cover_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """Return the smallest size with an image's aspect ratio that covers a target size.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        to_height: height of the target in pixels.
        to_width: width of the target in pixels.

    Returns:
        (height, width). The longer side is truncated to an integer, as torchvision does.
    """
    if to_height * width >= to_width * height:
        return to_height, max(to_width, int(to_height * width / height))
    return max(to_height, int(to_width * height / width)), to_width
