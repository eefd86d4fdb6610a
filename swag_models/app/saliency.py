"""Where a model looks: the attention of a ViT's class token, or Grad-CAM on a stage of a RegNet.

Axes: K maps, N batch, S tokens, C channels, H W pixels, h w grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swag_models.app.overlay import Heat
from swag_models.models import RegNet, ViT
from swag_models.spec import RegNetConfig, ViTConfig


def count_layers(config: ViTConfig | RegNetConfig) -> int:
    """How many layers there is a map for: blocks of a ViT, stages of a RegNet."""
    return config.depth if isinstance(config, ViTConfig) else len(config.stages)


def find_heat(model: ViT | RegNet, x: Tensor, layer: int) -> Heat:
    """One image (1, C, H, W) -> maps (K, h, w) of layer 0, 1, ...: one for each head of a ViT, one for a RegNet."""
    maps = (
        read_attention(model, x, layer)
        if isinstance(model, ViT)
        else make_grad_cam(model, x, layer)
    )
    return maps.float().cpu().numpy()


def read_attention(model: ViT, x: Tensor, block: int) -> Tensor:
    """How much the class token takes from each patch, in every head: (1, C, H, W) -> (heads, h, w)."""
    with torch.inference_mode():
        (attention,) = model.forward_attention(x, indices=[block])  # (1, heads, S, S)
    height, width = (side // model.patch_size for side in x.shape[-2:])
    return attention[0, :, 0, 1:].reshape(-1, height, width)


def make_grad_cam(model: RegNet, x: Tensor, stage: int) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391) of the best class: (1, C, H, W) -> (1, h, w).

    Without classes it is made for the length of the pooled features: what they are mostly made of.
    """
    taken: list[Tensor] = []

    def take(module: object, inputs: object, output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[0]

    handle = model.get_submodule(model.feature_info[1 + stage]["module"]).register_forward_hook(
        take
    )
    try:
        with torch.enable_grad():
            features = model.forward_features(x)
            score = model.forward_head(
                features, pre_logits=model.num_classes is None
            )  # (1, classes or C)
            target = score.norm() if model.num_classes is None else score.max()
            (gradient,) = torch.autograd.grad(target, taken)  # (1, C, h, w)
    finally:
        handle.remove()
    weight = gradient.mean(dim=(2, 3), keepdim=True)  # (1, C, 1, 1)
    return (weight * taken[0].detach()).sum(dim=1).relu()  # (1, h, w)
