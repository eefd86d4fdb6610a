"""Pictures -> model input: any file or PIL image to upright RGB, then the `Preprocess` of a model.

Axes: C channels, H W pixels.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from swag_models.errors import ImageError
from swag_models.spec import Preprocess

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 89_478_485  # Pillow's own threshold for a suspicious file: a quarter of 1 GiB as RGB
EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where Pillow looks for it
TURNS = {  # by EXIF's orientation; Pillow's own function also writes the other tags anew, and fails on odd ones
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
    """A picture as an upright RGB image, the first frame if it is animated; ImageError says what is wrong with it.

    `name` is what to call it in messages, if `source` is not a path.
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
    except (
        OSError,
        SyntaxError,
        ValueError,
    ) as error:  # Pillow's decoders raise all three on broken files
        raise ImageError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright 8-bit RGB image: EXIF rotation applied, 16 bits scaled to 8, transparency laid on white.

    ImageError for 32-bit floating-point images, whose range is not defined.
    """
    if (turn := TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))) is not None:
        info = image.info
        image = image.transpose(turn)
        image.info = {
            name: info[name] for name in info if name not in EXIF
        }  # which would have it turned again
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            "a 32-bit floating-point image has no defined range; convert it to 8 or 16 bits"
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


class Transform:
    """What a `Preprocess` says, done: PIL image, or uint8 tensor (..., 3, H, W) -> float32 tensor (..., 3, h, w).

    On PIL images it equals torchvision's own preset for these weights. It can be sent to worker processes.

    vectorised: PIL images too are resized by torch instead of Pillow: with the vector instructions of `acceleration.has_fast_resize`
        in a fifth of the time, for a byte in some hundreds that is one off.
    """

    def __init__(self, preprocess: Preprocess, *, vectorised: bool = False) -> None:
        self.preprocess = preprocess
        self.vectorised = vectorised

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return self.normalise(self.fit(image))

    def fit(self, image: Image.Image | Tensor) -> Tensor:
        """The first half, for workers: resize and crop; bytes (..., 3, h, w) unless floats were given."""
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
            what = tuple(image.shape) if isinstance(image, torch.Tensor) else type(image).__name__
            raise ImageError(
                f"cannot preprocess {what}; give a PIL image or a tensor (..., 3, H, W)"
            )
        resized = list(cover_size(height, width, *self.preprocess.size))
        if resized[0] * resized[1] > MAX_PIXELS:
            raise ImageError(
                f"a picture of {width}x{height} would be {resized[1]}x{resized[0]} when resized; crop it first"
            )
        image = F.resize(
            image, resized, InterpolationMode(self.preprocess.interpolation), antialias=True
        )
        image = F.center_crop(image, list(self.preprocess.size))
        return image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)

    def normalise(self, tensor: Tensor) -> Tensor:
        """The second half, for whole batches on any device: bytes (..., 3, h, w) -> float32 of the weights' mean and std."""
        import torch
        from torchvision.transforms.functional import convert_image_dtype
        from torchvision.transforms.v2 import functional as F

        if tensor.dtype != torch.uint8:
            tensor = convert_image_dtype(tensor, torch.float32)  # v2's own differs in the last bit
            return F.normalize(tensor, list(self.preprocess.mean), list(self.preprocess.std))
        # The same, in one piece of memory: for a batch, making more of it takes longer than the arithmetic.
        tensor = tensor.to(torch.float32).div_(255)
        return F.normalize(
            tensor, list(self.preprocess.mean), list(self.preprocess.std), inplace=True
        )

    def __repr__(self) -> str:
        return f"Transform({self.preprocess}{', vectorised=True' if self.vectorised else ''})"


def cover_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """The size an image (height, width) is resized to, in proportion, to just cover (to_height, to_width)."""
    if to_height * width >= to_width * height:
        return to_height, max(to_width, int(to_height * width / height))
    return max(to_height, int(to_width * height / width)), to_width
