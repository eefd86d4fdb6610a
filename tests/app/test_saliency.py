"""Saliency maps: the right place, over the right part of the image, in the right colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import IMAGE_SIZE, images, tiny

from swag_models.app.saliency import (
    COLOUR_MAP,
    compute_saliency,
    count_layers,
    crop_to_input,
    overlay_saliency,
)
from swag_models.models import RegNet, ViT
from swag_models.preprocess import Transform
from swag_models.spec import Preprocess


def make_gradient(width: int, height: int) -> Image.Image:
    """A smooth image without two equal pixels."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray((255 * np.stack([y, x, (y + x) / 2], axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("size", [(600, 400), (300, 700), (40, 90)])
@pytest.mark.parametrize("image_size", [224, (96, 160)])
def test_the_cropped_part_is_the_input_of_the_model(
    size: tuple[int, int], image_size: int | tuple[int, int]
) -> None:
    image = make_gradient(*size)
    preprocess = replace(Preprocess(image_size), mean=(0, 0, 0), std=(1, 1, 1))
    model_input = Transform(preprocess)(image).permute(1, 2, 0).numpy()  # (H, W, 3)
    height, width = preprocess.size
    cropped = crop_to_input(image, preprocess)
    assert max(cropped.size) >= 512
    assert np.abs(np.asarray(cropped.resize((width, height))) / 255 - model_input).max() < 0.02


def test_a_map_is_drawn_at_its_place_with_the_given_opacity() -> None:
    image = make_gradient(120, 80)
    saliency = np.zeros((4, 6), dtype=np.float32)
    saliency[1, 4] = 3
    assert np.array_equal(overlay_saliency(image, saliency, 0), image)
    alone = np.asarray(overlay_saliency(image, saliency, 1)).astype(int)
    hottest = np.unravel_index(
        np.abs(alone - COLOUR_MAP[-1]).sum(axis=-1).argmin(), alone.shape[:2]
    )
    assert (hottest[0] // 20, hottest[1] // 20) == (1, 4)
    assert np.array_equal(alone[70, 10], COLOUR_MAP[0])
    half = np.asarray(overlay_saliency(image, saliency, 0.5)).astype(int)
    assert np.abs(half - (alone + np.asarray(image)) / 2).max() <= 1


def test_a_constant_map_has_one_colour() -> None:
    image = make_gradient(20, 20)
    assert (
        len(overlay_saliency(image, np.full((2, 2), 7, dtype=np.float32), 1).getcolors() or []) == 1
    )


def test_attention_is_highest_or_lowest_at_the_patch_that_differs() -> None:
    model = tiny("vit", image_size=(32, 64))
    assert isinstance(model, ViT)
    with torch.no_grad():
        model.pos_embed.zero_()
    x = torch.zeros(1, 3, 32, 64)
    x[..., 16:24, 40:48] = 3  # the patch in row 2, column 5 of 4 x 8
    maps = compute_saliency(model, x, 0)
    assert maps.shape == (4, 4, 8)
    assert all(np.abs(head - np.median(head)).argmax() == 2 * 8 + 5 for head in maps)
    assert (maps.sum(axis=(1, 2)) < 1).all()  # the rest is the class token's attention to itself


@pytest.mark.parametrize("stage", range(4))
def test_grad_cam_equals_the_package_grad_cam(stage: int) -> None:
    from pytorch_grad_cam import GradCAM

    model, x = tiny("regnet"), images(1)
    assert isinstance(model, RegNet)
    (ours,) = compute_saliency(model, x, stage)
    assert all(parameter.grad is None for parameter in model.parameters())
    with GradCAM(model, [model.get_submodule(f"s{stage + 1}")]) as public:
        # enlarged to the image, then stretched to [0, 1]
        (theirs,) = public(x, targets=[lambda logits: logits.max() - logits.mean()])
    enlarged = F.interpolate(
        torch.from_numpy(ours)[None, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear"
    )[0, 0].numpy()
    low, high = enlarged.min(), enlarged.max()
    assert np.abs((enlarged - low) / (high - low) - theirs).max() < 1e-3


def test_grad_cam_does_not_depend_on_what_all_logits_have_in_common() -> None:
    model, x = tiny("regnet"), images(1)
    assert isinstance(model, RegNet)
    (before,) = compute_saliency(model, x, 3)
    assert before.max() > 0
    with torch.no_grad():
        model.head.fc.weight -= 100  # pooled features are positive, so all logits fall
    (after,) = compute_saliency(model, x, 3)
    assert np.abs(after - before).max() < 1e-3 * before.max()


def test_a_regnet_without_classes_is_explained_by_its_features() -> None:
    model, x = tiny("regnet", num_classes=None), images(1)
    assert isinstance(model, RegNet)
    with torch.no_grad():
        features = model.forward_features(x)
    expected = (features * features.mean(dim=(2, 3), keepdim=True)).sum(dim=1).relu()
    saliency = torch.from_numpy(compute_saliency(model, x, 3))
    assert torch.allclose(saliency / saliency.max(), expected / expected.max(), atol=1e-5)


def test_layers_are_blocks_of_a_vit_and_stages_of_a_regnet() -> None:
    from tiny import REGNET, VIT

    assert (count_layers(VIT), count_layers(REGNET)) == (2, 4)
