"""RegNetY as in the SWAG models: residual blocks with grouped convolutions and squeeze-excite.

Axes: N batch, C channels, D feature channels, H W pixels, h w grid (H/32, W/32 at the end).
Parameter names are timm's.
"""

from typing import Any

from torch import Tensor, nn

from swag_models.architectures import RegNetConfig
from swag_models.errors import check_types
from swag_models.models.arguments import check_num_classes, choose_pool, is_scripting
from swag_models.models.conv_net import ConvNet, init_convolutions
from swag_models.models.drop_path import spread_rates
from swag_models.models.layers import Blocks
from swag_models.models.regnet_block import ConvNorm, RegNetBlock
from swag_models.models.timm_interface import FeatureInfo
from swag_models.spec import Pool


class Head(nn.Module):
    """Linear layer for pooled features, named as in timm.

    Args:
        width: channels of the pooled features.
        num_classes: number of logits; 0 for no layer.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(width, num_classes)
            if not self.fc.weight.is_meta:
                self.init_weights()

    def init_weights(self) -> None:
        """Initialise as published: N(0, 0.01^2)."""
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, D) -> (N, num_classes)
        return self.fc(x)


class RegNet(ConvNet):
    """RegNetY: images (N, C, H, W) -> logits (N, num_classes), or features without a head.

    Args:
        config: widths and depths.
        num_classes: number of logits. Without a head it returns the feature map (N, D, h, w) for
            None, as the original, and pooled features (N, D) for 0, as timm's.
        image_size: (height, width) in pixels, each at least 32.
        in_chans: channels of the images.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block.
        global_pool: "avg", or "" for the feature map; None for what `num_classes` stands for.
    """

    def __init__(
        self,
        config: RegNetConfig,
        *,
        num_classes: int | None,
        image_size: tuple[int, int],
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: Pool | None = None,
    ) -> None:
        check_types(RegNetConfig, config=config)
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
        self.stem = ConvNorm(in_chans, config.stem_width, kernel=3, stride=2)
        rates = iter(spread_rates(drop_path_rate, config.depth))
        in_width = config.stem_width
        self.feature_info = FeatureInfo([{"num_chs": in_width, "reduction": 2, "module": "stem"}])
        layers = ["stem"]
        for stage, (width, depth) in enumerate(config.stages, start=1):
            blocks = Blocks()
            for block in range(1, depth + 1):
                stride = 2 if block == 1 else 1
                module = RegNetBlock(
                    in_width, width, stride, config.group_width, config.se_ratio, next(rates)
                )
                blocks.add_module(f"b{block}", module)
                layers.append(f"s{stage}.b{block}")
                in_width = width
            self.add_module(f"s{stage}", blocks)
            self.feature_info.append(
                {"num_chs": width, "reduction": 2 ** (stage + 1), "module": f"s{stage}"}
            )
        self.layers = tuple((layer,) for layer in layers)
        self.head_drop = nn.Dropout(self.drop_rate)
        self.head = Head(in_width, self.num_classes)
        if not self.stem.conv.weight.is_meta:
            self.init_weights(needs_reset=False)

    def _init_published(self, *, head: bool) -> None:
        """Initialise as published: convolutions N(0, 2/fan_out), head N(0, 0.01^2)."""
        if head:
            self.head.init_weights()
        init_convolutions(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature map (N, D, h, w) of images (N, C, H, W)."""
        x = self._to_channels_last(x)
        if is_scripting():  # TorchScript has no getattr; it unrolls this loop
            for name, module in self.named_children():
                if name.startswith("s"):  # stem, s1, s2, ...
                    x = module(x)
        else:
            for index in range(len(self.feature_info)):
                x = self._run_level(index, x)
        return x.contiguous()

    def _apply_head(self, x: Tensor) -> Tensor:
        return self.head(self.head_drop(x))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int | None, global_pool: Pool | None = None) -> None:
        count = check_num_classes(num_classes)
        pool = choose_pool("regnet", num_classes, global_pool)
        self.head = self._join_backbone(Head(self.num_features, count), self.stem.conv.weight)
        self.num_classes, self.global_pool = count, pool

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        check_types(bool, coarse=coarse)
        return {"stem": "^stem", "blocks": r"^s(\d+)" if coarse else r"^s(\d+)\.b(\d+)"}
