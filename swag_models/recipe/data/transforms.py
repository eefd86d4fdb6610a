"""Augmentation of training images: random crop, resize, flip, changes of shape and colour.

Axes: S side in pixels.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from swag_models.preprocess import to_rgb
from swag_models.recipe.config import Augment

if TYPE_CHECKING:
    from torch import Tensor


# of SimCLR (arXiv 2002.05709, appendix A) and of SuperClass (arXiv 2411.03313), which has a
# strength of 0.32 and a grayscale probability of 0.2
JITTER_PROBABILITY = 0.8
AUTO = {"trivial": "TrivialAugmentWide", "rand": "RandAugment"}  # names in torchvision.transforms
# of pixels that a rotation or shift brings in: the mean of ImageNet, as timm and torchvision do
FILL = [124, 116, 104]


class Augmentation:
    """PIL image -> uint8 (3, S, S).

    As torchvision's RandomResizedCrop and RandomHorizontalFlip, then TrivialAugmentWide or
    RandAugment, ColorJitter and RandomGrayscale if the parameters ask for them. It can be pickled,
    for worker processes, and uses torch's global random generator. Pixels are normalised later,
    for whole batches, by `Transform.normalise`.

    Args:
        augment: the parameters.
        image_size: side S of the result in pixels, unless `at_step` draws one of `augment.sizes`.
        seed: of the draw of sizes.
    """

    def __init__(self, augment: Augment, image_size: int, seed: int = 0) -> None:
        self.augment = augment
        self.image_size = image_size
        self.seed = seed

    def at_step(self, step: int) -> "Augmentation":
        """The augmentation of all images of a training step, which have one size."""
        from swag_models.recipe.data.stream import hash_seed

        if not (sizes := self.augment.sizes):
            return self
        # a function of seed and step: equal in all processes, and after a resume
        size = sizes[hash_seed(self.seed, "size", step) % len(sizes)]
        return Augmentation(replace(self.augment, sizes=None), size, self.seed)

    def __call__(self, image: Image.Image) -> "Tensor":
        # Imported here, because these imports take seconds and the module must load quickly.
        import torch
        from torchvision.transforms import RandomResizedCrop
        from torchvision.transforms.v2 import functional as F

        image = to_rgb(image)
        top, left, height, width = RandomResizedCrop.get_params(
            image, list(self.augment.scale), list(self.augment.ratio)
        )
        # Crop first: Pillow's resize with a box reads the pixels around the box too.
        image = image.crop((left, top, left + width, top + height))
        image = image.resize(
            (self.image_size, self.image_size), Image.Resampling[self.augment.interpolation.upper()]
        )
        if torch.rand(1).item() < self.augment.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return F.pil_to_tensor(self.vary(image))

    def vary(self, image: Image.Image) -> Image.Image:
        """Change the shape and colour of an RGB image at random."""
        # no random number is drawn for what is off: other settings give the same images as before
        import torch
        from torchvision import transforms as T

        if self.augment.auto:
            image = getattr(T, AUTO[self.augment.auto])(fill=FILL)(image)
        jitter, grayscale = self.augment.color_jitter, self.augment.grayscale
        if jitter and torch.rand(1).item() < JITTER_PROBABILITY:
            image = T.ColorJitter(brightness=jitter, contrast=jitter, saturation=jitter)(image)
        if grayscale and torch.rand(1).item() < grayscale:
            image = image.convert("L").convert("RGB")
        return image

    def __repr__(self) -> str:
        return f"Augmentation({self.augment}, {self.image_size})"
