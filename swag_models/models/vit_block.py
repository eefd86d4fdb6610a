"""The layers of a Vision Transformer, with timm's names: patches, attention, MLP, block.

Axes: N batch, S tokens, D width, C channels, H W pixels, h w grid of patches.
"""

import math
import sys
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swag_models.architectures import ViTConfig
from swag_models.models.arguments import is_scripting
from swag_models.models.drop_path import DropPath

LAYER_NORM_EPS = 1e-6  # as published; torch's default is 1e-5


class PatchEmbed(nn.Module):
    """Cut images into square patches and project each to a token of dimension `width`."""

    def __init__(self, patch_size: int, in_chans: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, h w, D)


class PatchDropout(nn.Module):
    """In training, keep a random part of the patch tokens of each image, and the class token.

    As in FLIP (arXiv 2212.00794) and PatchDropout (arXiv 2208.07220).

    Args:
        rate: share of the patch tokens that is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (N, S, D) -> (N, S', D)
        return drop_patches(x, self.rate) if self.training and self.rate > 0 else x

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


torch.fx.wrap("drop_patches")  # one node of a traced graph, because it depends on sizes


def drop_patches(x: Tensor, rate: float) -> Tensor:
    """Keep the first token and `count_kept_patches` random others of (N, S, D), in random order."""
    scores = torch.rand(x.shape[0], x.shape[1] - 1, device=x.device)
    kept = scores.argsort(dim=1)[:, : count_kept_patches(x.shape[1] - 1, rate)]
    patches = x[:, 1:].gather(1, kept.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return torch.cat([x[:, :1], patches], dim=1)


def count_kept_patches(patches: int, rate: float) -> int:
    """Number of patch tokens that dropping leaves, as in timm: rounded down, at least one."""
    return max(1, int(patches * (1 - rate)))


class Attention(nn.Module):
    """Multi-head self-attention with dropout of attention weights.

    Attributes:
        fused_attn: compute attention without materialising its weights. If it is False, or the
            module `attn_drop` has hooks, the weights (N, heads, S, S) pass through `attn_drop`.
            True unless `timm.layers.set_fused_attn(False)` was called before.
    """

    def __init__(self, width: int, num_heads: int, drop_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.scale = self.head_dim**-0.5  # for code that computes attention from `qkv`, as timm's
        self.fused_attn = timm_fuses_attention()
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(drop_rate)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Identity()  # likewise

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,  # noqa: UP045 TorchScript
    ) -> Tensor:
        """Return the output (N, S, D) for tokens (N, S, D).

        Args:
            x: tokens.
            attn_mask: which tokens see which, broadcast to (N, heads, S, S): bool, or floats that
                are added to the scores.
        """
        q, k, v = self._split_heads(x).unbind(0)
        fused = self.fused_attn
        if not is_scripting():
            fused = fused and not has_hooks(self.attn_drop)
        if fused:
            dropout = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
        else:
            y = self.attn_drop(self._weigh(q, k, attn_mask)) @ v
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))  # heads joined: (N, S, D)

    def weigh(self, x: Tensor) -> Tensor:
        """Return the attention weights (N, heads, S, S) of tokens (N, S, D).

        Row i holds the weights of all tokens in the output of token i.
        """
        q, k, _ = self._split_heads(x).unbind(0)
        return self._weigh(q, k)

    def _weigh(
        self,
        q: Tensor,
        k: Tensor,
        attn_mask: Optional[Tensor] = None,  # noqa: UP045 TorchScript
    ) -> Tensor:
        scores = q / math.sqrt(self.head_dim) @ k.mT
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                scores = scores.masked_fill(~attn_mask, float("-inf"))
            else:
                scores = scores + attn_mask
        return scores.softmax(dim=-1)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Return queries, keys and values (3, N, heads, S, D / heads)."""
        n, s, _ = x.shape
        qkv = self.qkv(x).reshape(n, s, 3, self.num_heads, self.head_dim)
        return qkv.permute(2, 0, 3, 1, 4)


def timm_fuses_attention() -> bool:
    """Return the switch of `timm.layers.set_fused_attn`; True without timm."""
    layers: Any = sys.modules.get("timm.layers")
    return layers is None or bool(layers.use_fused_attn())


def has_hooks(module: nn.Module) -> bool:
    """Return whether hooks read what a module receives or returns, or its gradients."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N, S, D) -> (N, S, D)
        return self.fc2(self.act(self.fc1(x)))


class ViTBlock(nn.Module):
    """Attention, then MLP, each applied to the normalised input and added to it."""

    def __init__(self, config: ViTConfig, attn_drop_rate: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.attn = Attention(config.width, config.num_heads, attn_drop_rate)
        self.drop_path1 = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config.width, config.mlp_width)
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(  # (N, S, D) -> (N, S, D)
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,  # noqa: UP045 TorchScript
    ) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), attn_mask))
        return x + self.drop_path2(self.mlp(self.norm2(x)))
