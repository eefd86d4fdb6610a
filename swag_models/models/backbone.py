"""What both families share: the interface (timm's names), input checks, stochastic depth.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from swag_models.errors import ConfigError
from swag_models.layouts import recognise_layout, translate_layout
from swag_models.spec import ModelSpec

M = TypeVar("M", bound=nn.Module)


class Backbone(nn.Module):
    """A trunk with an optional linear head.

    `num_features` is the channel count of the features, `num_classes` that of the logits (None: no head),
    `image_size` the (height, width) the model is made for.
    """

    num_features: int
    num_classes: int | None
    image_size: tuple[int, int]
    in_chans: int
    spec: ModelSpec | None = None  # where the model came from, if `load_model` made it

    def __init__(
        self, num_features: int, num_classes: int | None, image_size: tuple[int, int], in_chans: int, drop_rate: float
    ) -> None:
        super().__init__()
        check_num_classes(num_classes)
        if type(in_chans) is not int or in_chans < 1:
            raise ConfigError(f"in_chans is {in_chans!r}; give a positive number of channels")
        self.num_features = num_features
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self.head_drop = nn.Dropout(check_rate("drop_rate", drop_rate))

    def forward_features(self, x: Tensor) -> Tensor:
        """The trunk's features, before pooling and head."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features of `forward_features` -> logits (N, num_classes), or pooled features (N, D) if `pre_logits`."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int | None) -> None:
        """Put a fresh head of `num_classes` outputs in place; None or 0 for none."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, for a state dict in the swag, torchvision or timm layout (timm's names are the native ones).

        Names are translated; nothing is resized or replaced, as `load_model(weights=...)` does.
        """
        if recognise_layout(state_dict) is not None:
            state_dict = translate_layout(state_dict, "timm")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _join_trunk(self, head: M, weight: Tensor) -> M:
        """A fresh head on the trunk's device and dtype; real even if the trunk is still on meta, so that its init lasts."""
        return head if weight.is_meta else head.to(weight)

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        """(H, W) of a batch, or ConfigError."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ConfigError(f"input has shape {tuple(x.shape)}; expected (N, {self.in_chans}, H, W)")
        return x.shape[2], x.shape[3]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv 1603.09382): in training, drop a residual branch for whole samples."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) -> (N, ...)
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def spread_rates(rate: float, depth: int) -> list[float]:
    """Stochastic-depth rates growing linearly from 0 at the first layer to `rate` at the last."""
    check_rate("drop_path_rate", rate)
    return [rate * layer / max(depth - 1, 1) for layer in range(depth)]


def check_rate(name: str, rate: float) -> float:
    if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise ConfigError(f"{name} is {rate!r}; give a number from 0 up to, not including, 1")
    return rate


def check_num_classes(num_classes: int | None) -> None:
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise ConfigError(f"num_classes is {num_classes!r}; give a positive number, or None for no head")
