"""Tiny models for tests, with random values in every tensor, and a measure of deviation."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.regnet import BlockParams
from torchvision.models.regnet import RegNet as TorchvisionRegNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vision_transformer import VisionTransformer

from swag_models.api import SPECS, load_model
from swag_models.architectures import Config, RegNetConfig, ResNetConfig, ViTConfig
from swag_models.models import build
from swag_models.spec import ImageSize, ModelSpec, Preprocess

M = TypeVar("M", bound=nn.Module)

VIT = ViTConfig(patch_size=8, depth=2, width=32, num_heads=4, mlp_width=64)
REGNET = RegNetConfig(depth=8, w_0=16, w_a=12.0, w_m=2.0, group_width=8)
RESNET = ResNetConfig("bottleneck", (1, 2, 1, 1), groups=4, group_width=4)
# For tests in which each block takes a second
SMALL_REGNET = RegNetConfig(depth=3, w_0=16, w_a=32.0, w_m=2.0, group_width=8)
CONFIGS: dict[str, Config] = {"vit": VIT, "regnet": REGNET, "resnet": RESNET}
IMAGE_SIZE = 64

VIT_SPEC = replace(
    SPECS["vit_b16_in1k"],
    name="tiny_vit",
    config=VIT,
    preprocess=Preprocess(IMAGE_SIZE),
    num_classes=10,
    sources=(),
)
REGNET_SPEC = replace(VIT_SPEC, name="tiny_regnet", config=REGNET)
RESNET_SPEC = replace(VIT_SPEC, name="tiny_resnet", config=RESNET)
TINY_SPECS: dict[str, ModelSpec] = {
    "vit": VIT_SPEC,
    "regnet": REGNET_SPEC,
    "resnet": RESNET_SPEC,
}


def tiny(
    family: str, num_classes: int | None = 10, image_size: ImageSize = IMAGE_SIZE, **options: Any
) -> Any:
    """Build a tiny model in eval mode with random values in every tensor."""
    return randomise(
        build(CONFIGS[family], num_classes=num_classes, image_size=image_size, **options)
    ).eval()


def load_tiny(family: str = "vit", **options: Any) -> Any:
    """Make the same model with `load_model`, so that it has a spec."""
    return randomise(
        load_model(replace(TINY_SPECS[family], classes=None), pretrained=False, **options)
    )


@torch.no_grad()
def randomise(model: M) -> M:
    """Fill every tensor with random values, so that each has a distinct effect on the output."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim == 1:
            tensor.normal_(std=0.1)
        elif tensor.ndim == 3:  # class token and positions
            tensor.normal_(std=0.5)
        else:
            tensor.normal_(std=1 / math.sqrt(tensor[0].numel()))
    return model


def images(count: int = 2, image_size: ImageSize = IMAGE_SIZE, in_chans: int = 3) -> Tensor:
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    return torch.randn(count, in_chans, *size)


def deviation(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference, in standard deviations of the reference."""
    assert ours.shape == reference.shape
    return float((ours - reference).detach().abs().max() / reference.detach().std())


def torchvision_twin(
    config: Config, num_classes: int, image_size: int, device: str = "cpu"
) -> nn.Module:
    """Return torchvision's module of the same shape, in eval mode."""
    if isinstance(config, ViTConfig):
        with torch.device(device):
            return VisionTransformer(
                image_size=image_size,
                patch_size=config.patch_size,
                num_layers=config.depth,
                num_heads=config.num_heads,
                hidden_dim=config.width,
                mlp_dim=config.mlp_width,
                num_classes=num_classes,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            ).eval()
    if isinstance(config, ResNetConfig):
        block: Any = BasicBlock if config.block == "basic" else Bottleneck
        with torch.device(device):
            return TorchvisionResNet(
                block,
                list(config.depths),
                num_classes,
                groups=config.groups,
                width_per_group=config.group_width,
            ).eval()
    shape = BlockParams.from_init_params(
        depth=config.depth,
        w_0=config.w_0,
        w_a=config.w_a,
        w_m=config.w_m,
        group_width=config.group_width,
        se_ratio=config.se_ratio,
    )
    with torch.device(device):
        return TorchvisionRegNet(
            shape, num_classes, norm_layer=partial(nn.BatchNorm2d, eps=1e-5)
        ).eval()


def add_lora(model: Any, target: str = "qkv") -> Any:
    """The model with adapters of PEFT; skips the test where PEFT is not installed."""
    peft = pytest.importorskip("peft")  # it does not support the lowest versions
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=[target]))
