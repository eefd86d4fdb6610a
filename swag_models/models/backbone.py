"""What both families share: the interface (timm's names), input checks, stochastic depth.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from torch import Tensor, nn

from swag_models.errors import ConfigError
from swag_models.layouts import recognise_layout, translate_layout
from swag_models.models.layers import Blocks
from swag_models.spec import ModelSpec

B = TypeVar("B", bound="Backbone")
M = TypeVar("M", bound=nn.Module)


class Backbone(nn.Module):
    """A trunk with an optional linear head.

    `num_features` is the channel count of the features, `num_classes` that of the logits (None: no head),
    `image_size` the (height, width) the model is made for. `layers` names the parts of the trunk in the order that images
    pass them, a tuple for each layer. `feature_info` says of each map of `forward_intermediates` its channels (`num_chs`),
    how many pixels one of its cells is wide (`reduction`) and the module it comes from.
    """

    layers: tuple[tuple[str, ...], ...]
    feature_info: list[dict[str, Any]]
    num_features: int
    num_classes: int | None
    image_size: tuple[int, int]
    in_chans: int
    spec: ModelSpec | None = None  # where the model came from, if `load_model` made it

    def __init__(
        self,
        num_features: int,
        num_classes: int | None,
        image_size: tuple[int, int],
        in_chans: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.frozen: tuple[str, ...] = ()
        check_num_classes(num_classes)
        if type(in_chans) is not int or in_chans < 1:
            raise ConfigError(f"in_chans is {in_chans!r}; give a positive number of channels")
        self.num_features = self.head_hidden_size = (
            num_features  # timm's name for what a head is given
        )
        self.num_classes = num_classes
        self.image_size = image_size
        self.in_chans = in_chans
        self.drop_rate = check_rate("drop_rate", drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """The trunk's features, before pooling and head."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features of `forward_features` -> logits (N, num_classes), or pooled features (N, D) if `pre_logits`."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Images -> (features, maps): those of `forward_features`, and feature maps on the way to them.

        indices: which of `feature_info`: the last n for an int, all for None, or positions, negative ones from the end.
        stop_early: run nothing above the last of them; the features are then those so far.
        intermediates_only: return the list of maps alone.
        """
        raise NotImplementedError

    def forward_attention(
        self, x: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Images -> attention maps of the blocks chosen as in `forward_intermediates`; ConfigError where there is none."""
        raise ConfigError(
            f"a {type(self).__name__} has no attention maps; a ViT has, and Grad-CAM works for both"
        )

    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int | None, global_pool: Any = None) -> None:
        """Put a fresh head of `num_classes` outputs in place, None or 0 for none; `global_pool` as in `build`, or kept."""
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort parameters into layers, as timm's optimizers read them; `coarse` for whole stages."""
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone, beside biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more time."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.grad_checkpointing = enable

    def freeze(self, up_to: str | None = None) -> None:
        """Stop training the trunk, or its parts up to and including `up_to`: "blocks.5", "s3", or any other of `layers`.

        Their parameters get no gradients, and their batch norm, dropout and stochastic depth stay as in evaluation, whatever
        `train()` is told. Freezing adds to what is frozen; the head is not part of it. ConfigError lists the names.
        """
        ends: dict[str, int] = {}
        for end, part in enumerate(part for layer in self.layers for part in layer):
            ends[part.split(".")[0]] = ends[part] = end  # a stage ends with its last block
        if up_to is not None and up_to not in ends:
            raise ConfigError(
                f"up_to is {up_to!r}; allowed: {', '.join(ends)}, or None for the whole trunk"
            )
        last = max(ends.values()) if up_to is None else ends[up_to]
        self.frozen = max(
            self.frozen, tuple(part for part, end in ends.items() if end <= last), key=len
        )
        for part in self.frozen:
            attrgetter(part)(self).requires_grad_(False)
        self.train(self.training)

    def unfreeze(self) -> None:
        """Train again what `freeze` stopped."""
        for part in self.frozen:
            attrgetter(part)(self).requires_grad_(True)
        self.frozen = ()
        self.train(self.training)

    def train(self: B, mode: bool = True) -> B:
        """As torch's, except for what is frozen."""
        super().train(mode)
        for part in self.frozen:
            if isinstance(module := attrgetter(part)(self), nn.Module):
                module.eval()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's, for a state dict in the swag, torchvision or timm layout (timm's names are the native ones).

        Names are translated; nothing is resized or replaced, as `load_model(weights=...)` does.
        """
        if recognise_layout(state_dict) is not None:
            state_dict = translate_layout(state_dict, "timm")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _join_trunk(self, head: M, weight: Tensor) -> M:
        """A fresh head on the trunk's device and dtype; real even if the trunk is still on meta, so that its init lasts."""
        head.train(self.training)
        return head if weight.is_meta else head.to(weight)

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        """(H, W) of a batch, or ConfigError."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ConfigError(f"input is {what}; give load_preprocess(name)(picture).unsqueeze(0)")
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ConfigError(
                f"input has shape {tuple(x.shape)}; expected (N, {self.in_chans}, H, W)"
            )
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


def choose_levels(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Positions among `count` levels, in order: the last n for an int, all for None, negative ones from the end."""
    last = count if indices is None else indices
    chosen = range(-last, 0) if isinstance(last, int) else last
    if not chosen or not all(
        isinstance(level, int) and -count <= level < count for level in chosen
    ):
        raise ConfigError(
            f"indices is {indices!r}; give how many of the last, 1 to {count}, or positions below {count}"
        )
    return sorted({level % count for level in chosen})


def check_choice(name: str, value: object, family: str, *allowed: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed for a {family}: {', '.join(allowed)}")


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
        raise ConfigError(
            f"num_classes is {num_classes!r}; give a positive number, or None for no head"
        )
