"""A heat map laid on a picture: which part of it a model sees, the colours of heat, and the blend of both.

Axes: H W pixels, h w grid of the map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from swag_models.preprocess import cover_size

Heat = NDArray[np.float32]
RAMP = np.array(
    [(22, 20, 58), (88, 36, 124), (184, 54, 110), (242, 120, 74), (254, 226, 140)], dtype=np.float32
)  # cold to hot
SHOWN_SIDE = 512  # pixels; a small picture is enlarged, so that its map can be seen


def crop_seen(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The part of a picture that a model of input (height, width) `size` sees, its longer side at least 512 pixels."""
    height, width = size
    cover_height, cover_width = cover_size(image.height, image.width, height, width)
    scale_y, scale_x = image.height / cover_height, image.width / cover_width
    top, left = (cover_height - height) / 2 * scale_y, (cover_width - width) / 2 * scale_x
    enlarge = max(1.0, SHOWN_SIDE / max(size))
    return image.resize(
        (round(width * enlarge), round(height * enlarge)),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width * scale_x, top + height * scale_y),
    )


def lay_over(image: Image.Image, heat: Heat, blend: float) -> Image.Image:
    """The picture under a map (h, w): its values stretched to the whole ramp, `blend` from 0 (picture) to 1 (map)."""
    low, high = float(heat.min()), float(heat.max())
    level = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    smooth = Image.fromarray(level.astype(np.float32)).resize(
        image.size, Image.Resampling.BILINEAR
    )  # (H, W)
    return Image.blend(image, colour(np.asarray(smooth)), blend)


def colour(level: Heat) -> Image.Image:
    """Values (H, W) from 0 to 1 -> an RGB image of the ramp."""
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(level, stops, RAMP[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))  # (H, W, 3)
