"""timm's models with the shapes of the tiny ones."""

from __future__ import annotations

from typing import Any

from timm.models.regnet import RegNet as TimmRegNet
from timm.models.regnet import RegNetCfg
from timm.models.vision_transformer import VisionTransformer as TimmViT
from tiny import REGNET, VIT
from torch import nn

from swag_models.models import RegNet, ViT


def timm_vit(**options: Any) -> TimmViT:
    shape: dict[str, Any] = {
        "embed_dim": VIT.width,
        "depth": VIT.depth,
        "num_heads": VIT.num_heads,
        "mlp_ratio": 2,
    }
    return TimmViT(
        **(shape | {"img_size": 64, "patch_size": VIT.patch_size, "num_classes": 10} | options)
    ).eval()


def timm_regnet(**options: Any) -> TimmRegNet:
    shape = RegNetCfg(
        depth=REGNET.depth,
        w0=REGNET.w_0,
        wa=REGNET.w_a,
        wm=REGNET.w_m,
        group_size=REGNET.group_width,
        se_ratio=0.25,
    )
    return TimmRegNet(shape, **({"num_classes": 10} | options)).eval()


def timm_twin(model: ViT | RegNet) -> nn.Module:
    """Return timm's model with the weights and the image size of a tiny one."""
    options: dict[str, Any] = {"num_classes": model.num_classes or 0, "in_chans": model.in_chans}
    twin = timm_regnet(**options)
    if isinstance(model, ViT):
        twin = timm_vit(img_size=model.image_size, **options)
    twin.load_state_dict(model.state_dict())
    return twin
