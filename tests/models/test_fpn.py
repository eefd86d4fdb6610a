"""The feature pyramid: positions and sizes of its cells, and torchvision's detectors on top."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import CONFIGS, REGNET, SMALL_REGNET, VIT, deviation, images, randomise, tiny
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet

from swag_models.architectures import RegNetConfig, ViTConfig
from swag_models.errors import ConfigError
from swag_models.models import FeaturePyramid, build
from swag_models.models.fpn import make_level

SHAPES: dict[str, ViTConfig | RegNetConfig] = {
    "regnet": REGNET,
    "regnet, two stages": SMALL_REGNET,
    **{f"vit, patch {patch}": replace(VIT, patch_size=patch) for patch in (4, 8, 14, 32)},
}
LEVELS = {"0": 4, "1": 8, "2": 16, "3": 32, "pool": 64}


def make_pyramid(shape: str, out_channels: int = 8) -> FeaturePyramid:
    config = SHAPES[shape]
    size = 7 * config.patch_size if isinstance(config, ViTConfig) else 64
    return FeaturePyramid(
        randomise(build(config, num_classes=3, image_size=size)), out_channels
    ).eval()


@pytest.mark.parametrize("shape", SHAPES)
class TestLevels:
    @pytest.mark.parametrize("image_size", [(64, 96), (100, 45), (7, 33), (1, 1)])
    @torch.no_grad()
    def test_levels_have_ceil_of_size_by_stride_cells(
        self, shape: str, image_size: tuple[int, int]
    ) -> None:
        levels = make_pyramid(shape)(images(image_size=image_size))
        sizes = {name: tuple(level.shape) for name, level in levels.items()}
        assert sizes == {
            name: (2, 8, *(math.ceil(side / stride) for side in image_size))
            for name, stride in LEVELS.items()
        }

    @torch.no_grad()
    def test_cells_are_where_their_pixels_are(self, shape: str) -> None:
        """A changed pixel changes its own cell most. Attention, which spreads it, is turned off."""
        pyramid = make_pyramid(shape)
        for name, module in pyramid.named_modules():
            if name.endswith(("attn.proj", "se.fc2")):
                nn.init.zeros_(module.weight)
        batch = images(1, (160, 288))
        for row, column in ((16, 16), (80, 264), (144, 176)):
            changed = batch.clone()
            changed[..., row - 2 : row + 2, column - 2 : column + 2] += 5
            before, after = pyramid(batch), pyramid(changed)
            for name, stride in LEVELS.items():
                if name == "pool":
                    continue
                change = (after[name] - before[name]).square().sum(dim=(0, 1))  # (h, w)
                rows, columns = ((torch.arange(length) + 0.5) * stride for length in change.shape)
                centre = (
                    change.sum(1) @ rows / change.sum(),
                    change.sum(0) @ columns / change.sum(),
                )
                tolerance = 1.5 * max(stride, 16)
                assert abs(float(centre[0]) - row) <= tolerance, (name, row, centre)
                assert abs(float(centre[1]) - column) <= tolerance, (name, column, centre)

    def test_every_parameter_learns(self, shape: str) -> None:
        pyramid = make_pyramid(shape).train()
        sum(
            level.square().mean() * index
            for index, level in enumerate(pyramid(images(4)).values(), 1)
        ).backward()
        assert not [
            name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()
        ]

    def test_backbone_is_the_passed_model_without_its_head(self, shape: str) -> None:
        model = build(SHAPES[shape], num_classes=3, image_size=224)
        backbone = dict(model.named_parameters())
        pyramid = FeaturePyramid(model)
        assert pyramid.trunk is model
        assert pyramid.out_channels == 256
        assert model.num_classes == 0
        for name, parameter in model.named_parameters():
            assert parameter is backbone[name]


@pytest.mark.parametrize("family", ["vit", "regnet"])
class TestBackbone:
    def test_frozen_layers_stay_frozen(self, family: str) -> None:
        pyramid = FeaturePyramid(tiny(family, num_classes=None, drop_path_rate=0.5), 8)
        pyramid.trunk.freeze()
        batch = images()
        expected = pyramid.eval()(batch)
        pyramid.train()
        assert not pyramid.trunk.get_submodule({"vit": "blocks.0", "regnet": "s1"}[family]).training
        levels = pyramid(batch)
        for name, level in levels.items():
            assert torch.equal(level, expected[name])
        sum(level.square().mean() for level in levels.values()).backward()
        assert all(parameter.grad is None for parameter in pyramid.trunk.parameters())
        assert all(parameter.grad is not None for parameter in pyramid.neck.parameters())

    def test_precision_and_device_are_the_backbones(self, family: str) -> None:
        pyramid = FeaturePyramid(tiny(family).bfloat16(), 8)
        assert {level.dtype for level in pyramid(images().bfloat16()).values()} == {torch.bfloat16}
        with torch.device("meta"):
            model = build(CONFIGS[family], num_classes=None, image_size=64)
        assert all(parameter.is_meta for parameter in FeaturePyramid(model).parameters())

    def test_checkpointing_changes_nothing(self, family: str) -> None:
        pyramid, batch = FeaturePyramid(tiny(family), 8), images(4)
        gradients = []
        for enable in (False, True):
            pyramid.trunk.set_grad_checkpointing(enable)
            pyramid.zero_grad()
            sum(level.square().mean() for level in pyramid(batch).values()).backward()
            gradients.append([parameter.grad.clone() for parameter in pyramid.parameters()])
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.equal(ours, theirs)

    def test_compiled_equals_eager(self, family: str) -> None:
        pyramid, batch = FeaturePyramid(tiny(family), 8).eval(), images(image_size=(40, 72))
        torch._dynamo.reset()
        with torch.no_grad():
            compiled = torch.compile(pyramid, backend="aot_eager", fullgraph=True)(batch)
            for name, level in pyramid(batch).items():
                assert deviation(compiled[name], level) < 1e-4


def make_scene(masks: bool) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of unequal, odd sizes; each contains a bright square."""
    images, targets = [], []
    for height, width in ((90, 130), (75, 61)):
        image = torch.rand(3, height, width)
        image[:, 20:50, 10:40] = 1
        target: dict[str, Tensor] = {
            "boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0]]),
            "labels": torch.tensor([1]),
        }
        if masks:
            target["masks"] = torch.zeros(1, height, width, dtype=torch.uint8)
            target["masks"][:, 20:50, 10:40] = 1
        images.append(image)
        targets.append(target)
    return images, targets


@pytest.mark.parametrize(
    ("detector", "shape"),
    [
        (FasterRCNN, "regnet"),
        (FasterRCNN, "vit, patch 14"),
        pytest.param(MaskRCNN, "vit, patch 8", marks=pytest.mark.slow),
        (RetinaNet, "regnet"),
        (RetinaNet, "regnet, two stages"),
    ],
)
def test_torchvisions_detectors_train_and_predict(detector: Any, shape: str) -> None:
    model = detector(make_pyramid(shape, 32), num_classes=2, min_size=64, max_size=96)
    images, targets = make_scene(masks=detector is MaskRCNN)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        detections = model.eval()(images)
    assert len(detections) == 2
    assert all(len(result["boxes"]) == len(result["scores"]) for result in detections)


@pytest.mark.parametrize(
    ("doublings", "resampling", "width"),
    [
        (2, ["ConvTranspose2d 16", "ChannelNorm 16", "GELU", "ConvTranspose2d 8"], 8),
        (1, ["ConvTranspose2d 16"], 16),
        (0, [], 32),
        (-2, ["MaxPool2d of 4"], 32),
    ],
)
def test_a_level_has_the_layers_of_vitdet(
    doublings: int, resampling: list[str], width: int
) -> None:
    layers = []
    level = make_level(32, doublings, 12)
    for layer in level:
        sizes = [str(parameter.shape[-1]) for parameter in layer.parameters()][1:]
        pool = [f"of {layer.kernel_size}"] if isinstance(layer, nn.MaxPool2d) else []
        layers.append(" ".join([type(layer).__name__, *sizes, *pool]))
    assert layers == [*resampling, "Conv2d", "ChannelNorm 12", "Conv2d", "ChannelNorm 12"]
    pointwise, smooth = (layer for layer in level if isinstance(layer, nn.Conv2d))
    assert pointwise.weight.shape == (12, width, 1, 1)
    assert smooth.weight.shape == (12, 12, 3, 3)


def test_images_are_resized_for_patches_of_14_pixels_without_aliasing() -> None:
    pyramid, batch = make_pyramid("vit, patch 14"), images(image_size=(64, 96))
    seen: list[Tensor] = []
    pyramid.trunk.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    pyramid(batch)
    expected = nn.functional.interpolate(batch, (56, 84), mode="bilinear", antialias=True)
    assert deviation(seen[0], expected) < 1e-6


def test_levels_have_at_least_one_channel() -> None:
    assert FeaturePyramid(tiny("regnet"), 1)(images())["3"].shape == (2, 1, 2, 2)
    with pytest.raises(ConfigError, match="invalid out_channels 0: allowed: 1 or more"):
        FeaturePyramid(tiny("regnet"), 0)
