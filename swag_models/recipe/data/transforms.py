"""Augmentation of training images: random crop, resize, flip, changes of shape and colour.

Axes: S side in pixels.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from swag_models.image_decoding import Box, View, decode_view, to_rgb
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import Run

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
        scaled: let `decode` decode a JPEG at a fraction of its size; see `Engine`.
    """

    def __init__(
        self, augment: Augment, image_size: int, seed: int = 0, *, scaled: bool = False
    ) -> None:
        self.augment = augment
        self.image_size = image_size
        self.seed = seed
        self.scaled = scaled

    def at_step(self, step: int) -> "Augmentation":
        """The augmentation of all images of a training step, which have one size."""
        from swag_models.recipe.data.stream import hash_seed

        if not (sizes := self.augment.sizes):
            return self
        # a function of seed and step: equal in all processes, and after a resume
        size = sizes[hash_seed(self.seed, "size", step) % len(sizes)]
        augment = replace(self.augment, sizes=None)
        return Augmentation(augment, size, self.seed, scaled=self.scaled)

    def decode(self, image: Image.Image) -> View:
        """Draw a crop of an image, and decode the image for it; pass this to `read_image`.

        Args:
            image: opened, and if possible not decoded.
        """
        return decode_view(image, self._choose_crop, scaled=self.scaled)

    def _choose_crop(self, width: int, height: int) -> tuple[Box, float]:
        # Imported here, because these imports take seconds and the module must load quickly.
        import torch
        from torchvision.transforms import RandomResizedCrop

        top, left, rows, columns = RandomResizedCrop.get_params(
            torch.empty(1, height, width, device="meta"),
            list(self.augment.scale),
            list(self.augment.ratio),
        )
        factor = self.image_size / min(rows, columns)
        return (left, top, left + columns, top + rows), factor

    def __call__(self, image: Image.Image | View) -> "Tensor":
        import torch
        from torchvision.transforms.v2 import functional as F

        view = image if isinstance(image, View) else self.decode(to_rgb(image))
        image = view.resize(
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


def make_augmentation(run: Run, image_size: int) -> Augmentation:
    """Make the augmentation of a run, whose results have a side of `image_size` pixels."""
    return Augmentation(run.augment, image_size, run.seed, scaled=run.engine.scaled_decoding)
