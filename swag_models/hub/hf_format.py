"""What a published model looks like on disk: its files, and its spec as config.json. Imports no torch.

config.json        the spec under `swag_models`, its source relative; beside it what timm reads, where timm has the architecture
model.safetensors  the weights in timm's names, which are ours; or, above a size,
model-0000i-of-0000n.safetensors and model.safetensors.index.json, which names the file of each tensor and the files' SHA-256
README.md          the model card
recipe.json        how it was trained, and vocabulary.parquet, its hashtags; of a model that the recipe made
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swag_models.errors import CheckpointError, ConfigError
from swag_models.spec import ModelSpec, RegNetConfig, ViTConfig

CONFIG_FILE, CARD_FILE, WEIGHTS_FILE = "config.json", "README.md", "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
RECIPE_FILE, VOCABULARY_FILE = "recipe.json", "vocabulary.parquet"
SPEC_KEY = "swag_models"
SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
REMOVABLE_FILE = re.compile(  # what an earlier version may have left
    rf"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|{re.escape(RECIPE_FILE)}|{re.escape(VOCABULARY_FILE)}"
)

TIMM_VITS = {
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}  # by width, for the name
TIMM_REGNETS = {  # RegNetY as Radosavovic et al. (arXiv 2003.13678) and SWAG give them, under timm's names
    RegNetConfig(depth=13, w_0=24, w_a=36.44, w_m=2.49, group_width=8): "regnety_002",
    RegNetConfig(depth=16, w_0=48, w_a=27.89, w_m=2.09, group_width=8): "regnety_004",
    RegNetConfig(depth=15, w_0=48, w_a=32.54, w_m=2.32, group_width=16): "regnety_006",
    RegNetConfig(depth=27, w_0=48, w_a=20.71, w_m=2.65, group_width=24): "regnety_016",
    RegNetConfig(depth=21, w_0=80, w_a=42.63, w_m=2.66, group_width=24): "regnety_032",
    RegNetConfig(depth=22, w_0=96, w_a=31.41, w_m=2.24, group_width=64): "regnety_040",
    RegNetConfig(depth=17, w_0=192, w_a=76.82, w_m=2.19, group_width=56): "regnety_080",
    RegNetConfig(depth=18, w_0=200, w_a=106.23, w_m=2.48, group_width=112): "regnety_160",
    RegNetConfig(depth=20, w_0=232, w_a=115.89, w_m=2.53, group_width=232): "regnety_320",
    RegNetConfig(depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=264): "regnety_1280",
}


@dataclass(frozen=True)
class Index:
    """Which file of a sharded model holds each tensor, and the SHA-256 of each file, None where it is not stated."""

    tensors: Mapping[str, str]
    shards: Mapping[str, str | None]


def make_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """config.json for a spec whose one source is a file beside it."""
    return {**_describe_for_timm(spec), "dtype": dtype, SPEC_KEY: spec.to_dict()}


def read_config(path: Path, place: str) -> ModelSpec:
    """The spec in a config.json, its source completed with the `place` its folder has: file:///..., or hf://org/repo@commit.

    ConfigError if it is not a model of this library, or names anything but a file of weights beside it.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not isinstance(config, dict) or SPEC_KEY not in config:
        raise ConfigError(
            f"{path} describes no model of this library (it has no {SPEC_KEY!r}); publish.save writes such a file"
        )
    try:
        spec = ModelSpec.from_dict(config[SPEC_KEY])
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}; a newer version of this library may have written it"
        ) from None
    names = [source.url for source in spec.sources]
    classes = spec.classes if isinstance(spec.classes, tuple) else ()
    if names not in ([WEIGHTS_FILE], [INDEX_FILE]):
        raise ConfigError(
            f"{path}: the sources are {', '.join(names) or 'missing'}; expected {WEIGHTS_FILE} or {INDEX_FILE} alone"
        )
    if not re.fullmatch("[0-9a-f]{64}", spec.sources[0].sha256 or ""):
        raise ConfigError(
            f"{path}: the SHA-256 of {names[0]} is {spec.sources[0].sha256!r}; expected 64 hex digits"
        )
    if classes and len(classes) != spec.num_classes:
        raise ConfigError(
            f"{path} has {len(classes)} class names for {spec.num_classes or 'no'} classes"
        )
    check_texts(spec, str(path))
    return replace(
        spec, sources=tuple(replace(source, url=f"{place}/{source.url}") for source in spec.sources)
    )


def check_texts(spec: ModelSpec, origin: str) -> None:
    """ConfigError if a text that is going to be shown could act on the terminal instead."""
    names = spec.classes if isinstance(spec.classes, tuple) else ()
    texts = (
        spec.name,
        spec.arch,
        spec.variant,
        spec.description,
        spec.license,
        spec.license_url,
        *names,
    )
    if strange := next((text for text in texts if CONTROL_CHARACTERS.search(text)), None):
        raise ConfigError(
            f"{origin}: {strange!r} holds control characters; texts must be of one line"
        )


def read_folder(folder: Path) -> ModelSpec:
    """The spec of a published model in a folder, its source the file there; ConfigError if there is none."""
    path = folder.absolute() / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is no published model: it has no {CONFIG_FILE}; to load a bare weight file pass weights="
        )
    return read_config(path, path.parent.as_uri())


def read_index(path: Path) -> Index:
    """The index of a sharded model; CheckpointError unless it names plain files beside it, each tensor once."""
    try:
        data = json.loads(path.read_text("utf-8"), object_pairs_hook=_refuse_repeats)
        tensors, hashes = data["weight_map"], data.get("metadata", {}).get("sha256", {})
        strange = sorted(
            {
                str(name)
                for name in tensors.values()
                if not (type(name) is str and SHARD_NAME.fullmatch(name))
            }
        )
        shards = (
            {name: hashes.get(name) for name in sorted(set(tensors.values()))}
            if not strange
            else {}
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} is no index of a sharded model: {reason}") from None
    if (
        strange
        or not shards
        or not all(type(each) is str or each is None for each in shards.values())
    ):
        found = f": {strange[0]!r} is none" if strange else ""
        raise CheckpointError(
            f"{path} was refused: an index names .safetensors files beside it and their SHA-256{found}"
        )
    return Index(tensors, shards)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)} twice")
    return made


def is_known_to_timm(spec: ModelSpec) -> bool:
    """Whether timm has the architecture, so that its `create_model` reads the folder."""
    return isinstance(spec.config, ViTConfig) or spec.config in TIMM_REGNETS


def _describe_for_timm(spec: ModelSpec) -> dict[str, Any]:
    """The entries of config.json that timm reads; without `architecture` where it has none such."""
    config, pre = spec.config, spec.preprocess
    args: dict[str, Any] = {} if spec.in_chans == 3 else {"in_chans": spec.in_chans}
    pool = spec.global_pool or "avg"
    if isinstance(config, ViTConfig):
        architecture, first_conv, classifier = (
            TIMM_VITS.get(config.width, TIMM_VITS[768]),
            "patch_embed.proj",
            "head",
        )
        pool = spec.global_pool or "token"
        ratio = config.mlp_width / config.width
        args |= {
            "img_size": list(pre.size),
            "patch_size": config.patch_size,
            "embed_dim": config.width,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": ratio
            if int(config.width * ratio) == config.mlp_width
            else math.nextafter(ratio, math.inf),
        }
        args |= (
            {"global_pool": pool, "fc_norm": False} if pool == "avg" else {}
        )  # timm would move the norm behind the pool
        width = config.width
    else:
        architecture, first_conv, classifier = TIMM_REGNETS.get(config, ""), "stem.conv", "head.fc"
        width = config.stages[-1][0]
    pretrained: dict[str, Any] = {
        "input_size": [spec.in_chans, *pre.size],
        "fixed_input_size": isinstance(config, ViTConfig),
        "interpolation": pre.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(pre.mean),
        "std": list(pre.std),
        "num_classes": spec.num_classes or 0,
        "pool_size": None,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": spec.license,
    }
    if isinstance(spec.classes, tuple):
        pretrained["label_names"] = list(spec.classes)
    facts = {"num_classes": spec.num_classes or 0, "num_features": width, "global_pool": pool}
    named = {"architecture": architecture} if architecture else {}
    return {**named, **facts, "model_args": args, "pretrained_cfg": pretrained}
