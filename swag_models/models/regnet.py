"""RegNetY as in the SWAG models: residual blocks with grouped convolutions and squeeze-excite.

Axes: N batch, C channels, D feature channels, H W pixels, h w grid (H/32, W/32 at the end).
Parameter names are timm's.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from swag_models.errors import ConfigError, check_choice, check_types
from swag_models.formatting import describe
from swag_models.models.arguments import (
    Levels,
    MapOptions,
    check_image_size,
    check_num_classes,
    choose_levels,
    choose_pool,
    is_scripting,
    is_symbolic,
    is_wrapped,
)
from swag_models.models.backbone import Backbone
from swag_models.models.drop_path import spread_rates
from swag_models.models.layers import Blocks
from swag_models.models.regnet_block import ConvNorm, RegNetBlock
from swag_models.models.timm_interface import FeatureInfo
from swag_models.spec import ImageSize, Pool, RegNetConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

MIN_SIZE = 32  # pixels; the last feature map then has one cell


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


class RegNet(Backbone):
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
        """Initialise as published: convolutions N(0, 2/fan_out), head N(0, 0.01^2).

        Batch norms keep torch's default, weight 1 and bias 0.
        """
        if head:
            self.head.init_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature map (N, D, h, w) of images (N, C, H, W)."""
        x = self._to_channels_last(x)
        if is_scripting():  # TorchScript has no getattr; it unrolls this loop
            for name, module in self.named_children():
                if name.startswith("s"):  # stem, s1, s2, ...
                    x = module(x)
        else:
            for level in self.feature_info:  # getattr: Dynamo of torch 2.6 rejects get_submodule
                x = getattr(self, level["module"])(x)
        return x.contiguous()

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        *,
        intermediates_only: Literal[True],
        output_dict: Literal[False] = False,
        **options: "Unpack[MapOptions]",
    ) -> list[Tensor]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        *,
        intermediates_only: Literal[False] = False,
        output_dict: Literal[False] = False,
        **options: "Unpack[MapOptions]",
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward_intermediates(
        self,
        x: Tensor,
        indices: Levels = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Return the feature map (N, D, h, w), and the maps after the stem (0) and stages (from 1).

        Arguments as in `Backbone.forward_intermediates`; `norm` has no effect, because all maps are
        outputs of batch norms.
        """
        check_types(bool, norm=norm, stop_early=stop_early, intermediates_only=intermediates_only)
        check_types(bool, output_dict=output_dict)
        check_choice("output_fmt", output_fmt, *self.output_formats, subject=" for a RegNet")
        chosen = choose_levels(indices, len(self.feature_info))
        maps = []
        x = self._to_channels_last(x)
        for index, level in enumerate(self.feature_info):
            if stop_early and index > chosen[-1]:
                break
            x = getattr(self, level["module"])(x)
            if index in chosen:
                maps.append(x.contiguous())
        if output_dict:
            features = {} if intermediates_only else {"image_features": x.contiguous()}
            return {"image_intermediates": maps, **features}
        return maps if intermediates_only else (x.contiguous(), maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) of a feature map (N, D, h, w).

        Args:
            x: output of `forward_features`.
            pre_logits: return pooled features (N, D) instead, also if the model itself returns
                the feature map.
        """
        if not is_scripting():
            check_types(bool, pre_logits=pre_logits)
            self._check_features(x, "a feature map (N, D, h, w)", 4)
        x = x.mean((2, 3))  # (N, D)
        return x if pre_logits else self.head(self.head_drop(x))

    def forward(self, x: Tensor) -> Tensor:  # -> (N, num_classes), (N, D) or (N, D, h, w)
        x = self.forward_features(x)
        return self.forward_head(x) if self.global_pool else x

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int | None, global_pool: Pool | None = None) -> None:
        count = check_num_classes(num_classes)
        pool = choose_pool("regnet", num_classes, global_pool)
        self.head = self._join_backbone(Head(self.num_features, count), self.stem.conv.weight)
        self.num_classes, self.global_pool = count, pool

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        check_types(bool, prune_norm=prune_norm, prune_head=prune_head)
        chosen = choose_levels(indices, len(self.feature_info))
        last = chosen[-1] + 1
        for level in self.feature_info[last:]:
            self.add_module(level["module"], nn.Identity())
        if last < len(self.feature_info):
            self.feature_info = FeatureInfo(self.feature_info[:last])
            kept = {level["module"] for level in self.feature_info}
            self.layers = tuple(layer for layer in self.layers if layer[0].split(".")[0] in kept)
            self.frozen = tuple(part for part in self.frozen if part.split(".")[0] in kept)
            # The head needs the features of the removed stages.
            self.num_features = self.head_hidden_size = self.feature_info[-1]["num_chs"]
            prune_head = True
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def set_input_size(
        self, img_size: ImageSize | None = None, patch_size: ImageSize | None = None
    ) -> None:
        if patch_size is not None:
            raise ConfigError(f"patch_size is {describe(patch_size)}; a RegNet has no patches")
        if img_size is not None:
            size = check_image_size(img_size)
            self._check_size(*size)
            self.image_size = size
            self.update_pretrained_cfg()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        check_types(bool, coarse=coarse)
        return {"stem": "^stem", "blocks": r"^s(\d+)" if coarse else r"^s(\d+)\.b(\d+)"}

    def _to_channels_last(self, x: Tensor) -> Tensor:
        """Check images; on the CPU, convert them to the channels-last memory format.

        On the CPU, oneDNN's convolutions are then 1.2 to 1.4 times faster, whatever the format of
        the weights.
        """
        if not is_scripting():
            self._check_images(x)
            if is_wrapped(x):
                return x
        return to_channels_last(x)

    def _check_images(self, x: Tensor) -> None:
        """Raise ConfigError unless `x` is a batch of images that are large enough."""
        if not is_symbolic(x):
            self._check_size(*self._check_input(x))

    def _check_size(self, height: int, width: int) -> None:
        """Raise ConfigError if an image is smaller than the total stride."""
        if min(height, width) < MIN_SIZE:
            raise ConfigError(
                f"image size {height}x{width} is too small; "
                f"a RegNet needs at least {MIN_SIZE}x{MIN_SIZE}"
            )


torch.fx.wrap("to_channels_last")  # one node of a traced graph, because it depends on the device


def to_channels_last(x: Tensor) -> Tensor:
    """On the CPU, convert images (N, C, H, W) to the channels-last memory format."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x
