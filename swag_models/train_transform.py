"""Preprocessing of training images: random crop, resize, random flip, normalise.

Axes: H W pixels of the image, h w of the model's input.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from swag_models.errors import ConfigError, check_minimum
from swag_models.formatting import describe
from swag_models.image_decoding import View
from swag_models.preprocess import Transform, open_input, to_tensor
from swag_models.spec import Preprocess

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class TrainTransform(Transform):
    """Preprocessing with the usual augmentation: image -> float32 (..., 3, h, w).

    A random part of the image is resized to the input size and flipped at random, as torchvision's
    RandomResizedCrop and RandomHorizontalFlip do. Interpolation and normalisation are the model's.
    All images of a batch (N, 3, H, W) get the same crop; call it for each image instead. Random
    numbers are torch's, which a DataLoader seeds in each worker. Instances can be pickled.

    Args:
        preprocess: size, interpolation, mean and std.
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest aspect ratio of the crop, width / height.
        hflip: probability of a horizontal flip.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
    ) -> None:
        super().__init__(preprocess)
        self.scale = _check_range("scale", scale, 1)
        self.ratio = _check_range("ratio", ratio, math.inf)
        check_minimum(0, hflip=hflip)
        if hflip > 1:
            raise ConfigError(f"invalid hflip {describe(hflip)}: allowed: 0 to 1")
        self.hflip = hflip

    def fit(self, image: Image.Image | View | Tensor) -> Tensor:
        """Crop, resize and flip: the first half of the work.

        Args:
            image: a PIL image or a tensor (..., 3, H, W).

        Returns:
            (..., 3, h, w): uint8 for a PIL image, float32 for uint16, else of the dtype of `image`.

        Raises:
            ImageError: not an image, or with values of another range.
        """
        import torch
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        pixels, _ = open_input(image.image if isinstance(image, View) else image)
        with torch.device("cpu"):  # random numbers, whatever the default device is
            crop = RandomResizedCrop.get_params(pixels, list(self.scale), list(self.ratio))
            flips = torch.rand(1).item() < self.hflip
        pixels = F.resized_crop(
            pixels,
            *crop,
            list(self.preprocess.size),
            InterpolationMode(self.preprocess.interpolation),
            antialias=True,
        )
        pixels = F.horizontal_flip(pixels) if flips else pixels
        return pixels if isinstance(pixels, torch.Tensor) else to_tensor(pixels)

    def __repr__(self) -> str:
        return (
            f"TrainTransform({self.preprocess}, scale={self.scale}, ratio={self.ratio}, "
            f"hflip={self.hflip})"
        )


def _check_range(name: str, values: object, maximum: float) -> tuple[float, float]:
    """Return a pair of positive numbers in ascending order; raise ConfigError otherwise."""
    if (
        isinstance(values, (tuple, list))
        and len(values) == 2
        and all(type(value) in (int, float) for value in values)
        and 0 < values[0] <= values[1] <= maximum
        and math.isfinite(values[1])
    ):
        return float(values[0]), float(values[1])
    end = "" if math.isinf(maximum) else f", at most {maximum:g}"
    raise ConfigError(
        f"invalid {name} {describe(values)}: allowed: two positive numbers in ascending order{end}"
    )
