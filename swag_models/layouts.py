"""The three namings in which these weights are published, and the translation between them.

Axes: N batch, S tokens, D width, h w grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, cat

from swag_models.errors import CheckpointError
from swag_models.spec import Layout


class Names(NamedTuple):
    """One tensor, or family of tensors, in each layout; timm's names are also our own.

    {i} a layer, {s} a stage, {b} a block counted from 0, {b1} the same from 1, * any rest. Of several rows with one name the
    first is written, all are read.
    """

    timm: str
    torchvision: str
    swag: str


VIT = (
    Names("cls_token", "class_token", "class_token"),
    Names("pos_embed", "encoder.pos_embedding", "encoder.pos_embedding"),
    Names("patch_embed.proj.*", "conv_proj.*", "conv_proj.*"),
    Names(
        "blocks.{i}.norm1.*",
        "encoder.layers.encoder_layer_{i}.ln_1.*",
        "encoder.layers.layer_{i}.ln_1.*",
    ),
    Names(
        "blocks.{i}.norm2.*",
        "encoder.layers.encoder_layer_{i}.ln_2.*",
        "encoder.layers.layer_{i}.ln_2.*",
    ),
    Names(
        "blocks.{i}.attn.qkv.*",
        "encoder.layers.encoder_layer_{i}.self_attention.in_proj_*",
        "encoder.layers.layer_{i}.self_attention.in_proj_*",
    ),
    Names(
        "blocks.{i}.attn.proj.*",
        "encoder.layers.encoder_layer_{i}.self_attention.out_proj.*",
        "encoder.layers.layer_{i}.self_attention.out_proj.*",
    ),
    Names(
        "blocks.{i}.mlp.fc1.*",
        "encoder.layers.encoder_layer_{i}.mlp.0.*",
        "encoder.layers.layer_{i}.mlp.linear_1.*",
    ),
    Names(
        "blocks.{i}.mlp.fc2.*",
        "encoder.layers.encoder_layer_{i}.mlp.3.*",
        "encoder.layers.layer_{i}.mlp.linear_2.*",
    ),
    # torchvision before 0.13 wrote the MLP so, and still reads it
    Names(
        "blocks.{i}.mlp.fc1.*",
        "encoder.layers.encoder_layer_{i}.mlp.linear_1.*",
        "encoder.layers.layer_{i}.mlp.linear_1.*",
    ),
    Names(
        "blocks.{i}.mlp.fc2.*",
        "encoder.layers.encoder_layer_{i}.mlp.linear_2.*",
        "encoder.layers.layer_{i}.mlp.linear_2.*",
    ),
    Names("norm.*", "encoder.ln.*", "encoder.ln.*"),
    Names("head.*", "heads.head.*", "head.layers.head.*"),
)

_OURS, _THEIRS = "s{s}.b{b1}.", "trunk_output.block{s}.block{s}-{b}."
REGNET = (
    Names("stem.conv.*", "stem.0.*", "stem.stem.0.*"),
    Names("stem.bn.*", "stem.1.*", "stem.stem.1.*"),
    Names(_OURS + "downsample.conv.*", _THEIRS + "proj.0.*", _THEIRS + "proj.*"),
    Names(_OURS + "downsample.bn.*", _THEIRS + "proj.1.*", _THEIRS + "bn.*"),
    Names(_OURS + "conv1.conv.*", _THEIRS + "f.a.0.*", _THEIRS + "f.a.0.*"),
    Names(_OURS + "conv1.bn.*", _THEIRS + "f.a.1.*", _THEIRS + "f.a.1.*"),
    Names(_OURS + "conv2.conv.*", _THEIRS + "f.b.0.*", _THEIRS + "f.b.0.*"),
    Names(_OURS + "conv2.bn.*", _THEIRS + "f.b.1.*", _THEIRS + "f.b.1.*"),
    Names(_OURS + "se.fc1.*", _THEIRS + "f.se.fc1.*", _THEIRS + "f.se.excitation.0.*"),
    Names(_OURS + "se.fc2.*", _THEIRS + "f.se.fc2.*", _THEIRS + "f.se.excitation.2.*"),
    Names(_OURS + "conv3.conv.*", _THEIRS + "f.c.0.*", _THEIRS + "f.c.*"),
    Names(_OURS + "conv3.bn.*", _THEIRS + "f.c.1.*", _THEIRS + "f.final_bn.*"),
    Names("head.fc.*", "fc.*", "head.fc.*"),
)

TABLES = {"vit": VIT, "regnet": REGNET}
MARKS: dict[str, tuple[str, Layout]] = {
    "cls_token": ("vit", "timm"),
    "encoder.layers.encoder_layer_0.ln_1.weight": ("vit", "torchvision"),
    "encoder.layers.layer_0.ln_1.weight": ("vit", "swag"),
    "stem.conv.weight": ("regnet", "timm"),
    "stem.0.weight": ("regnet", "torchvision"),
    "stem.stem.0.weight": ("regnet", "swag"),
}


def recognise_layout(keys: Iterable[str]) -> tuple[str, Layout] | None:
    """(family, layout) of a state dict from its keys, or None if it is none of ours."""
    present = set(keys)
    return next((found for mark, found in MARKS.items() if mark in present), None)


def translate_layout(state: Mapping[str, Tensor], target: Layout) -> dict[str, Tensor]:
    """The state dict in the names and shapes of `target`, its tensors views of the given ones.

    A key that no table knows is kept as it is, for a strict load to report. CheckpointError if the layout is unknown.
    """
    if target not in get_args(Layout):
        raise CheckpointError(f"unknown layout {target!r}; allowed: {', '.join(get_args(Layout))}")
    found = recognise_layout(state)
    if found is None:
        seen = ", ".join(list(state)[:3]) or "none"
        raise CheckpointError(
            f"unknown state-dict layout (first keys: {seen}); allowed: {', '.join(get_args(Layout))}"
        )
    family, source = found
    if source == target:
        return dict(state)
    translated = {_rename(key, family, source, target): tensor for key, tensor in state.items()}
    if family == "vit":
        (name,) = (getattr(row, target) for row in VIT if row.timm == "pos_embed")
        if name in translated and translated[name].ndim == 3:
            position = translated[name]
            flat = (-1, 1, position.shape[-1]) if target == "swag" else (1, -1, position.shape[-1])
            translated[name] = position.reshape(flat)
    return translated


def find_unknown_keys(state: Iterable[str]) -> list[str]:
    """The keys of a recognised layout that its table does not know."""
    found = recognise_layout(state)
    assert found is not None
    return [
        key for key in state if not any(pattern.fullmatch(key) for pattern, _ in _patterns(*found))
    ]


def resize_position_embedding(
    position: Tensor, old: tuple[int, int], new: tuple[int, int]
) -> Tensor:
    """(1, 1 + h w, D) learned on grid `old` -> the same for grid `new`.

    The class token is kept; the grid is resized bicubically with aligned corners and no antialiasing, as the published
    fine-tuned models were made (torchvision's `interpolate_embeddings` does the same).
    """
    token, grid = position[:, :1], position[:, 1:]
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)  # (1, D, h, w)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=True).to(
        position.dtype
    )
    return cat([token, grid.flatten(2).transpose(1, 2)], dim=1)


def _rename(key: str, family: str, source: Layout, target: Layout) -> str:
    for pattern, row in _patterns(family, source):
        if match := pattern.fullmatch(key):
            values = match.groupdict()
            if "b1" in values:
                values["b"] = str(int(values["b1"]) - 1)
            elif "b" in values:
                values["b1"] = str(int(values["b"]) + 1)
            return str(getattr(row, target)).replace("*", "{rest}").format(**values)
    return key


@cache
def _patterns(family: str, layout: Layout) -> tuple[tuple[re.Pattern[str], Names], ...]:
    """Each row's template in `layout` as a regular expression."""
    compiled = []
    for row in TABLES[family]:
        text = re.escape(getattr(row, layout)).replace(r"\*", "(?P<rest>.+)")
        for name in ("i", "s", "b", "b1"):
            text = text.replace(rf"\{{{name}\}}", rf"(?P<{name}>\d+)", 1).replace(
                rf"\{{{name}\}}", f"(?P={name})"
            )
        compiled.append((re.compile(text), row))
    return tuple(compiled)
