"""Feature pyramids on top of any model, in the form that torchvision's detectors expect.

Axes: N batch, C channels, H W pixels, h w grid, D feature channels of the backbone.
"""

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from swag_models.errors import check_maximum, check_minimum, check_types, plain
from swag_models.model_limits import LIMITS
from swag_models.models.backbone import Backbone
from swag_models.models.unwrap import refuse
from swag_models.models.vit import ViT

STRIDES = (4, 8, 16, 32)  # pixels per cell of each level


class FeaturePyramid(nn.Module):
    """A model with a feature pyramid, for images (N, C, H, W) of any size.

    It returns levels "0" to "3" and "pool": maps (N, out_channels, h, w) of stride 4 to 64, with
    ceil(H / stride) rows and ceil(W / stride) columns. For a RegNet or ResNet it is an FPN over its
    stages (arXiv 1612.03144); where it has fewer than four, the last map is pooled to the missing
    strides. For a ViT it is the simple pyramid of ViTDet from its last map (arXiv 2203.16527), with
    global attention in all blocks.

    Args:
        model: the backbone. It is used in place, not copied: its head is removed, and its frozen
            layers stay frozen.
        out_channels: channels of each level.
    """

    def __init__(self, model: Backbone, out_channels: int = 256) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        if not isinstance(model, Backbone):
            raise refuse(model, "build a pyramid on")
        out_channels = plain(out_channels)
        check_types(int, out_channels=out_channels)
        check_minimum(1, out_channels=out_channels)
        check_maximum(LIMITS["in_chans"][1], out_channels=out_channels)
        model.reset_classifier(None)
        self.trunk: Backbone = model
        self.out_channels = out_channels
        self.scale = 1.0
        self.neck: nn.Module
        if isinstance(model, ViT):
            stride = 2 ** round(math.log2(model.patch_size))
            # Strides are powers of 2: after shrinking an image to 14/16 of its size, a patch of 14
            # covers 16 of the original pixels.
            self.scale = model.patch_size / stride
            self.indices = [len(model.blocks) - 1]
            self.neck = SimplePyramid(model.num_features, stride, out_channels)
        else:
            self.indices = [
                index
                for index, level in enumerate(model.feature_info)
                if level["reduction"] in STRIDES
            ]
            widths = [model.feature_info[index]["num_chs"] for index in self.indices]
            widths += [widths[-1]] * (len(STRIDES) - len(widths))
            self.neck = FeaturePyramidNetwork(widths, out_channels)
        self.neck.to(next(model.parameters()))

    if TYPE_CHECKING:  # in nn.Module it returns Any

        def __call__(self, x: Tensor) -> OrderedDict[str, Tensor]: ...

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        height, width = self.trunk._check_input(x)
        # Pad to whole cells of the coarsest level; the levels are cut back below.
        x = F.pad(x, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        if self.scale != 1:
            size = [round(side * self.scale) for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        maps = self.trunk.forward_intermediates(x, self.indices, norm=True, intermediates_only=True)
        while len(maps) < len(STRIDES) and not isinstance(self.neck, SimplePyramid):
            maps.append(F.max_pool2d(maps[-1], 2))
        levels = self.neck(OrderedDict((str(index), x) for index, x in enumerate(maps)))
        for (name, level), stride in zip(levels.items(), STRIDES):
            levels[name] = level[:, :, : math.ceil(height / stride), : math.ceil(width / stride)]
        levels["pool"] = level[:, :, ::2, ::2]  # stride 64, of the last level
        return levels

    def freeze(self, up_to: str | None = None) -> None:
        """Exclude the backbone, or its first layers, from training; see `Backbone.freeze`."""
        self.trunk.freeze(up_to)

    def unfreeze(self) -> None:
        """Undo `freeze`."""
        self.trunk.unfreeze()


class SimplePyramid(nn.Module):
    """Compute one map for each of `STRIDES`, all directly from the same map (N, D, h, w).

    Args:
        width: channels of the map.
        stride: pixels per cell of the map, a power of 2.
        out_channels: channels of each level.
    """

    def __init__(self, width: int, stride: int, out_channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            make_level(width, math.log2(stride / target), out_channels) for target in STRIDES
        )

    def forward(self, maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        (last,) = maps.values()
        return OrderedDict((str(index), level(last)) for index, level in enumerate(self.levels))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map."""

    def forward(self, x: Tensor) -> Tensor:  # (N, C, h, w) -> (N, C, h, w)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def make_level(width: int, doublings: float, out_channels: int) -> nn.Sequential:
    """Build one level of a simple pyramid: resample, then a 1x1 and a 3x3 convolution.

    Args:
        width: input channels.
        doublings: number of times the resolution is doubled, or halved if negative.
        out_channels: output channels.
    """
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
