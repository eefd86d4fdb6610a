"""Frozen dataclasses of architectures: their dimensions, checked. Imports no torch."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from swag_models.errors import ConfigError, check_choice
from swag_models.model_limits import LIMITS, check_numbers, check_params

STEM_WIDTH = 64  # of a ResNet, in channels


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a Vision Transformer (Dosovitskiy et al., arXiv 2010.11929).

    Args:
        patch_size: side of a patch in pixels.
        depth: number of blocks.
        width: dimension of a token.
        num_heads: attention heads per block.
        mlp_width: hidden dimension of the MLP in each block.
    """

    family: ClassVar[str] = "vit"
    patch_size: int
    depth: int
    width: int
    num_heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        check_numbers(self)
        check_params(self.depth * self.width * (4 * self.width + 2 * self.mlp_width))


@dataclass(frozen=True)
class RegNetConfig:
    """Architecture of a RegNetY (Radosavovic et al., arXiv 2003.13678), by its width rule.

    Args:
        depth: number of blocks in all stages.
        w_0: width of the first block before quantisation, in channels.
        w_a: channels by which the width grows per block.
        w_m: ratio of the widths of two stages.
        group_width: channels per group of the 3x3 convolutions.
        se_ratio: channels of the squeeze-excite bottleneck per input channel of its block.
        stem_width: output channels of the stem.
    """

    family: ClassVar[str] = "regnet"
    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int
    se_ratio: float = 0.25
    stem_width: int = 32

    def __post_init__(self) -> None:
        check_numbers(self)
        if (widest := self.stages[-1][0]) > LIMITS["width"][1]:
            raise ConfigError(
                f"w_0, w_a and w_m give a width of {widest:,}; "
                f"allowed: at most {LIMITS['width'][1]:,}"
            )
        check_params(sum(depth * 2 * width**2 for width, depth in self.stages))

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(width, depth) of each stage.

        Block j has width w_0 + w_a * j, quantised to the nearest w_0 * w_m ** k in log space
        (section 3.3 of the paper). Blocks of equal width form a stage.
        """
        widths = []
        for block in range(self.depth):
            power = round(math.log((self.w_0 + self.w_a * block) / self.w_0) / math.log(self.w_m))
            width = round(self.w_0 * self.w_m**power / 8) * 8
            group_width = min(self.group_width, width)
            widths.append(round(width / group_width) * group_width)  # whole groups
        # Widths never fall from one block to the next, so sorting keeps the order of the stages.
        return tuple((width, widths.count(width)) for width in sorted(set(widths)))


@dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a ResNet (arXiv 1512.03385) or ResNeXt (arXiv 1611.05431).

    Args:
        block: "basic" has two 3x3 convolutions, "bottleneck" one between two 1x1 convolutions.
        depths: number of blocks in each of the four stages.
        groups: of the 3x3 convolutions.
        group_width: channels of a group in the first stage; twice as many in each further one.
    """

    family: ClassVar[str] = "resnet"
    block: Literal["basic", "bottleneck"]
    depths: tuple[int, int, int, int]
    groups: int = 1
    group_width: int = 64

    def __post_init__(self) -> None:
        check_choice("block", self.block, "basic", "bottleneck")
        check_numbers(self)
        if self.block == "basic" and (self.groups, self.group_width) != (1, 64):
            raise ConfigError(
                f"groups is {self.groups} and group_width {self.group_width}; basic blocks have "
                "one group of 64 channels, leave both out or choose bottleneck"
            )
        if (widest := 8 * self.groups * self.group_width) > LIMITS["width"][1]:
            raise ConfigError(
                f"groups and group_width give a width of {widest:,}; "
                f"allowed: at most {LIMITS['width'][1]:,}"
            )
        pairs = zip(self.stages, self.inner_widths)
        check_params(sum(depth * 2 * width * inner for (width, depth), inner in pairs))

    @property
    def expansion(self) -> int:
        """Output channels of a block per channel of an ungrouped 3x3 convolution."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """(width, depth) of each stage."""
        return tuple(
            (STEM_WIDTH * self.expansion * 2**stage, depth)
            for stage, depth in enumerate(self.depths)
        )

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels of the 3x3 convolutions in each stage."""
        return tuple(self.groups * self.group_width * 2**stage for stage in range(4))


Config = ViTConfig | RegNetConfig | ResNetConfig


def keep_few_blocks(config: Config) -> Config:
    """Return an architecture of equal widths with as few blocks as possible."""
    if isinstance(config, ResNetConfig):
        return replace(config, depths=(1, 1, 1, 1))
    return replace(config, depth=1)
