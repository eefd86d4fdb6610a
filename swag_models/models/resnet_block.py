"""The blocks of a ResNet, with torchvision's names, which are timm's too.

Axes: N batch, C channels, H W pixels.
"""

from torch import Tensor, nn

from swag_models.models.arguments import is_scripting
from swag_models.models.conv_net import activate
from swag_models.models.drop_path import DropPath


class Shortcut(nn.Sequential):
    """The projection of a block's input: 1x1 convolution and batch norm.

    Args:
        in_width: input channels.
        width: output channels.
        stride: of the convolution.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_width, width, 1, stride, bias=False),
            nn.BatchNorm2d(width),
        )


def make_shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    """Return a projection where the shape changes, otherwise Identity."""
    if in_width == width and stride == 1:
        return nn.Identity()
    return Shortcut(in_width, width, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input (He et al., arXiv 1512.03385).

    Args:
        in_width: input channels.
        width: output channels.
        stride: stride of the first convolution.
        drop_path_rate: stochastic depth of the branch.
    """

    def __init__(self, in_width: int, width: int, stride: int, drop_path_rate: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(in_width, width, stride)
        self.drop_path = DropPath(drop_path_rate)
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C', H / stride, W / stride)
        y = self.bn1(self.conv1(x))
        y = self.act1(y) if is_scripting() else activate(y, self.act1, self.conv1, self.bn1)
        y = self.drop_path(self.bn2(self.conv2(y))) + self.downsample(x)
        return self.act2(y) if is_scripting() else activate(y, self.act2)


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, added to the input.

    As in torchvision, and unlike in the paper, the 3x3 convolution has the stride.

    Args:
        in_width: input channels.
        inner_width: channels of the 3x3 convolution.
        width: output channels.
        stride: stride of the 3x3 convolution.
        groups: groups of the 3x3 convolution (Xie et al., arXiv 1611.05431).
        drop_path_rate: stochastic depth of the branch.
    """

    def __init__(
        self,
        in_width: int,
        inner_width: int,
        width: int,
        stride: int,
        groups: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, inner_width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_width)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(
            inner_width, inner_width, 3, stride, padding=1, groups=groups, bias=False
        )
        self.bn2 = nn.BatchNorm2d(inner_width)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner_width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(in_width, width, stride)
        self.drop_path = DropPath(drop_path_rate)
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C', H / stride, W / stride)
        y = self.bn1(self.conv1(x))
        y = self.act1(y) if is_scripting() else activate(y, self.act1, self.conv1, self.bn1)
        y = self.bn2(self.conv2(y))
        y = self.act2(y) if is_scripting() else activate(y, self.act2, self.conv2, self.bn2)
        y = self.drop_path(self.bn3(self.conv3(y))) + self.downsample(x)
        return self.act3(y) if is_scripting() else activate(y, self.act3)
