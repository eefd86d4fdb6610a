"""The result of a batch of images, some of which could not be read."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from swag_models.inference.image_sources import ImageRef


class Skipped(NamedTuple):
    """An image that could not be read.

    Attributes:
        name: path or other name of the image.
        reason: error message, which contains the name.
    """

    name: str
    reason: str


class BatchResult(NamedTuple):
    """Result of one batch of images.

    Attributes:
        images: all images of the batch, in order.
        errors: index in `images` -> reason why that image could not be read.
        values: a float32 row for each image that was read; None if no image was.
    """

    images: Sequence[ImageRef]
    errors: dict[int, str]
    values: Tensor | None

    @property
    def names(self) -> list[str]:
        """Names of the images that have a row."""
        return [image.name for index, image in enumerate(self.images) if index not in self.errors]

    @property
    def skipped(self) -> list[Skipped]:
        """The images that have no row."""
        return [Skipped(self.images[index].name, reason) for index, reason in self.errors.items()]
