"""The interface of all model families, with timm's names; argument checks.

Axes: N batch, C channels, D feature channels, H W pixels.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from swag_models.architectures import Config
from swag_models.errors import ConfigError, check_maximum, check_types, plain
from swag_models.formatting import describe
from swag_models.layouts import recognise_layout, translate_layout
from swag_models.model_limits import LIMITS
from swag_models.models.arguments import (
    check_area,
    check_dense,
    check_image_size,
    check_num_classes,
    check_rate,
    choose_pool,
    is_symbolic,
)
from swag_models.models.layers import Blocks
from swag_models.models.timm_interface import FeatureInfo, TimmMetadata
from swag_models.spec import ImageSize, Pool
from swag_models.wrappers import INNER_WRAPPERS

B = TypeVar("B", bound="Backbone")
M = TypeVar("M", bound=nn.Module)


class Backbone(TimmMetadata):
    """A backbone with an optional linear head.

    Attributes:
        layers: names of the parameters and modules, one tuple per layer, in forward order.
        feature_info: one entry per map of `forward_intermediates`: its channels (`num_chs`), the
            pixels per cell (`reduction`) and the module that computes it (`module`).
        output_formats: values of `output_fmt` in `forward_intermediates`.
        default_maps: number of last maps that a `FeatureNet` returns by default; None for all.
        num_features: channels of the features.
        num_classes: number of logits; 0 without a head.
        global_pool: how features are pooled before the head: "token", "avg" or "" for not at all.
        image_size: (height, width) in pixels for which the model was built.
        in_chans: input channels.
    """

    layers: tuple[tuple[str, ...], ...]
    feature_info: FeatureInfo
    output_formats: tuple[str, ...] = ("NCHW",)
    default_maps: int | None = None
    num_features: int
    global_pool: str  # a Pool; TorchScript has no type for it
    # Values that TorchScript has no types for; no scripted method reads them.
    __jit_ignored_attributes__: ClassVar = [
        "layers",
        "feature_info",
        "frozen",
        "_frozen_parameters",
        "spec",
    ]

    def __init__(
        self,
        config: Config,
        num_features: int,
        num_classes: int | None,
        image_size: tuple[int, int],
        in_chans: int,
        drop_rate: float,
        global_pool: Pool | None,
    ) -> None:
        super().__init__()
        self.frozen: tuple[str, ...] = ()
        self.num_classes = check_num_classes(num_classes)
        self.global_pool = choose_pool(config.family, num_classes, global_pool)
        self._frozen_parameters: set[str] = set()
        # `type(...) is int`, here and below, because True is an int too.
        if type(in_chans) is not int or in_chans < 1:
            raise ConfigError(
                f"in_chans is {describe(in_chans)}; give a positive number of channels"
            )
        check_maximum(LIMITS["in_chans"][1], in_chans=in_chans)
        # timm's name for the input channels of the head; for a linear head both are equal.
        self.num_features = self.head_hidden_size = num_features
        self.image_size = check_image_size(image_size)
        self.in_chans = in_chans
        self.drop_rate = check_rate("drop_rate", drop_rate)
        self._config = config
        self.update_pretrained_cfg()

    if TYPE_CHECKING:  # in nn.Module it returns Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the backbone's features, before pooling and head: tokens or a feature map."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (N, num_classes).

        Args:
            x: what `forward_features` returned.
            pre_logits: return the pooled features (N, D) instead.
        """
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
        output_dict: bool = False,
    ) -> Any:
        """Return the features and feature maps of earlier layers.

        Args:
            x: images (N, C, H, W).
            indices: which maps of `feature_info` to return: the last n for an int, all for None,
                or positions, where negative ones count from the end.
            norm: apply the model's last norm to the maps.
            stop_early: skip the layers after the last chosen map.
            output_fmt: "NCHW" for maps; a ViT also has "NLC" for tokens.
            intermediates_only: return only the list of maps.
            output_dict: return a dict of `image_intermediates` and, unless `intermediates_only`,
                `image_features`.

        Returns:
            (features, maps): the features of `forward_features`, or those of the last layer that
            ran, and a list of maps.
        """
        raise NotImplementedError

    def forward_attention(
        self, x: Tensor, indices: int | Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return the attention maps of blocks.

        Args:
            x: images (N, C, H, W).
            indices: which blocks, as in `forward_intermediates`.

        Raises:
            ConfigError: the model has no attention.
        """
        raise ConfigError(
            f"a {type(self).__name__} has no attention maps; "
            "use a ViT, or Grad-CAM, which works for all"
        )

    def init_weights(self, *, needs_reset: bool = True) -> None:
        """Initialise the model as published, for example after `to_empty`.

        With the same random state, the result is that of building the model.

        Args:
            needs_reset: first initialise every layer as torch does when it is built.
        """
        check_types(bool, needs_reset=needs_reset)
        if needs_reset:
            for module in self.modules():
                reset: Any = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
        self._init_published(head=needs_reset)

    def _init_published(self, *, head: bool) -> None:
        """Initialise the backbone as published, and the head if `head` is True."""
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """Return the linear head, or Identity without one."""
        raise NotImplementedError

    def reset_classifier(self, num_classes: int | None, global_pool: Pool | None = None) -> None:
        """Replace the head with a freshly initialised one.

        Args:
            num_classes: number of logits; None or 0 for no head, as in `build`.
            global_pool: as in `build`; by default unchanged for a ViT, and that of `build` for a
                RegNet.
        """
        raise NotImplementedError

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers after the last of the chosen maps, and the head.

        Args:
            indices: maps that `forward_intermediates` returns afterwards.
            prune_norm: remove the last norm of a ViT.
            prune_head: False keeps the head, if its features are still computed.

        Returns:
            Positions of the chosen maps.
        """
        raise NotImplementedError

    def set_input_size(
        self, img_size: ImageSize | None = None, patch_size: ImageSize | None = None
    ) -> None:
        """Change the image size for which the model is built.

        A ViT's position embedding is resized, which needs a new optimizer.

        Args:
            img_size: pixels, int or (height, width); None for no change.
            patch_size: None, or that of the model, which cannot be changed.

        Raises:
            ConfigError: the model does not take images or patches of this size.
        """
        raise NotImplementedError

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that sort parameters into layers, for timm's optimizers.

        Args:
            coarse: one layer per stage instead of per block.
        """
        raise NotImplementedError

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, besides biases and norms."""
        return set()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing on or off: less memory for about a third more time.

        Args:
            enable: store only each block's input, and recompute the rest in the backward pass.
        """
        check_types(bool, enable=enable)
        for module in self.modules():
            if isinstance(module, Blocks):
                module.grad_checkpointing = enable

    def freeze(self, up_to: str | None = None) -> None:
        """Exclude the backbone, or its first layers, from training.

        Their parameters get no gradients, and their batch norms, dropout and stochastic depth stay
        in evaluation mode even after `train()`. The head is never frozen. A second call cannot
        freeze less than the first.

        Args:
            up_to: the last part to freeze: "blocks.5", "s3" or any other name in `layers`; by
                default the whole backbone.

        Raises:
            ConfigError: `up_to` is unknown; lists the names.
        """
        up_to = plain(up_to)
        ends: dict[str, int] = {}
        for end, part in enumerate(part for layer in self.layers for part in layer):
            ends[part.split(".")[0]] = ends[part] = end  # the last block of a stage wins
        if up_to is not None and not (isinstance(up_to, str) and up_to in ends):
            raise ConfigError(
                f"up_to is {describe(up_to)}; allowed: {', '.join(ends)}, "
                "or None for the whole backbone"
            )
        last_end = max(ends.values()) if up_to is None else ends[up_to]
        parts = tuple(part for part, end in ends.items() if end <= last_end)
        self.frozen = max(self.frozen, parts, key=len)
        trained = self._list_trained()
        for part in self.frozen:
            attrgetter(part)(self).requires_grad_(False)
        self._frozen_parameters |= trained - self._list_trained()
        self.train(self.training)  # switches the frozen modules to evaluation mode

    def unfreeze(self) -> None:
        """Undo `freeze`: train the parameters again that it excluded."""
        for name, parameter in self.named_parameters():
            if INNER_WRAPPERS.sub("", name) in self._frozen_parameters:
                parameter.requires_grad_(True)
        self.frozen = ()
        self._frozen_parameters.clear()
        self.train(self.training)

    def _list_trained(self) -> set[str]:
        """Return the names of all parameters that get gradients."""
        return {
            INNER_WRAPPERS.sub("", name)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def train(self: B, mode: bool = True) -> B:
        """Set the training mode, as torch does; frozen parts stay in evaluation mode."""
        check_types(bool, mode=mode)
        super().train(mode)
        for part in self.frozen:
            # Skip parameters such as the class token, which have no mode.
            if isinstance(module := attrgetter(part)(self), nn.Module):
                module.eval()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict in the swag, torchvision or timm layout; otherwise as in torch.

        Only names are translated. Unlike `load_model(weights=...)`, nothing is resized or replaced.
        """
        # An unknown state dict is passed on, for torch's error to list its keys.
        if recognise_layout(state_dict) is not None:
            state_dict = translate_layout(state_dict, "timm")
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _join_backbone(self, head: M, weight: Tensor) -> M:
        """Move a new head to the backbone's device and dtype.

        If that is still the meta device, the head is not moved: it would lose its values.
        """
        head.train(self.training)
        return head if weight.is_meta else head.to(weight)

    def _check_input(self, x: Tensor) -> tuple[int, int]:
        """Return (H, W) of a batch of images; raise ConfigError for anything else."""
        check_dense(x, "load_preprocess(name)(image).unsqueeze(0)")
        if is_symbolic(x):
            return x.shape[2], x.shape[3]
        # A model that is offloaded has meta parameters, which a hook replaces.
        if x.is_meta and not next(self.parameters()).is_meta:
            raise ConfigError("input is on the meta device; give one with values")
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ConfigError(
                f"input has shape {tuple(x.shape)}; expected (N, {self.in_chans}, H, W)"
            )
        return check_area(x.shape[2], x.shape[3])

    def _check_features(self, x: Tensor, form: str, ndim: int) -> None:
        """Raise ConfigError unless `x` is a tensor as `forward_features` returns, of `form`."""
        check_dense(x, f"{form} of forward_features")
        if is_symbolic(x):
            return
        if x.ndim != ndim or x.shape[2 if ndim == 3 else 1] != self.num_features:
            raise ConfigError(f"features have shape {tuple(x.shape)}; expected {form}")
