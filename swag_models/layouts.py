"""The three naming schemes in which these weights are published, and translation between them.

This module is below `models` and `checkpoint` in the import order, because both use it: a model's
`load_state_dict` accepts every layout, and a checkpoint is translated before it is fitted to a
model.

Axes: D width, h w grid of patches.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, cat

from swag_models.errors import CheckpointError
from swag_models.spec import Layout


class Names(NamedTuple):
    """Templates for the name of a tensor, or of a family of tensors, in each layout.

    {i} stands for a layer, {s} for a stage, {b} for a block counted from 0, {b1} for the same block
    counted from 1, and * for any ending. If several rows have the same name in a layout, all are
    recognised when reading and the first is used when writing. Models use timm's names.
    """

    timm: str
    torchvision: str
    swag: str


# Prefixes of a block: timm's, torchvision's, the original's
_BLOCK = "blocks.{i}."
_LAYER = "encoder.layers.encoder_layer_{i}."
_SWAG = "encoder.layers.layer_{i}."
VIT = (
    Names("cls_token", "class_token", "class_token"),
    Names("pos_embed", "encoder.pos_embedding", "encoder.pos_embedding"),
    Names("patch_embed.proj.*", "conv_proj.*", "conv_proj.*"),
    Names(_BLOCK + "norm1.*", _LAYER + "ln_1.*", _SWAG + "ln_1.*"),
    Names(_BLOCK + "norm2.*", _LAYER + "ln_2.*", _SWAG + "ln_2.*"),
    Names(
        _BLOCK + "attn.qkv.*",
        _LAYER + "self_attention.in_proj_*",
        _SWAG + "self_attention.in_proj_*",
    ),
    Names(
        _BLOCK + "attn.proj.*",
        _LAYER + "self_attention.out_proj.*",
        _SWAG + "self_attention.out_proj.*",
    ),
    Names(_BLOCK + "mlp.fc1.*", _LAYER + "mlp.0.*", _SWAG + "mlp.linear_1.*"),
    Names(_BLOCK + "mlp.fc2.*", _LAYER + "mlp.3.*", _SWAG + "mlp.linear_2.*"),
    # As torchvision before 0.13 named the MLP; it still reads these names.
    Names(_BLOCK + "mlp.fc1.*", _LAYER + "mlp.linear_1.*", _SWAG + "mlp.linear_1.*"),
    Names(_BLOCK + "mlp.fc2.*", _LAYER + "mlp.linear_2.*", _SWAG + "mlp.linear_2.*"),
    Names("norm.*", "encoder.ln.*", "encoder.ln.*"),
    Names("head.*", "heads.head.*", "head.layers.head.*"),
)

# Prefixes of a block: timm's, and the one that torchvision and the original share
_STAGE = "s{s}.b{b1}."
_TRUNK = "trunk_output.block{s}.block{s}-{b}."
REGNET = (
    Names("stem.conv.*", "stem.0.*", "stem.stem.0.*"),
    Names("stem.bn.*", "stem.1.*", "stem.stem.1.*"),
    Names(_STAGE + "downsample.conv.*", _TRUNK + "proj.0.*", _TRUNK + "proj.*"),
    Names(_STAGE + "downsample.bn.*", _TRUNK + "proj.1.*", _TRUNK + "bn.*"),
    Names(_STAGE + "conv1.conv.*", _TRUNK + "f.a.0.*", _TRUNK + "f.a.0.*"),
    Names(_STAGE + "conv1.bn.*", _TRUNK + "f.a.1.*", _TRUNK + "f.a.1.*"),
    Names(_STAGE + "conv2.conv.*", _TRUNK + "f.b.0.*", _TRUNK + "f.b.0.*"),
    Names(_STAGE + "conv2.bn.*", _TRUNK + "f.b.1.*", _TRUNK + "f.b.1.*"),
    Names(_STAGE + "se.fc1.*", _TRUNK + "f.se.fc1.*", _TRUNK + "f.se.excitation.0.*"),
    Names(_STAGE + "se.fc2.*", _TRUNK + "f.se.fc2.*", _TRUNK + "f.se.excitation.2.*"),
    Names(_STAGE + "conv3.conv.*", _TRUNK + "f.c.0.*", _TRUNK + "f.c.*"),
    Names(_STAGE + "conv3.bn.*", _TRUNK + "f.c.1.*", _TRUNK + "f.final_bn.*"),
    Names("head.fc.*", "fc.*", "head.fc.*"),
)

# All layouts have torchvision's names.
RESNET = tuple(
    Names(name, name, name)
    for name in (
        "conv1.*",
        "bn1.*",
        "layer{s}.{b}.conv{i}.*",
        "layer{s}.{b}.bn{i}.*",
        "layer{s}.{b}.downsample.0.*",
        "layer{s}.{b}.downsample.1.*",
        "fc.*",
    )
)

TABLES = {"vit": VIT, "regnet": REGNET, "resnet": RESNET}
# One key of each layout that no other layout has.
LAYOUT_KEYS: dict[str, tuple[str, Layout]] = {
    "cls_token": ("vit", "timm"),
    "encoder.layers.encoder_layer_0.ln_1.weight": ("vit", "torchvision"),
    "encoder.layers.layer_0.ln_1.weight": ("vit", "swag"),
    "stem.conv.weight": ("regnet", "timm"),
    "stem.0.weight": ("regnet", "torchvision"),
    "stem.stem.0.weight": ("regnet", "swag"),
    "layer1.0.conv1.weight": ("resnet", "timm"),  # the names are the same in all layouts
}


def recognise_layout(keys: Iterable[str]) -> tuple[str, Layout] | None:
    """Return the family and layout of a state dict.

    Args:
        keys: the keys of the state dict.

    Returns:
        For example ("vit", "timm"); None if it is not of a ViT, RegNet or ResNet in a known layout.
    """
    present = set(keys)
    return next((layout for key, layout in LAYOUT_KEYS.items() if key in present), None)


def translate_layout(state: Mapping[str, Tensor], target: Layout) -> dict[str, Tensor]:
    """Translate a state dict to another layout.

    Args:
        state: tensors by name, in any of the layouts.
        target: "swag", "torchvision" or "timm".

    Returns:
        The names and shapes of `target`; the tensors are views of those in `state`. An unknown key
        is kept unchanged, for a strict load to report.

    Raises:
        CheckpointError: `target` or the layout of `state` is unknown.
    """
    if target not in get_args(Layout):
        raise CheckpointError(f"unknown layout {target!r}; allowed: {', '.join(get_args(Layout))}")
    recognised = recognise_layout(state)
    if recognised is None:
        first = ", ".join(list(state)[:3]) or "none"
        raise CheckpointError(
            f"unknown state-dict layout (first keys: {first}); "
            f"allowed: {', '.join(get_args(Layout))}"
        )
    family, source = recognised
    if source == target:
        return dict(state)
    translated = {_rename_key(key, family, source, target): tensor for key, tensor in state.items()}
    if family == "vit":
        (name,) = (getattr(row, target) for row in VIT if row.timm == "pos_embed")
        if name in translated and translated[name].ndim == 3:
            position = translated[name]
            # The original puts tokens first: (1 + h w, 1, D), the others (1, 1 + h w, D).
            shape = (-1, 1, position.shape[-1]) if target == "swag" else (1, -1, position.shape[-1])
            translated[name] = position.reshape(shape)
    return translated


def find_unknown_keys(state: Iterable[str]) -> list[str]:
    """Return the keys of a recognised state dict that its layout does not have."""
    layout = recognise_layout(state)
    assert layout is not None
    patterns = [pattern for pattern, _ in _compile_patterns(*layout)]
    return [key for key in state if not any(pattern.fullmatch(key) for pattern in patterns)]


def resize_position_embedding(
    position: Tensor, old: tuple[int, int], new: tuple[int, int]
) -> Tensor:
    """Resize a position embedding to another grid of patches.

    The class token's position is kept. The others are resized bicubically with aligned corners and
    without antialiasing, as for the published fine-tuned models (and as by torchvision's
    `interpolate_embeddings`).

    Args:
        position: (1, 1 + h w, D), learned on the grid `old`.
        old: (rows, columns).
        new: (rows, columns).

    Returns:
        (1, 1 + h' w', D) for the grid `new`.
    """
    token, grid = position[:, :1], position[:, 1:]
    grid = grid.reshape(1, old[0], old[1], -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    # In float32, because half precision would round the interpolation weights.
    grid = F.interpolate(grid.float(), size=list(new), mode="bicubic", align_corners=True)
    return cat([token, grid.to(position.dtype).flatten(2).transpose(1, 2)], dim=1)


def _rename_key(key: str, family: str, source: Layout, target: Layout) -> str:
    """Return a key's name in the layout `target`; an unknown key unchanged."""
    for pattern, row in _compile_patterns(family, source):
        if match := pattern.fullmatch(key):
            values = match.groupdict()
            if "b1" in values:
                values["b"] = str(int(values["b1"]) - 1)
            elif "b" in values:
                values["b1"] = str(int(values["b"]) + 1)
            return str(getattr(row, target)).replace("*", "{rest}").format(**values)
    return key


@cache
def _compile_patterns(family: str, layout: Layout) -> tuple[tuple[re.Pattern[str], Names], ...]:
    """Compile each row's template in `layout` to a regular expression."""
    patterns = []
    for row in TABLES[family]:
        text = re.escape(getattr(row, layout)).replace(r"\*", "(?P<rest>.+)")
        for name in ("i", "s", "b", "b1"):
            # The first occurrence captures the number; any later one must match the same number.
            text = text.replace(rf"\{{{name}\}}", rf"(?P<{name}>\d+)", 1)
            text = text.replace(rf"\{{{name}\}}", f"(?P={name})")
        patterns.append((re.compile(text), row))
    return tuple(patterns)
