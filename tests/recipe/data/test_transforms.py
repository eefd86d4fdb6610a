"""Random crops and flips, against torchvision's and their own statistics."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from swag_models.recipe.config import Augment
from swag_models.recipe.data.transforms import Augmentation

SIZES = [(64, 64), (80, 48), (33, 190), (400, 300), (5, 3), (1, 1)]


def make_picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
@pytest.mark.parametrize("size", SIZES)
def test_every_byte_is_torchvisions(
    size: tuple[int, int], scale: tuple[float, float], interpolation: str
) -> None:
    ours = Augmentation(Augment(scale=scale, interpolation=interpolation), 32)  # type: ignore[arg-type]
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(
                32, scale=scale, interpolation=v2.InterpolationMode(interpolation)
            ),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    picture = make_picture(*size)
    for seed in range(20):
        torch.manual_seed(seed)
        made = ours(picture)
        torch.manual_seed(seed)
        assert torch.equal(made, theirs(picture))
        assert made.dtype == torch.uint8
        assert made.shape == (3, 32, 32)


def test_a_copy_in_another_process_draws_the_same_from_the_same_seed() -> None:
    augmentation = Augmentation(Augment(), 16)
    copied = pickle.loads(pickle.dumps(augmentation))
    made = []
    for each in (augmentation, copied):
        torch.manual_seed(4)
        made.append(each(make_picture(40, 30)))
    assert torch.equal(*made)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_kinds_of_pictures_become_rgb(mode: str) -> None:
    assert Augmentation(Augment(), 16)(make_picture(40, 30).convert(mode)).shape == (3, 16, 16)


def draw_crops(augment: Augment, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Widths, heights, and whether it was mirrored, of crops of a picture whose colours are the pixels' places."""
    y, x = np.mgrid[:side, :side]
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    made = torch.stack(
        [Augmentation(augment, 64)(picture) for _ in range(count)]
    ).double()  # (count, 3, 64, 64)
    across, down = made[:, 0, 32], made[:, 1, :, 32]  # a ramp each
    widths, heights = ((ramp[:, 48] - ramp[:, 16]) * 2 for ramp in (across, down))
    assert (heights >= 0).all()
    return widths.abs(), heights, widths < 0


def test_areas_and_ratios_are_spread_as_asked() -> None:
    augment = Augment(scale=(0.1, 0.5), ratio=(1 / 2, 2.0))
    widths, heights, _ = draw_crops(augment, 250, 1500)
    areas = widths * heights / 250**2
    assert areas.min() > 0.09
    assert areas.max() < 0.52
    assert areas.mean() == pytest.approx(0.3, abs=0.012)  # uniform: 0.4 / sqrt(12 * 1500) = 0.003
    ratios = (widths / heights).log()
    assert ratios.abs().max() < math.log(2) + 0.05
    assert ratios.mean() == pytest.approx(0, abs=0.05)
    assert ratios.std() == pytest.approx(2 * math.log(2) / math.sqrt(12), abs=0.02)


@pytest.mark.parametrize(
    ("flip", "least", "most"), [(0.0, 0, 0), (0.25, 110, 195), (0.5, 250, 350), (1.0, 600, 600)]
)
def test_flips_are_as_probable_as_asked(flip: float, least: int, most: int) -> None:
    _, _, mirrored = draw_crops(replace(Augment(scale=(0.5, 1.0)), flip=flip), 100, 600)
    assert least <= int(mirrored.sum()) <= most
