"""Scenarios of pytorch-grad-cam's and captum's tests: every method on a model of each family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peers.subjects import OURS, REGNET, TIMM, TIMM_REGNET, VIT, Subject, on
from torch import Tensor, nn

METHODS = (
    "GradCAM",
    "HiResCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "XGradCAM",
    "EigenCAM",
    "EigenGradCAM",
    "LayerCAM",
    "KPCA_CAM",
    "FEM",
)
SLOW_METHODS = ("ScoreCAM", "AblationCAM", "FinerCAM")  # they run the model once per channel
CLASSES = 5


def prepare(subject: Subject) -> nn.Module:
    """Build a model with a head that is not zero."""
    model = subject.load(num_classes=CLASSES)
    nn.init.normal_(model.get_classifier().weight, std=0.02)
    return model


def choose_layer(model: nn.Module, family: str) -> tuple[nn.Module, Any]:
    """Return a layer inside of a block, and the function that lays its tokens out as a map."""
    if family == "regnet":
        return model.s2.b1.conv3, None
    grid = model.patch_embed.grid_size
    return model.blocks[-1].norm1, lambda x: x[:, 1:].unflatten(1, grid).permute(0, 3, 1, 2)


def define_grad_cam(model: nn.Module, layer: nn.Module, images: Tensor, target: int) -> Tensor:
    """Return the map of Grad-CAM's definition (N, h, w), from a clone of the layer's output."""
    kept: list[Tensor] = []

    def keep(*call: Any) -> Tensor:
        kept.append(call[2])
        return call[2].clone()  # whatever follows cannot write into the kept output

    with layer.register_forward_hook(keep):
        logits = model(images)
    (slopes,) = torch.autograd.grad(logits[:, target].sum(), kept)
    return (slopes.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()


@on(*OURS, *TIMM)
class TestGradCam:
    @pytest.mark.parametrize(
        "method",
        [
            METHODS[0],
            *(pytest.param(name, marks=pytest.mark.peers) for name in METHODS[1:] + SLOW_METHODS),
        ],
    )
    def test_a_map_has_the_size_of_the_image(self, method: str, subject: Subject) -> None:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        if method == "AblationCAM" and subject.family == "vit":
            pytest.skip("needs a layer of its own for each form of tokens")
        model, images = prepare(subject), subject.images(2)
        layer, reshape = choose_layer(model, subject.family)
        targets = [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]
        with getattr(pytorch_grad_cam, method)(model, [layer], reshape) as explain:
            heat = explain(images, None if method == "FinerCAM" else targets)
        assert heat.shape == (2, *subject.image_size)
        assert np.isfinite(heat).all()

    def test_an_image_is_explained_alike_alone_and_in_a_batch(self, subject: Subject) -> None:
        from pytorch_grad_cam import GradCAM

        model, images = prepare(subject), subject.images(2)
        layer, reshape = choose_layer(model, subject.family)
        with GradCAM(model, [layer], reshape) as explain:
            both, one = explain(images, None), explain(images[:1], None)
        np.testing.assert_allclose(one[0], both[0], atol=1e-4)


@on(REGNET, TIMM_REGNET)
@pytest.mark.parametrize("name", ["s1.b1.conv1", "s2.b1.conv2", "s3.b1.conv3", "s3.b1.se", "s2"])
def test_the_map_of_any_layer_is_that_of_the_definition(name: str, subject: Subject) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = prepare(subject), subject.images()
    layer = model.get_submodule(name)
    expected = define_grad_cam(model, layer, images, 1).detach().numpy()
    height, width = subject.image_size
    expected = scale_cam_image(scale_cam_image(expected, (width, height)))  # once more at the end
    with GradCAM(model, [layer]) as explain:
        (heat,) = explain(images, [ClassifierOutputTarget(1)])
    np.testing.assert_allclose(heat, expected[0], atol=1e-4)


ATTRIBUTIONS: dict[str, dict[str, Any]] = {
    "Saliency": {},
    "InputXGradient": {},
    "IntegratedGradients": {"n_steps": 20},
    "DeepLift": {},
    "GradientShap": {"n_samples": 3},
    "GuidedBackprop": {},
    "Deconvolution": {},
    "Occlusion": {"sliding_window_shapes": (3, 16, 16), "strides": (3, 16, 16)},
}


@on(*OURS, *TIMM)
@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")
@pytest.mark.filterwarnings("ignore:Input Tensor:UserWarning")
class TestCaptum:
    @pytest.mark.parametrize(
        "method",
        ["Saliency", "DeepLift"]
        + [
            pytest.param(name, marks=pytest.mark.peers)
            for name in ATTRIBUTIONS
            if name not in ("Saliency", "DeepLift")
        ],
    )
    def test_attributions_have_the_shape_of_the_image(self, method: str, subject: Subject) -> None:
        attr = pytest.importorskip("captum.attr")
        model, images = prepare(subject), subject.images()
        options = dict(ATTRIBUTIONS[method])
        if method in ("DeepLift", "GradientShap", "IntegratedGradients"):
            options["baselines"] = torch.zeros_like(images)
        found = getattr(attr, method)(model).attribute(images, target=1, **options)
        assert found.shape == images.shape
        assert torch.isfinite(found).all()
        assert found.abs().sum() > 0

    @pytest.mark.peers
    def test_integrated_gradients_add_up_to_the_difference(self, subject: Subject) -> None:
        attr = pytest.importorskip("captum.attr")
        model, images = prepare(subject), subject.images()
        baseline = torch.zeros_like(images)
        _, delta = attr.IntegratedGradients(model).attribute(
            images, baseline, target=1, n_steps=200, return_convergence_delta=True
        )
        with torch.no_grad():
            difference = (model(images) - model(baseline))[0, 1].abs()
        assert delta.abs() < 0.05 * max(1, difference)


@on(VIT, *TIMM[:1])
@pytest.mark.peers
def test_layers_are_attributed(subject: Subject) -> None:
    attr = pytest.importorskip("captum.attr")
    model, images = prepare(subject), subject.images()
    found = attr.LayerActivation(model, model.blocks[0]).attribute(images)
    assert found.shape == (1, 1 + model.patch_embed.num_patches, model.num_features)
