"""Vision Transformer as in the SWAG models: pre-norm, fused qkv, class token, learned positions.

Axes: N batch, S tokens, D width, C channels, H W pixels, h w grid of patches. Parameter names are
timm's.
"""

import math
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError, check_types
from swag_models.layouts import resize_position_embedding
from swag_models.models.arguments import (
    check_mask,
    check_merge_tokens,
    check_num_classes,
    check_rate,
    choose_pool,
    has_free_size,
    is_scripting,
    is_symbolic,
)
from swag_models.models.drop_path import spread_rates
from swag_models.models.layers import Blocks
from swag_models.models.timm_interface import FeatureInfo
from swag_models.models.token_merging import MergingBlock, MergingBlocks
from swag_models.models.vit_block import (
    LAYER_NORM_EPS,
    MLP,
    Attention,
    PatchDropout,
    PatchEmbed,
    ViTBlock,
)
from swag_models.models.vit_interface import ViTInterface
from swag_models.spec import Pool


class ResizedPosition(NamedTuple):
    """A cached position embedding: its grid, the parameter it was computed from, the result."""

    grid: tuple[int, int]
    source: Tensor
    result: Tensor


class ViT(ViTInterface):
    """Vision Transformer: images (N, C, H, W) -> logits (N, num_classes), or features (N, D).

    H and W may be any multiples of the patch size: the position embedding is resized to the grid.

    Args:
        config: dimensions.
        num_classes: number of logits; None or 0 for no head, which returns pooled features.
        image_size: (height, width) in pixels that the position embedding is learned for.
        in_chans: channels of the images.
        drop_rate: dropout before the head.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block.
        patch_drop_rate: share of the patch tokens that is dropped in training, by
            `forward_features`.
        merge_tokens: number of tokens that each block merges into similar ones. Outputs have all
            tokens; those that were merged are equal.
        global_pool: "token" (the class token, as published), "avg" (mean of the patch tokens) or ""
            (all tokens); None for "token".
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        num_classes: int | None,
        image_size: tuple[int, int],
        in_chans: int = 3,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        merge_tokens: int = 0,
        global_pool: Pool | None = None,
    ) -> None:
        check_types(ViTConfig, config=config)
        super().__init__(
            config, config.width, num_classes, image_size, in_chans, drop_rate, global_pool
        )
        attn_drop_rate = check_rate("attn_drop_rate", attn_drop_rate)
        if config.width % config.num_heads:
            raise ConfigError(
                f"width {config.width} is not a multiple of num_heads {config.num_heads}"
            )
        self.embed_dim, self.num_heads = config.width, config.num_heads
        self.patch_size = config.patch_size
        self.grid_size = self._grid(*self.image_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + math.prod(self.grid_size), config.width))
        self.patch_embed = PatchEmbed(config.patch_size, in_chans, config.width)
        self._describe_patches()
        self.patch_drop = PatchDropout(check_rate("patch_drop_rate", patch_drop_rate))
        rates = spread_rates(drop_path_rate, config.depth)
        self.merge_tokens = check_merge_tokens(merge_tokens)
        if self.merge_tokens:
            self.blocks: Blocks = MergingBlocks(
                *(MergingBlock(config, attn_drop_rate, rate, self.merge_tokens) for rate in rates)
            )
        else:
            self.blocks = Blocks(*(ViTBlock(config, attn_drop_rate, rate) for rate in rates))
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.head_drop = nn.Dropout(self.drop_rate)
        self.head = _make_head(config.width, self.num_classes)
        self._resized: ResizedPosition | None = None
        blocks = [f"blocks.{index}" for index in range(config.depth)]
        self.layers = (
            ("patch_embed", "cls_token", "pos_embed", "patch_drop"),
            *((block,) for block in blocks[:-1]),
            (blocks[-1], "norm"),
        )
        self.feature_info = FeatureInfo(
            {"num_chs": config.width, "reduction": config.patch_size, "module": block}
            for block in blocks
        )
        # On the meta device it has no effect, and `normal_` would import modules for over a second.
        if not self.pos_embed.is_meta:
            self.init_weights(needs_reset=False)

    def _init_published(self, *, head: bool) -> None:
        """Initialise as published; the class token and the head are zero."""
        # Positions N(0, 0.02^2), patches truncated N(0, 1/fan_in), linear layers Xavier uniform.
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.zeros_(self.cls_token)
        patches = self.patch_embed.proj.weight
        nn.init.trunc_normal_(patches, std=math.sqrt(1 / math.prod(patches.shape[1:])))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        for module in self.blocks.modules():
            if isinstance(module, Attention):
                nn.init.xavier_uniform_(module.qkv.weight)
                nn.init.zeros_(module.qkv.bias)
                nn.init.zeros_(module.proj.bias)
            elif isinstance(module, MLP):
                for linear in (module.fc1, module.fc2):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.normal_(linear.bias, std=1e-6)
        if head:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    def forward_features(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,  # noqa: UP045 TorchScript
    ) -> Tensor:
        """Return all tokens after the last norm (N, 1 + h w, D), the class token first.

        In training with `patch_drop_rate`, they are fewer.

        Args:
            x: images (N, C, H, W).
            attn_mask: which tokens see which, broadcast to (N, heads, S, S): True where they do, or
                floats that are added to the scores.
        """
        x = self._embed(x)
        if attn_mask is None:
            return self.norm(self.blocks(self.patch_drop(x)))
        assert not is_scripting(), "a scripted model takes no attention mask"
        self._check_no_drop()
        check_mask(attn_mask, x, self.num_heads, self.merge_tokens)
        for block in self.blocks:
            x = self.blocks.step(block, x, attn_mask)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) of tokens (N, S, D).

        Args:
            x: tokens after the last norm.
            pre_logits: return pooled features (N, D) instead, as without a head.
        """
        if not is_scripting():
            check_types(bool, pre_logits=pre_logits)
        x = self.pool(x)  # (N, D)
        return x if pre_logits else self.head(self.head_drop(x))

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, num_classes) or (N, D)
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int | None, global_pool: Pool | None = None) -> None:
        count = check_num_classes(num_classes)
        pool = choose_pool("vit", count, self.global_pool if global_pool is None else global_pool)
        self.head = self._join_backbone(_make_head(self.num_features, count), self.cls_token)
        self.num_classes, self.global_pool = count, pool

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        check_types(bool, coarse=coarse)
        with_previous = (99999,)  # timm's marker for the group of the previous layer
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", with_previous)],
        }

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}

    def _check_no_drop(self) -> None:
        """Raise ConfigError if patches are dropped, because an attention mask needs all."""
        if self.patch_drop.training and self.patch_drop.rate:
            raise ConfigError(
                f"attn_mask needs all patches, but patch_drop_rate is {self.patch_drop.rate:g} in "
                "training; leave one of them out"
            )

    def _embed(self, x: Tensor) -> Tensor:
        """Convert images (N, C, H, W) to tokens with positions (N, S, D)."""
        if is_scripting():  # noqa: SIM114  # TorchScript would compile both operands of an `or`
            position = fit_position(self.pos_embed, x, self.grid_size, self.patch_size)
        elif is_symbolic(x):
            position = fit_position(self.pos_embed, x, self.grid_size, self.patch_size)
        else:
            position = self._position_embedding(self._grid(*self._check_input(x)))
        token = self.cls_token.expand(x.shape[0], -1, -1)  # (N, 1, D)
        return torch.cat([token, self.patch_embed(x)], dim=1) + position  # (N, S, D)

    def _position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """Return the position embedding (1, 1 + h w, D) for a grid.

        On the CPU, where resizing takes milliseconds, the last result is cached.
        """
        position = self.pos_embed
        free = has_free_size(grid)  # comparing it would exclude one size from the exported graph
        if not free and grid == self.grid_size:
            return position
        learning = torch.is_grad_enabled() and position.requires_grad
        traced = torch.compiler.is_compiling()
        # torch.func passes tensors of its own, whose values cannot be compared.
        swapped = not isinstance(position, nn.Parameter)
        # On other devices comparing is slower than resizing, because it waits for the device.
        if learning or traced or swapped or position.device.type != "cpu":
            return resize_position_embedding(position, self.grid_size, grid)
        # Values are compared, because version counters miss changes made through `.data`. Comparing
        # takes less than a third of the time of resizing.
        cached = self._resized
        if (
            cached is None
            or cached.grid != grid
            or cached.source.dtype != position.dtype
            or not cached.source.equal(position)
        ):
            result = resize_position_embedding(position, self.grid_size, grid)
            self._resized = cached = ResizedPosition(grid, position.detach().clone(), result)
        return cached.result


torch.fx.wrap("fit_position")  # one node of a traced graph, because it depends on sizes


def fit_position(
    position: Tensor, x: Tensor, grid_size: tuple[int, int], patch_size: int
) -> Tensor:
    """Resize a position embedding (1, S, D), learned on `grid_size`, to images (N, C, H, W)."""
    grid = (x.shape[2] // patch_size, x.shape[3] // patch_size)
    return position if grid == grid_size else resize_position_embedding(position, grid_size, grid)


def _make_head(width: int, num_classes: int) -> nn.Module:
    """Return a linear head with zero weights, or Identity for no classes."""
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
