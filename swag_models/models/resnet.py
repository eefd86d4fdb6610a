"""ResNet and ResNeXt as in torchvision: residual blocks of convolutions, optionally grouped.

Axes: N batch, C channels, D feature channels, H W pixels, h w grid (H/32, W/32 at the end).
Parameter names are torchvision's, which are timm's too.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from swag_models.architectures import STEM_WIDTH, ResNetConfig
from swag_models.errors import check_types
from swag_models.models.arguments import check_num_classes, choose_pool, is_scripting
from swag_models.models.conv_net import ConvNet, activate, init_convolutions
from swag_models.models.drop_path import spread_rates
from swag_models.models.layers import Blocks
from swag_models.models.resnet_block import BasicBlock, Bottleneck
from swag_models.models.timm_interface import FeatureInfo
from swag_models.spec import Pool


class ResNet(ConvNet):
    """ResNet or ResNeXt: images (N, C, H, W) -> logits (N, num_classes), or features.

    Args:
        config: kind of block, depths and groups.
        num_classes: number of logits. Without a head it returns the feature map (N, D, h, w) for
            None, and pooled features (N, D) for 0, as timm's.
        image_size: (height, width) in pixels, each at least 32.
        in_chans: channels of the images.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block.
        global_pool: "avg", or "" for the feature map; None for what `num_classes` stands for.
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        num_classes: int | None,
        image_size: tuple[int, int],
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: Pool | None = None,
    ) -> None:
        check_types(ResNetConfig, config=config)
        super().__init__(
            config,
            config.stages[-1][0],
            num_classes,
            image_size,
            in_chans,
            drop_rate,
            global_pool,
        )
        self._check_size(*self.image_size)
        self.conv1 = nn.Conv2d(in_chans, STEM_WIDTH, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.act1 = nn.ReLU()
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.feature_info = FeatureInfo([{"num_chs": STEM_WIDTH, "reduction": 2, "module": "act1"}])
        layers: list[tuple[str, ...]] = [("conv1", "bn1")]
        rates = iter(spread_rates(drop_path_rate, sum(config.depths)))
        in_width = STEM_WIDTH
        stages: list[Blocks] = []
        for stage, ((width, depth), inner) in enumerate(
            zip(config.stages, config.inner_widths), start=1
        ):
            blocks = Blocks()
            for block in range(depth):
                stride = 2 if block == 0 and stage > 1 else 1
                blocks.append(_make_block(config, in_width, inner, width, stride, next(rates)))
                layers.append((f"layer{stage}.{block}",))
                in_width = width
            stages.append(blocks)
            self.feature_info.append(
                {"num_chs": width, "reduction": 2 ** (stage + 1), "module": f"layer{stage}"}
            )
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.layers = tuple(layers)
        self.head_drop = nn.Dropout(self.drop_rate)
        self.fc = make_head(in_width, self.num_classes)
        if not self.conv1.weight.is_meta:
            self.init_weights(needs_reset=False)

    def _init_published(self, *, head: bool) -> None:
        """Initialise as torchvision: convolutions N(0, 2/fan_out), others as torch does."""
        init_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature map (N, D, h, w) of images (N, C, H, W)."""
        x = self.maxpool(self._run_stem(self._to_channels_last(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.contiguous()

    def _run_stem(self, x: Tensor) -> Tensor:  # -> (N, 64, H/2, W/2)
        x = self.bn1(self.conv1(x))
        return self.act1(x) if is_scripting() else activate(x, self.act1, self.conv1, self.bn1)

    def _run_level(self, index: int, x: Tensor) -> Tensor:
        if index == 0:
            return self._run_stem(x)
        return super()._run_level(index, self.maxpool(x) if index == 1 else x)

    def _apply_head(self, x: Tensor) -> Tensor:
        return self.fc(self.head_drop(x))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int | None, global_pool: Pool | None = None) -> None:
        count = check_num_classes(num_classes)
        pool = choose_pool("resnet", num_classes, global_pool)
        self.fc = self._join_backbone(make_head(self.num_features, count), self.conv1.weight)
        self.num_classes, self.global_pool = count, pool

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        chosen = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if chosen[-1] == 0:  # the map of the stem is not pooled
            self.maxpool = nn.Identity()
        return chosen

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        check_types(bool, coarse=coarse)
        return {
            "stem": "^(conv1|bn1)",
            "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
        }


def make_head(width: int, num_classes: int) -> nn.Module:
    """Return a linear layer, or Identity for 0 classes.

    Args:
        width: channels of the pooled features.
        num_classes: number of logits.
    """
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def _make_block(
    config: ResNetConfig,
    in_width: int,
    inner_width: int,
    width: int,
    stride: int,
    drop_path_rate: float,
) -> nn.Module:
    if config.block == "basic":
        return BasicBlock(in_width, width, stride, drop_path_rate)
    return Bottleneck(in_width, inner_width, width, stride, config.groups, drop_path_rate)
