"""What the convolutional families share: stages that halve a feature map, pooling, channels last.

Axes: N batch, C channels, D feature channels, H W pixels, h w grid (H/32, W/32 at the end).
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
    choose_levels,
    has_global_hooks,
    is_scripting,
    is_symbolic,
    is_wrapped,
)
from swag_models.models.backbone import Backbone
from swag_models.models.timm_interface import FeatureInfo
from swag_models.spec import ImageSize

if TYPE_CHECKING:
    from typing_extensions import Unpack

MIN_SIZE = 32  # pixels; the last feature map then has one cell


class ConvNet(Backbone):
    """A convolutional backbone: images (N, C, H, W) -> logits, or features without a head.

    Subclasses set `feature_info`, whose first module ends the stem and whose others are stages.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature map (N, D, h, w) of images (N, C, H, W)."""
        raise NotImplementedError

    def _run_level(self, index: int, x: Tensor) -> Tensor:
        """Return the map of `feature_info[index]` from the one before, or from images."""
        # getattr: Dynamo of torch 2.6 rejects get_submodule
        level: nn.Module = getattr(self, self.feature_info[index]["module"])
        result: Tensor = level(x)
        return result

    def _apply_head(self, x: Tensor) -> Tensor:  # (N, D) -> (N, num_classes)
        raise NotImplementedError

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
        subject = f" for a {type(self).__name__}"
        check_choice("output_fmt", output_fmt, *self.output_formats, subject=subject)
        chosen = choose_levels(indices, len(self.feature_info))
        maps = []
        x = self._to_channels_last(x)
        for index in range(len(self.feature_info)):
            if stop_early and index > chosen[-1]:
                break
            x = self._run_level(index, x)
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
        return x if pre_logits else self._apply_head(x)

    def forward(self, x: Tensor) -> Tensor:  # -> (N, num_classes), (N, D) or (N, D, h, w)
        x = self.forward_features(x)
        return self.forward_head(x) if self.global_pool else x

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
            removed = {level["module"] for level in self.feature_info[last:]}
            self.feature_info = FeatureInfo(self.feature_info[:last])
            self.layers = tuple(
                layer for layer in self.layers if layer[0].split(".")[0] not in removed
            )
            self.frozen = tuple(part for part in self.frozen if part.split(".")[0] not in removed)
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
            raise ConfigError(
                f"patch_size is {describe(patch_size)}; a {type(self).__name__} has no patches"
            )
        if img_size is not None:
            size = check_image_size(img_size)
            self._check_size(*size)
            self.image_size = size
            self.update_pretrained_cfg()

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
                f"a {type(self).__name__} needs at least {MIN_SIZE}x{MIN_SIZE}"
            )


torch.fx.wrap("to_channels_last")  # one node of a traced graph, because it depends on the device


def to_channels_last(x: Tensor) -> Tensor:
    """On the CPU, convert images (N, C, H, W) to the channels-last memory format."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def init_convolutions(model: nn.Module) -> None:
    """Initialise convolutions with N(0, 2/fan_out), as torchvision (He et al., arXiv 1502.01852).

    Args:
        model: its batch norms keep torch's default, weight 1 and bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


def activate(x: Tensor, act: nn.Module, *before: nn.Module) -> Tensor:
    """Apply an activation; ReLU writes into its input if possible, which saves memory traffic.

    Nobody else may hold this tensor: hooks may have kept it, and so may a traced graph.

    Args:
        x: a new tensor, unless `before` says otherwise.
        act: the activation.
        before: the modules that computed `x`; if given, the first is a convolution, or something
            that may have returned its input.
    """
    if (
        not torch.compiler.is_compiling()  # first: Dynamo cannot trace the next
        and torch.is_inference_mode_enabled()
        and isinstance(act, nn.ReLU)
        and (not before or isinstance(before[0], nn.Conv2d))  # its output is a new tensor
        and not any(module._forward_hooks or module._forward_pre_hooks for module in (*before, act))
        and not has_global_hooks()
        and not is_symbolic(x)
    ):
        return x.relu_()
    result: Tensor = act(x)
    return result
