"""A feature pyramid on top of any model, as torchvision's detectors expect one.

Axes: N batch, C channels, H W pixels, h w grid, D the trunk's width.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from swag_models.models.backbone import Backbone
from swag_models.models.vit import ViT

STRIDES = (4, 8, 16, 32)  # pixels from one cell of a level to the next


class FeaturePyramid(nn.Module):
    """Images (N, C, H, W) of any size -> levels "0" to "3" and "pool", maps (N, out_channels, h, w) of stride 4 to 64.

    A level has ceil(H / stride) rows and ceil(W / stride) columns. A RegNet's stages become an FPN (arXiv 1612.03144); the last
    map of a ViT becomes the simple pyramid of ViTDet (arXiv 2203.16527), all attention being global. `model` is
    used as it is, as `trunk`, without its head; what is frozen in it stays so.
    """

    def __init__(self, model: Backbone, out_channels: int = 256) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        model.reset_classifier(None)
        self.trunk = model
        self.out_channels = out_channels
        self.scale = 1.0
        self.neck: nn.Module
        if isinstance(model, ViT):
            stride = 2 ** round(math.log2(model.patch_size))
            self.scale = (
                model.patch_size / stride
            )  # patches of 14 cover 16 pixels of an image that is shrunk to 14/16
            self.indices = [len(model.blocks) - 1]
            self.neck = SimplePyramid(model.num_features, stride, out_channels)
        else:
            self.indices = [
                index
                for index, level in enumerate(model.feature_info)
                if level["reduction"] in STRIDES
            ]
            self.neck = FeaturePyramidNetwork(
                [model.feature_info[index]["num_chs"] for index in self.indices], out_channels
            )
        self.neck.to(next(model.parameters()))

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        if self.scale != 1:
            size = [round(side * self.scale) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        maps = self.trunk.forward_intermediates(x, self.indices, norm=True, intermediates_only=True)
        levels = self.neck(OrderedDict((str(level), each) for level, each in enumerate(maps)))
        for (name, level), stride in zip(levels.items(), STRIDES):
            levels[name] = level[:, :, : math.ceil(height / stride), : math.ceil(width / stride)]
        levels["pool"] = level[:, :, ::2, ::2]
        return levels


class SimplePyramid(nn.Module):
    """One map (N, D, h, w) -> maps (N, out_channels, ., .) of all strides, each computed from it alone."""

    def __init__(self, width: int, stride: int, out_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            make_level(width, math.log2(stride / target), out_channels) for target in STRIDES
        )

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        (last,) = maps.values()
        return OrderedDict((str(index), level(last)) for index, level in enumerate(self.levels))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell."""

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, h, w)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_level(width: int, doublings: float, out_channels: int) -> nn.Sequential:
    """Doubles the resolution so often, or halves it if negative, then mixes channels and neighbours."""
    steps: list[nn.Module] = []
    for doubling in range(int(doublings)):
        steps += [ChannelNorm(width), nn.GELU()] if doubling else []
        steps.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width //= 2
    if doublings < 0:
        steps.append(nn.MaxPool2d(2 ** int(-doublings)))
    for in_width, kernel in ((width, 1), (out_channels, 3)):
        steps += [
            nn.Conv2d(in_width, out_channels, kernel, padding=kernel // 2, bias=False),
            ChannelNorm(out_channels),
        ]
    return nn.Sequential(*steps)
