"""Feature maps of a model and nothing else, as timm's `create_model(features_only=True)`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from swag_models.errors import check_choice, check_types
from swag_models.models.backbone import Backbone
from swag_models.models.timm_interface import FeatureInfo


class FeatureNet(nn.Module):
    """Images (N, C, H, W) -> list of feature maps (N, D, h, w).

    Args:
        model: used in place, not copied: its head and the layers after the last map are removed.
        out_indices: which maps of `feature_info` to return: the last n for an int, or positions,
            negative ones from the end. By default the last three of a ViT, and all of the others.
        norm: apply a ViT's last norm to the maps.
        output_fmt: "NCHW" for maps; a ViT also has "NLC" for tokens (N, h w, D).

    Attributes:
        model: the model.
        feature_info: its maps; `feature_info.channels()` are those of the maps that are returned.
    """

    def __init__(
        self,
        model: Backbone,
        out_indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        output_fmt: str = "NCHW",
    ) -> None:
        super().__init__()
        check_types(Backbone, model=model)
        check_types(bool, norm=norm)
        check_choice("output_fmt", output_fmt, *model.output_formats)
        if out_indices is None:
            count = len(model.feature_info)
            out_indices = min(model.default_maps or count, count)
        self.out_indices = model.prune_intermediate_layers(out_indices, prune_norm=not norm)
        self.model = model
        self.norm = norm
        self.output_fmt = output_fmt
        self.feature_info = FeatureInfo(model.feature_info, self.out_indices)
        self.train(model.training)
        self.pretrained_cfg = self.default_cfg = {
            key: value
            for key, value in model.pretrained_cfg.items()
            if key not in ("num_classes", "classifier", "label_names")
        }

    if TYPE_CHECKING:  # in nn.Module it returns Any

        def __call__(self, x: Tensor) -> list[Tensor]: ...

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            x,
            self.out_indices,
            norm=self.norm,
            output_fmt=self.output_fmt,
            intermediates_only=True,
        )
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing on or off.

        Args:
            enable: as for the model.
        """
        self.model.set_grad_checkpointing(enable)
