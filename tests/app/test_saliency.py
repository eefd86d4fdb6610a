"""Where a model looks: the right place of the right picture, in the right colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import IMAGE_SIZE, images, tiny

from swag_models.app.overlay import RAMP, crop_seen, lay_over
from swag_models.app.saliency import count_layers, find_heat
from swag_models.models import RegNet, ViT
from swag_models.preprocess import Transform
from swag_models.spec import Preprocess


def make_picture(width: int, height: int) -> Image.Image:
    """Smooth, and different everywhere."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray(
        (255 * np.stack([down, across, (down + across) / 2], axis=-1)).astype(np.uint8)
    )


@pytest.mark.parametrize("size", [(600, 400), (300, 700), (40, 90)])
@pytest.mark.parametrize("image_size", [224, (96, 160)])
def test_the_part_shown_is_the_part_the_model_sees(
    size: tuple[int, int], image_size: int | tuple[int, int]
) -> None:
    picture = make_picture(*size)
    preprocess = replace(Preprocess(image_size), mean=(0, 0, 0), std=(1, 1, 1))
    seen = Transform(preprocess)(picture).permute(1, 2, 0).numpy()  # (H, W, 3)
    height, width = preprocess.size
    shown = crop_seen(picture, preprocess.size)
    assert max(shown.size) >= 512
    assert np.abs(np.asarray(shown.resize((width, height))) / 255 - seen).max() < 0.02


def test_the_map_is_laid_where_it_belongs_as_far_as_asked() -> None:
    picture = make_picture(120, 80)
    heat = np.zeros((4, 6), dtype=np.float32)
    heat[1, 4] = 3
    assert np.array_equal(lay_over(picture, heat, 0), picture)
    alone = np.asarray(lay_over(picture, heat, 1)).astype(int)
    hottest = np.unravel_index(np.abs(alone - RAMP[-1]).sum(axis=-1).argmin(), alone.shape[:2])
    assert (hottest[0] // 20, hottest[1] // 20) == (1, 4)
    assert np.array_equal(alone[70, 10], RAMP[0])
    half = np.asarray(lay_over(picture, heat, 0.5)).astype(int)
    assert np.abs(half - (alone + np.asarray(picture)) / 2).max() <= 1


def test_a_map_without_contrast_is_cold() -> None:
    picture = make_picture(20, 20)
    assert len(lay_over(picture, np.full((2, 2), 7, dtype=np.float32), 1).getcolors() or []) == 1


def test_attention_is_found_at_the_patch_that_differs() -> None:
    model = tiny("vit", image_size=(32, 64))
    assert isinstance(model, ViT)
    with torch.no_grad():
        model.pos_embed.zero_()
    x = torch.zeros(1, 3, 32, 64)
    x[..., 16:24, 40:48] = 3  # the patch in row 2, column 5 of 4 x 8
    maps = find_heat(model, x, 0)
    assert maps.shape == (4, 4, 8)
    assert all(np.abs(head - np.median(head)).argmax() == 2 * 8 + 5 for head in maps)
    assert (maps.sum(axis=(1, 2)) < 1).all()  # the class token looks at itself too


@pytest.mark.parametrize("stage", range(4))
def test_grad_cam_is_that_of_the_public_package(stage: int) -> None:
    from pytorch_grad_cam import GradCAM

    model, x = tiny("regnet"), images(1)
    assert isinstance(model, RegNet)
    (ours,) = find_heat(model, x, stage)
    assert all(parameter.grad is None for parameter in model.parameters())
    with GradCAM(model, [model.get_submodule(f"s{stage + 1}")]) as public:
        (theirs,) = public(x, targets=None)  # enlarged to the picture, then stretched to [0, 1]
    enlarged = F.interpolate(
        torch.from_numpy(ours)[None, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear"
    )[0, 0].numpy()
    low, high = enlarged.min(), enlarged.max()
    assert np.abs((enlarged - low) / (high - low) - theirs).max() < 1e-3


def test_a_regnet_without_classes_is_explained_by_its_features() -> None:
    model, x = tiny("regnet", num_classes=None), images(1)
    assert isinstance(model, RegNet)
    with torch.no_grad():
        features = model.forward_features(x)
    expected = (features * features.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu()
    heat = torch.from_numpy(find_heat(model, x, 3))
    assert torch.allclose(heat / heat.max(), expected / expected.max(), atol=1e-5)


def test_layers_are_blocks_of_a_vit_and_stages_of_a_regnet() -> None:
    from tiny import REGNET, VIT

    assert (count_layers(VIT), count_layers(REGNET)) == (2, 4)
