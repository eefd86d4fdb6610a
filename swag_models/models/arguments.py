"""Check the arguments of models."""

from collections.abc import Sequence
from typing import Any, TypedDict, cast, get_args

import torch
from torch import Tensor

from swag_models.errors import ConfigError, check_choice, check_maximum, plain
from swag_models.formatting import count_noun, describe
from swag_models.model_limits import LIMITS, MAX_POSITIONS
from swag_models.spec import ImageSize, Pool

MAX_INPUT_PIXELS = int(LIMITS["image_size"][1]) ** 2  # of an input
Levels = int | Sequence[int] | None  # maps of `forward_intermediates`, see `choose_levels`


class MapOptions(TypedDict, total=False):
    """Options of `forward_intermediates` on which the type of its result does not depend."""

    norm: bool
    stop_early: bool
    output_fmt: str


class ViTMapOptions(MapOptions, total=False):
    """The same of a ViT."""

    attn_mask: Tensor | None


POOLS: tuple[str, ...] = get_args(Pool)  # torch.compile of torch 2.6 cannot call get_args

# Code in `if not is_scripting()` is not part of a scripted model.
is_scripting: Any = torch.jit.is_scripting  # type: ignore[attr-defined]


def is_symbolic(value: object) -> bool:
    """Return whether torch.fx or torch.jit.trace records what is done with a tensor or its size.

    Such a value is not checked: it cannot be compared, or the comparison would be recorded.
    """
    if torch.compiler.is_compiling():  # Dynamo checks guards itself
        return False
    is_jit_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
    return isinstance(value, torch.fx.Proxy) or bool(is_jit_tracing())


def has_free_size(sides: Sequence[object]) -> bool:
    """Return whether torch.export traces a graph in which one of these numbers may vary."""
    return any(isinstance(side, torch.SymInt) for side in sides)


def has_global_hooks() -> bool:
    """Return whether forward hooks are registered for all modules."""
    module = torch.nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


def is_wrapped(x: object) -> bool:
    """Return whether torch.func transforms the computation: vmap supports no memory formats."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_dense(x: object, example: str) -> None:
    """Raise ConfigError unless `x` is a dense floating-point tensor, as `example` is."""
    if is_symbolic(x):
        return
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
        kind = f"a {x.layout} tensor of {x.dtype}" if isinstance(x, Tensor) else describe(x)
        kind = kind.replace("torch.strided ", "")
        raise ConfigError(f"input is {kind}; give {example}")


def choose_levels(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Return the chosen positions among `count` levels, sorted and without duplicates.

    Args:
        indices: the last n for an int, all for None, or positions, negative ones from the end.
        count: number of levels.

    Raises:
        ConfigError: nothing is chosen, or a position is out of range.
    """
    levels = count if indices is None else plain(indices)
    chosen: object = levels
    if type(levels) is int:
        chosen = range(-levels, 0) if levels <= count else ()
    if (
        not isinstance(chosen, Sequence)
        or not chosen
        or not all(type(level) is int and -count <= level < count for level in chosen)
    ):
        raise ConfigError(
            f"indices is {describe(indices)}; give the number of last levels, 1 to {count}, "
            f"or positions below {count}"
        )
    return sorted({level % count for level in chosen})


def check_rate(name: str, rate: float) -> float:
    """Return the value of the argument `name`; raise ConfigError if it is not in [0, 1)."""
    rate = plain(rate)
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate < 1:
        raise ConfigError(f"{name} is {describe(rate)}; give a number of at least 0 and below 1")
    return rate


def check_merge_tokens(count: int) -> int:
    """Return a number of tokens to merge; raise ConfigError if it is not an int from 0."""
    count = plain(count)
    if type(count) is not int or not 0 <= count <= MAX_POSITIONS:
        raise ConfigError(
            f"merge_tokens is {describe(count)}; give the number of tokens that each block merges, "
            f"0 to {MAX_POSITIONS:,}"
        )
    return count


def check_image_size(image_size: ImageSize) -> tuple[int, int]:
    """Return an image size as (height, width).

    Raises:
        ConfigError: not a positive int or a pair of positive ints.
    """
    image_size = plain(image_size)
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    # `type(...) is int`, because True is an int too.
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(
            f"image_size is {describe(image_size)}; give pixels as an int or (height, width)"
        )
    check_maximum(LIMITS["image_size"][1], image_size=max(size))
    return size[0], size[1]


def check_num_classes(num_classes: int | None) -> int:
    """Return a number of classes, 0 for None; raise ConfigError for anything else."""
    if num_classes is not None and (type(num_classes) is not int or num_classes < 0):
        raise ConfigError(
            f"num_classes is {describe(num_classes)}; give a positive number, or None or 0 for no "
            "head"
        )
    check_maximum(LIMITS["num_classes"][1], num_classes=num_classes)
    return num_classes or 0


def choose_pool(family: str, num_classes: int | None, global_pool: str | None) -> Pool:
    """Return how features are pooled before the head.

    Args:
        family: "vit", "regnet" or "resnet".
        num_classes: number of logits. Without a head, a RegNet or ResNet returns pooled features
            for 0, as timm's, and its feature map for None, as the original.
        global_pool: what the caller asked for; None for the default.

    Raises:
        ConfigError: the family has no such pooling, or a RegNet or ResNet with a head has none.
    """
    global_pool = plain(global_pool)
    if family == "vit":
        pool = "token" if global_pool is None else global_pool
        check_choice("global_pool", pool, *POOLS, subject=" for a ViT")
        return cast("Pool", pool)
    default = "" if num_classes is None else "avg"
    pool = default if global_pool is None else global_pool
    kind = {"regnet": "RegNet", "resnet": "ResNet"}[family]
    check_choice("global_pool", pool, "avg", "", subject=f" for a {kind}")
    if num_classes and not pool:
        raise ConfigError(
            f"invalid global_pool '' for a {kind} with {count_noun(num_classes, 'class')}, which "
            "needs pooled features; pass num_classes=0 for the feature map"
        )
    return cast("Pool", pool)


def check_area(height: int, width: int) -> tuple[int, int]:
    """Return the size of an input; raise ConfigError if no machine has the memory for it."""
    if not has_free_size((height, width)) and height * width > MAX_INPUT_PIXELS:
        raise ConfigError(
            f"image size {height}x{width} is too large; allowed: at most "
            f"{MAX_INPUT_PIXELS:,} pixels; give what load_preprocess(name)(image) returns, or "
            "tiles of the image"
        )
    return height, width


def check_grid(grid_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Return the grid (rows, columns) of a ViT's patches; raise ConfigError if it is too large."""
    positions = grid_size[0] * grid_size[1]
    if positions > MAX_POSITIONS:
        height, width = (side * patch_size for side in grid_size)
        raise ConfigError(
            f"image size {height}x{width} gives {positions:,} patches of {patch_size} pixels; "
            f"allowed: at most {MAX_POSITIONS:,}"
        )
    return grid_size


def check_mask(attn_mask: Tensor | None, x: Tensor, num_heads: int, merge_tokens: int) -> None:
    """Raise ConfigError unless a mask is None or can be broadcast to the scores of tokens.

    Args:
        attn_mask: the argument of a forward method.
        x: tokens (N, S, D).
        num_heads: heads of a block.
        merge_tokens: number of tokens that each block merges.
    """
    if attn_mask is None:
        return
    if merge_tokens:
        raise ConfigError(
            f"attn_mask is for all tokens, but merge_tokens is {merge_tokens}; leave one of them "
            "out"
        )
    kind: Any = attn_mask
    if isinstance(attn_mask, Tensor):
        kind = f"{attn_mask.dtype} {tuple(attn_mask.shape)}"
        scores = (x.shape[0], num_heads, x.shape[1], x.shape[1])
        sides = zip(reversed(attn_mask.shape), reversed(scores))
        if (
            attn_mask.dtype in (torch.bool, x.dtype)
            and 2 <= attn_mask.ndim <= 4
            and all(side in (1, wanted) for side, wanted in sides)
        ):
            return
    raise ConfigError(
        f"attn_mask is {describe(kind)}; give a bool or {x.dtype} tensor that can be broadcast "
        f"to (N, heads, S, S) with S={x.shape[1]}"
    )
