"""Random crops, flips and colours: compared with torchvision, and their statistics."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from swag_models.recipe.augmentation import Augment
from swag_models.recipe.data.transforms import Augmentation

SIZES = [(64, 64), (80, 48), (33, 190), (400, 300), (5, 3), (1, 1)]


def make_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
@pytest.mark.parametrize("size", SIZES)
def test_augmentation_equals_torchvision(
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
    image = make_image(*size)
    for seed in range(20):
        torch.manual_seed(seed)
        crop = ours(image)
        torch.manual_seed(seed)
        assert torch.equal(crop, theirs(image))
        assert crop.dtype == torch.uint8
        assert crop.shape == (3, 32, 32)


def test_a_pickled_augmentation_draws_the_same_crops() -> None:
    augmentation = Augmentation(Augment(), 16)
    crops = []
    for transform in (augmentation, pickle.loads(pickle.dumps(augmentation))):
        torch.manual_seed(4)
        crops.append(transform(make_image(40, 30)))
    assert torch.equal(*crops)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_all_modes_become_rgb(mode: str) -> None:
    assert Augmentation(Augment(), 16)(make_image(40, 30).convert(mode)).shape == (3, 16, 16)


def draw_crops(augment: Augment, side: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return width, height and whether it was flipped, of random crops, (count,) each."""
    # The colours of the image are the coordinates of its pixels.
    y, x = np.mgrid[:side, :side]
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    augmentation = Augmentation(augment, 64)
    crops = torch.stack([augmentation(image) for _ in range(count)]).double()  # (count, 3, 64, 64)
    across, down = crops[:, 0, 32], crops[:, 1, :, 32]  # two linear ramps
    widths, heights = ((ramp[:, 48] - ramp[:, 16]) * 2 for ramp in (across, down))
    assert (heights >= 0).all()
    return widths.abs(), heights, widths < 0


def test_areas_and_ratios_have_the_configured_distribution() -> None:
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
    ("flip", "minimum", "maximum"),
    [(0.0, 0, 0), (0.25, 110, 195), (0.5, 250, 350), (1.0, 600, 600)],
)
def test_flips_have_the_configured_probability(flip: float, minimum: int, maximum: int) -> None:
    _, _, mirrored = draw_crops(replace(Augment(scale=(0.5, 1.0)), flip=flip), 100, 600)
    assert minimum <= int(mirrored.sum()) <= maximum


@pytest.mark.parametrize(
    ("grayscale", "minimum", "maximum"), [(0.0, 0, 0), (0.25, 45, 105), (1.0, 300, 300)]
)
def test_colours_are_removed_with_the_configured_probability(
    grayscale: float, minimum: int, maximum: int
) -> None:
    augmentation, image = Augmentation(Augment(grayscale=grayscale), 8), make_image(12, 12)
    grey = [bool((crop == crop[:1]).all()) for crop in (augmentation(image) for _ in range(300))]
    assert minimum <= sum(grey) <= maximum


@pytest.mark.parametrize(
    ("auto", "name"), [("trivial", "TrivialAugmentWide"), ("rand", "RandAugment")]
)
def test_automatic_augmentation_is_torchvisions(
    auto: Literal["trivial", "rand"], name: str
) -> None:
    whole = Augment(scale=(1, 1), ratio=(1, 1), flip=0, auto=auto)
    plain, image = Augmentation(replace(whole, auto=None), 16), make_image(16, 16)
    peer, changed = getattr(transforms, name)(fill=[124, 116, 104]), 0
    for seed in range(40):
        torch.manual_seed(seed)
        crop = plain(image)
        expected = peer(v2.functional.to_pil_image(crop))
        torch.manual_seed(seed)
        result = Augmentation(whole, 16)(image)
        assert v2.functional.to_pil_image(result) == expected
        changed += not torch.equal(result, crop)
    assert changed > 20


def test_color_jitter_multiplies_by_factors_of_the_configured_range() -> None:
    augmentation = Augmentation(Augment(color_jitter=0.4), 4)
    image = Image.new("RGB", (8, 8), (100, 100, 100))  # contrast and saturation do not change it
    values = torch.stack([augmentation(image) for _ in range(400)])
    assert (values == values[:, :1, :1, :1]).all()
    factors = values[:, 0, 0, 0] / 100
    assert 0.59 <= factors.min() < 0.65
    assert 1.35 < factors.max() <= 1.41
    assert 50 <= int((factors == 1).sum()) <= 115  # a fifth, and a few that round to 1
    coloured = Image.new("RGB", (8, 8), (200, 100, 50))
    ratios = {
        tuple((crop[:, 0, 0] / crop[0, 0, 0]).tolist())
        for crop in map(augmentation, [coloured] * 20)
    }
    assert len(ratios) > 10  # the saturation changes too
