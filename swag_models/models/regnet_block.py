"""The layers of a RegNetY, with timm's names: convolution with norm, squeeze-excite, block.

Axes: N batch, C channels, H W pixels.
"""

from torch import Tensor, nn

from swag_models.models.arguments import is_scripting
from swag_models.models.conv_net import activate
from swag_models.models.drop_path import DropPath


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm and optionally ReLU.

    Args:
        in_width: input channels.
        width: output channels.
        kernel: side of the kernel in pixels.
        stride: stride of the convolution.
        groups: groups of the convolution.
        act: apply ReLU; False at the end of a branch.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_width, width, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return self.act(x) if is_scripting() else activate(x, self.act, self.conv, self.bn)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means (Hu et al., arXiv 1709.01507).

    Args:
        width: channels.
        squeeze_width: channels of the bottleneck between the two layers.
    """

    def __init__(self, width: int, squeeze_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeeze_width, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(squeeze_width, width, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        means = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        return x * self.gate(self.fc2(self.act(self.fc1(means))))


class RegNetBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions with squeeze-excite, added to the input.

    Args:
        in_width: input channels.
        width: output channels.
        stride: stride of the 3x3 convolution.
        group_width: channels per group.
        se_ratio: channels of the squeeze-excite bottleneck per input channel.
        drop_path_rate: stochastic depth of the branch.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        stride: int,
        group_width: int,
        se_ratio: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_width, width)
        self.conv2 = ConvNorm(
            width, width, kernel=3, stride=stride, groups=width // min(group_width, width)
        )
        self.se = SqueezeExcite(width, round(se_ratio * in_width))
        self.conv3 = ConvNorm(width, width, act=False)
        # The shortcut is a projection where the shape changes.
        reshapes = in_width != width or stride != 1
        self.downsample = (
            ConvNorm(in_width, width, stride=stride, act=False) if reshapes else nn.Identity()
        )
        self.drop_path = DropPath(drop_path_rate)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C', H / stride, W / stride)
        branch = self.drop_path(self.conv3(self.se(self.conv2(self.conv1(x)))))
        x = branch + self.downsample(x)
        return self.act(x)
