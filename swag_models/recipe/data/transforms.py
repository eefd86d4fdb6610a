"""What training does to pictures: a random part, resized, and every second one mirrored.

Axes: S side in pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from swag_models.preprocess import to_rgb
from swag_models.recipe.config import Augment

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation:
    """What an `Augment` says, done: PIL image -> bytes (3, S, S), the same as of torchvision's RandomResizedCrop and flip.

    It can be sent to worker processes, and draws from torch's default generator. `Transform.normalise` is for whole batches.
    """

    def __init__(self, augment: Augment, image_size: int) -> None:
        self.augment = augment
        self.image_size = image_size

    def __call__(self, image: Image.Image) -> Tensor:
        import torch
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.v2 import functional as F

        image = to_rgb(image)
        top, left, height, width = RandomResizedCrop.get_params(
            image, list(self.augment.scale), list(self.augment.ratio)
        )
        # Cropped first: Pillow's resize with a box lets in the pixels around it.
        image = image.crop((left, top, left + width, top + height))
        image = image.resize(
            (self.image_size, self.image_size), Image.Resampling[self.augment.interpolation.upper()]
        )
        if torch.rand(1).item() < self.augment.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return F.pil_to_tensor(image)

    def __repr__(self) -> str:
        return f"Augmentation({self.augment}, {self.image_size})"
