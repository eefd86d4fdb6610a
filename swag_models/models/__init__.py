"""Models as PyTorch modules, and `build`, which makes one from a configuration."""

from swag_models.architectures import Config, RegNetConfig, ResNetConfig, ViTConfig
from swag_models.errors import ConfigError, plain_arguments
from swag_models.formatting import describe
from swag_models.models.arguments import check_image_size, check_merge_tokens, check_rate
from swag_models.models.backbone import Backbone
from swag_models.models.feature_net import FeatureNet
from swag_models.models.fpn import FeaturePyramid
from swag_models.models.param_groups import group_parameters
from swag_models.models.regnet import RegNet
from swag_models.models.resnet import ResNet
from swag_models.models.vit import ViT
from swag_models.spec import ImageSize, Pool

__all__ = [
    "Backbone",
    "FeatureNet",
    "FeaturePyramid",
    "RegNet",
    "ResNet",
    "ViT",
    "build",
    "group_parameters",
]


def __dir__() -> list[str]:
    return sorted(__all__)


@plain_arguments
def build(
    config: Config,
    *,
    num_classes: int | None,
    image_size: ImageSize,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    patch_drop_rate: float = 0.0,
    merge_tokens: int = 0,
    global_pool: Pool | None = None,
) -> ViT | RegNet | ResNet:
    """Build a freshly initialised model in training mode, on torch's current default device.

    On the `meta` device it takes no memory and is not initialised.

    Args:
        config: the architecture.
        num_classes: size of the head; None or 0 for no head. They differ for a RegNet
            or ResNet, which then returns its feature map (N, D, h, w) or pooled features (N, D).
        image_size: pixels, int or (height, width). For a ViT a multiple of the patch size, for the
            others at least 32.
        in_chans: input channels.
        drop_rate: dropout before the head.
        attn_drop_rate: dropout of attention weights (ViT only).
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        patch_drop_rate: share of the patch tokens that is dropped in training (ViT only).
        merge_tokens: number of tokens that each block merges into similar ones (ViT only), which
            makes it faster (arXiv 2210.09461).
        global_pool: pooling before the head: "token" (class token, default) or "avg" for a ViT,
            "avg" for the others; "" for none, which returns all tokens or the feature map.

    Raises:
        ConfigError: a value is not allowed.
    """
    size = check_image_size(image_size)
    match config:
        case ViTConfig():
            return ViT(
                config,
                num_classes=num_classes,
                image_size=size,
                in_chans=in_chans,
                drop_rate=drop_rate,
                attn_drop_rate=attn_drop_rate,
                drop_path_rate=drop_path_rate,
                patch_drop_rate=patch_drop_rate,
                merge_tokens=merge_tokens,
                global_pool=global_pool,
            )
        case RegNetConfig() | ResNetConfig():
            kind = RegNet if isinstance(config, RegNetConfig) else ResNet
            if check_merge_tokens(merge_tokens):
                raise ConfigError(
                    f"merge_tokens is {merge_tokens}; a {kind.__name__} has no tokens, leave it "
                    "at 0"
                )
            if check_rate("patch_drop_rate", patch_drop_rate):
                raise ConfigError(
                    f"patch_drop_rate is {patch_drop_rate}; a {kind.__name__} has no patches, "
                    "leave it at 0"
                )
            if check_rate("attn_drop_rate", attn_drop_rate):
                raise ConfigError(
                    f"attn_drop_rate is {attn_drop_rate}; a {kind.__name__} has no attention, "
                    "leave it at 0"
                )
            return kind(
                config,  # type: ignore[arg-type]
                num_classes=num_classes,
                image_size=size,
                in_chans=in_chans,
                drop_rate=drop_rate,
                drop_path_rate=drop_path_rate,
                global_pool=global_pool,
            )
        case _:
            raise ConfigError(
                f"config is {describe(config)}; give a ViTConfig, a RegNetConfig or a ResNetConfig"
            )
