"""Token merging: each block joins the most similar tokens, so that later blocks have fewer.

From the description in Bolya et al., arXiv 2210.09461. Between attention and MLP, the tokens are
split alternately into two sets. The R tokens of the first set whose keys are most similar to one of
the second are each merged into it, by the mean weighted with the number of patches that a token
stands for. Attention counts a token as often: the logarithm of its size is added to its scores.

Axes: N batch, S tokens before and T tokens after a block, P tokens at first, D width, K head width.
"""

import inspect
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError
from swag_models.models.layers import Blocks
from swag_models.models.vit_block import Attention, ViTBlock, has_hooks

ALIGNMENT = 8  # numbers that vector instructions process at once; head widths are padded to it


class MergingBlock(ViTBlock):
    """A block of a ViT that merges tokens between attention and MLP.

    Args:
        config: dimensions.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth.
        count: number of tokens R to merge, as far as there are so many.
    """

    def __init__(
        self, config: ViTConfig, attn_drop_rate: float, drop_path_rate: float, count: int
    ) -> None:
        super().__init__(config, attn_drop_rate, drop_path_rate)
        self.count = count

    def forward(  # type: ignore[override]
        self, x: Tensor, size: Tensor, source: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens after the block, their sizes and their sources.

        Args:
            x: tokens (N, S, D), the class token first.
            size: number of patches that each token stands for (N, S, 1), float32.
            source: of each token at first (N, P), the token that it is part of now.
        """
        y, keys = attend(self.attn, self.norm1(x), size)
        x = x + self.drop_path1(y)
        x, size, source = merge(x, size, source, keys, self.count)
        return x + self.drop_path2(self.mlp(self.norm2(x))), size, source


class MergingBlocks(Blocks):
    """A sequence of `MergingBlock`: tokens (N, P, D) -> (N, P, D), of which merged ones are equal.

    A state has the three arguments of `MergingBlock.forward`.
    """

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(x)
        for block in self:
            state = self.advance(block, state)
        return self.restore(state[0], state)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        size = torch.ones_like(x[:, :, :1], dtype=torch.float32)
        source = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        return x, size, source

    def advance(
        self, block: nn.Module, state: tuple[Tensor, ...], attn_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        self._check(block)
        result: tuple[Tensor, ...] = self.step(block, *state)
        return result

    def _check(self, block: nn.Module) -> None:
        """Raise ConfigError unless a block takes and returns a state, also if it is wrapped."""
        if isinstance(block, MergingBlock) or torch.compiler.is_compiling():
            return
        try:
            inspect.signature(block.forward).bind(*range(3))
        except TypeError:
            raise ConfigError(
                f"a block is replaced by {type(block).__name__}, which does not merge tokens; load "
                "the model with merge_tokens=0, or replace layers inside of its blocks"
            ) from None

    def __prepare_scriptable__(self) -> NoReturn:  # called by torch.jit.script
        raise ConfigError(
            "torch.jit.script does not support merge_tokens; load the model with merge_tokens=0, "
            "or use torch.export"
        )

    def weigh(self, block: Any, state: tuple[Tensor, ...]) -> Tensor:
        self._check(block)
        x, size, source = state
        return weigh(block.attn, block.norm1(x), size, source)

    def restore(self, x: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        return x.gather(1, _widen(state[2], x))


def attend(attention: Attention, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Attention in which each token counts as often as the patches it stands for.

    Args:
        attention: the layer.
        x: normalised tokens (N, S, D).
        size: of the tokens (N, S, 1).

    Returns:
        The output (N, S, D), and the keys (N, S, K), averaged over the heads.
    """
    q, k, v = attention._split_heads(x).unbind(0)  # each (N, heads, S, K)
    log_size = size.log().to(q.dtype)[:, None]  # (N, 1, S, 1)
    if attention.fused_attn and not has_hooks(attention.attn_drop):
        # As one more channel of the keys: a mask would prevent the fast implementations.
        width = attention.head_dim
        padding = (0, -(width + 1) % ALIGNMENT)
        ones = torch.ones_like(q[..., :1])
        bias = (log_size / attention.scale).expand_as(ones)
        y = F.scaled_dot_product_attention(
            F.pad(torch.cat([q, ones], dim=-1), padding),
            F.pad(torch.cat([k, bias], dim=-1), padding),
            F.pad(v, (0, 1 + padding[1])),
            dropout_p=attention.attn_drop.p if attention.training else 0.0,
            scale=attention.scale,
        )[..., :width]
    else:
        y = attention.attn_drop(attention._weigh(q, k, log_size.mT)) @ v
    y = attention.proj_drop(attention.proj(y.transpose(1, 2).flatten(2)))
    return y, k.mean(dim=1)


def weigh(attention: Attention, x: Tensor, size: Tensor, source: Tensor) -> Tensor:
    """Return the attention weights (N, heads, P, P) of the tokens at first.

    The weight of a merged token is divided equally among the tokens it consists of.

    Args:
        attention: the layer.
        x: normalised tokens (N, S, D).
        size: of the tokens (N, S, 1).
        source: as for `MergingBlock.forward`.
    """
    q, k, _ = attention._split_heads(x).unbind(0)
    weights = attention._weigh(q, k, size.log().to(q.dtype)[:, None].mT)  # (N, heads, S, S)
    weights = weights / size[:, None].mT.to(weights.dtype)
    heads, count = weights.shape[1], source.shape[1]
    rows = source[:, None, :, None].expand(-1, heads, -1, weights.shape[3])
    columns = source[:, None, None, :].expand(-1, heads, count, -1)
    return weights.gather(2, rows).gather(3, columns)


def count_merges(tokens: int, count: int) -> int:
    """Number of tokens that a block merges of `tokens`, the class token included.

    Args:
        tokens: number of tokens S.
        count: number R that it is to merge.
    """
    return min(count, (tokens - 1) // 2)  # each has a partner, and none is the class token


torch.fx.wrap("merge")  # one node of a traced graph, because it depends on sizes


def merge(
    x: Tensor, size: Tensor, source: Tensor, keys: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the most similar tokens; the class token is never merged into another.

    Args:
        x: tokens (N, S, D), the class token first.
        size: of the tokens (N, S, 1), float32.
        source: as for `MergingBlock.forward`.
        keys: by which tokens are compared (N, S, K).
        count: number of tokens to merge; at most as many as the first set has.

    Returns:
        Tokens (N, T, D) with T = S - count, their sizes, and the new sources.
    """
    with torch.no_grad():
        keys = F.normalize(keys, dim=-1)
        first, second = keys[:, 2::2], keys[:, 1::2]  # without the class token
        count = count_merges(keys.shape[1], count)
        best, partner = (first @ second.mT).max(dim=-1)  # (N, number of the first set)
        order = best.argsort(dim=-1, descending=True)
        merged, kept = order[:, :count], order[:, count:].sort(dim=-1).values
        target = partner.gather(1, merged)
        num_kept = kept.shape[1]
        # where each token is now: the class token, those kept of the first set, the second set
        numbers = torch.arange(1, num_kept + 1, device=x.device).expand_as(kept)
        places = torch.zeros_like(partner).scatter(1, kept, numbers)
        places = places.scatter(1, merged, target + num_kept + 1)
        seconds = torch.arange(second.shape[1], device=x.device) + num_kept + 1
        seconds = seconds.expand(x.shape[0], -1)
        index = torch.zeros_like(source[:, :1])
        index = torch.cat([index, _interleave(seconds, places)], dim=1)  # (N, S)
        source = index.gather(1, source)
    # In float32, because the sum of a large token would lose the others' digits in bfloat16.
    sums = torch.cat([x.float() * size, size], dim=-1)  # (N, S, D + 1)
    ahead, behind = sums[:, 2::2], sums[:, 1::2]
    behind = behind.scatter_add(1, _widen(target, sums), ahead.gather(1, _widen(merged, sums)))
    sums = torch.cat([sums[:, :1], ahead.gather(1, _widen(kept, sums)), behind], dim=1)
    size = sums[:, :, -1:]
    return (sums[:, :, :-1] / size).to(x.dtype), size.detach(), source


def _widen(index: Tensor, x: Tensor) -> Tensor:
    """Repeat an index (N, S) for each channel of x."""
    return index.unsqueeze(2).expand(-1, -1, x.shape[2])


def _interleave(a: Tensor, b: Tensor) -> Tensor:
    """Return a[:, 0], b[:, 0], a[:, 1], b[:, 1], ...; a has as many columns as b, or one more."""
    pairs = torch.stack([a[:, : b.shape[1]], b], dim=2).flatten(1)
    return torch.cat([pairs, a[:, b.shape[1] :]], dim=1)
