"""Settings of augmentation. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from swag_models.recipe.limits import check_fields, is_probability


@dataclass(frozen=True)
class Augment:
    """RandomResizedCrop, horizontal flip, changes of shape and colour.

    Args:
        scale: smallest and largest fraction of the image's area in a crop.
        ratio: smallest and largest ratio of a crop's width to its height.
        interpolation: of resizing.
        sizes: pixels; each step draws one of these sizes for its images, the same on all ranks.
            None for the run's `image_size`.
        flip: probability.
        auto: "trivial" changes each image by one operation of TrivialAugment (arXiv 2103.10158),
            "rand" by two of RandAugment (arXiv 1909.13719), with torchvision's parameters. None
            for neither.
        color_jitter: brightness, contrast and saturation are multiplied by random factors between
            1 minus and 1 plus this; 0 for none. An image is changed with a probability of 0.8.
        grayscale: probability of removing the colours.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    sizes: tuple[int, ...] | None = None
    flip: float = 0.5
    auto: Literal["trivial", "rand"] | None = None
    color_jitter: float = 0.0
    grayscale: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            scale=(lambda s: 0 < s[0] <= s[1] <= 1, "two fractions, the smaller first"),
            ratio=(lambda r: 1e-3 <= r[0] <= r[1] <= 1e3, "0.001 to 1000, the smaller first"),
            sizes=(lambda sizes: sizes is None or min(sizes, default=0) > 0, "pixels, or none"),
            flip=(is_probability, "a probability"),
            color_jitter=(lambda strength: 0 <= strength <= 1, "from 0 to 1"),
            grayscale=(is_probability, "a probability"),
        )
