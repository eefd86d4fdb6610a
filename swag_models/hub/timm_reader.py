"""The spec of a model that timm or transformers saved, from its config.json. Imports no torch.

The format is that of `timm/models/_hub.py`, `save_config_for_hf`, which transformers keeps.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from swag_models.architectures import Config, RegNetConfig, ResNetConfig, ViTConfig
from swag_models.catalog import MODELS
from swag_models.catalog.configs import REGNETY_NANO
from swag_models.decoding import decode_fields, decode_value
from swag_models.errors import ConfigError, check_choice
from swag_models.formatting import count_noun, describe, list_names
from swag_models.hub.model_size import count_size
from swag_models.hub.timm_format import (
    MULTI_LABEL,
    OWN_REGNET,
    OWN_TIMM_PREFIX,
    RESNET_ARGS,
    TIMM_REGNETS,
    TIMM_RESNETS,
    make_label,
)
from swag_models.spec import UNKNOWN, ModelSpec, Pool, Preprocess

logger = logging.getLogger("swag_models")

# timm's ViTs without extra layers: size, patch size, image size
VIT_NAME = re.compile(
    r"vit_(tiny|small|base|large|huge|giant|gigantic)_patch(\d{1,3})_(\d{1,4})", re.ASCII
)
# Width, depth, heads and MLP width (Dosovitskiy et al., arXiv 2010.11929; Touvron et al.,
# arXiv 2012.12877; Zhai et al., arXiv 2106.04560).
VIT_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
    "gigantic": (1664, 48, 16, 8192),
}
# Arguments of timm's models that do not change what a trained model computes
HARMLESS_ARGS = re.compile(
    r".*drop(_path|_block)?_rate|img_size|(dynamic|strict)_img_size|weight_init|fix_init"
    r"|zero_init_last|num_classes|in_chans|pretrained.*"
)
# Values of other arguments of timm's models with which they compute what ours do
PLAIN_ARGS: dict[str, Any] = {
    "class_token": True,  # nosec B105 # a name of timm's
    "dynamic_img_pad": False,
    "features_only": False,
    "final_norm": True,
    "init_values": None,
    "no_embed_class": False,
    "output_stride": 32,
    "pos_embed": "learn",
    "pre_norm": False,
    "proj_bias": True,
    "qk_norm": False,
    "qkv_bias": True,
    "reg_tokens": 0,
}


def is_timm_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json was written by timm, or by transformers for a model of timm."""
    return isinstance(config.get("architecture"), str)


def read_timm_config(
    config: Mapping[str, Any], name: str, origin: ModelSpec | None = None
) -> ModelSpec:
    """The spec, without sources, of a model that timm or transformers saved.

    Args:
        config: content of its config.json.
        name: of the model.
        origin: the spec in the same file, if the model was made from one of this library; it
            describes other weights.

    Raises:
        ConfigError: the architecture is not one of this library, or a value has another type.
    """
    source = _get(config, "pretrained_cfg", dict[str, Any], dict(config))  # flat in old files
    args = _get(config, "model_args", dict[str, Any] | None, None) or {}
    architecture = _get(config, "architecture", str, "").partition(".")[0]
    model = _read_architecture(architecture, args)
    channels, *size = _get(source, "input_size", tuple[int, int, int], (3, 224, 224))
    if (img_size := _get(args, "img_size", int | tuple[int, int] | None, None)) is not None:
        size = [img_size, img_size] if isinstance(img_size, int) else list(img_size)
    in_chans = _get(args, "in_chans", int, channels)
    num_classes = _read_num_classes(config, source)
    pool = _read_pool(args, model, num_classes)
    params, macs = count_size(model, (size[0], size[1]), in_chans=in_chans, num_classes=num_classes)
    license = _get(source, "license", str | None, None) or UNKNOWN
    archs = {spec.config: spec.arch for spec in (*MODELS, *([origin] if origin else []))}
    return ModelSpec(
        name=name,
        arch=archs.get(model, architecture),
        variant="published",
        description=_describe_origin(origin) if origin else f"{architecture} of timm",
        config=model,
        preprocess=read_preprocess(source, (size[0], size[1])),
        num_classes=num_classes,
        classes=read_classes(config, source, num_classes, origin, name),
        num_params=params,
        gmacs=round(macs / 1e9, 3),
        metrics=None,
        license=origin.license if origin else license.lower(),
        license_url=origin.license_url if origin else "",
        sources=(),
        in_chans=in_chans,
        global_pool=pool,
        multi_label=MULTI_LABEL.items() <= config.items(),
        pretraining=origin.pretraining if origin else None,
    )


def _get(values: Mapping[str, Any], key: str, hint: Any, default: Any) -> Any:
    """A value of a JSON object, checked against a type."""
    return decode_value(hint, values[key], key, positive=False) if key in values else default


def _describe_origin(origin: ModelSpec) -> str:
    text = origin.description.split(";")[0]
    return text if text.startswith("derived from ") else f"derived from {origin.name}: {text}"


def _read_architecture(name: str, args: Mapping[str, Any]) -> Config:
    """The configuration of an architecture of timm, changed by arguments."""
    known = {f"{OWN_TIMM_PREFIX}{spec.name}": spec.config for spec in MODELS}
    known |= {timm_name: config for config, timm_name in TIMM_REGNETS.items()}
    known |= {timm_name: config for config, timm_name in TIMM_RESNETS.items()}
    known[OWN_REGNET] = REGNETY_NANO
    config: Config
    if match := VIT_NAME.fullmatch(name):
        width, depth, num_heads, mlp_width = VIT_SIZES[match[1]]
        config = ViTConfig(int(match[2]), depth, width, num_heads, mlp_width)
    elif name in known:
        config = known[name]
    else:
        raise ConfigError(
            f"architecture is {describe(name)}, which this library does not have; allowed: "
            "RegNetY, and ResNet, ResNeXt and ViT without changes, as resnet50 and "
            "vit_base_patch16_224"
        )
    args = dict(args)
    if isinstance(config, ViTConfig):
        config = _change_vit(config, args)
    elif isinstance(config, ResNetConfig):
        config = _change_resnet(config, args)
    elif name == OWN_REGNET:
        config = change_regnet(config, args)
    others = [
        f"{key}={describe(value)}"
        for key, value in args.items()
        if not (
            HARMLESS_ARGS.fullmatch(key)
            or key in ("global_pool", "fc_norm")  # see `_read_pool`
            or (key in PLAIN_ARGS and value == PLAIN_ARGS[key])
        )
    ]
    if others:
        raise ConfigError(
            f"model_args has {list_names(others)}, with which timm's {name} is another "
            "architecture than this library's"
        )
    return config


def change_regnet(config: RegNetConfig, args: dict[str, Any]) -> RegNetConfig:
    """Apply the fields of a RegNetConfig that are in `args`, and remove them from it."""
    names = [field.name for field in fields(RegNetConfig)]
    changes = {key: args.pop(key) for key in names if key in args}
    return decode_fields(RegNetConfig, {**asdict(config), **changes}, "model_args.")


def _change_resnet(config: ResNetConfig, args: dict[str, Any]) -> ResNetConfig:
    """Apply arguments of timm's ResNet, and remove them from `args`."""
    changes = {field: args.pop(key) for key, field in RESNET_ARGS.items() if key in args}
    return decode_fields(ResNetConfig, {**asdict(config), **changes}, "model_args.")


def _change_vit(config: ViTConfig, args: dict[str, Any]) -> ViTConfig:
    """Apply arguments of timm's VisionTransformer, and remove them from `args`."""
    width = _get(args, "embed_dim", int, config.width)
    ratio = _get(args, "mlp_ratio", float, config.mlp_width / config.width)
    patch = _get(args, "patch_size", int | tuple[int, int], config.patch_size)
    if isinstance(patch, tuple) and patch[0] != patch[1]:
        raise ConfigError(f"patch_size is {describe(patch)}; allowed: square patches")
    mlp_width = config.mlp_width
    if "mlp_ratio" in args or "embed_dim" in args:
        mlp_width = int(width * ratio)
    config = ViTConfig(
        patch_size=patch if isinstance(patch, int) else patch[0],
        depth=_get(args, "depth", int, config.depth),
        width=width,
        num_heads=_get(args, "num_heads", int, config.num_heads),
        mlp_width=mlp_width,
    )
    for key in ("patch_size", "depth", "embed_dim", "num_heads", "mlp_ratio"):
        args.pop(key, None)
    return config


def _read_pool(args: Mapping[str, Any], config: Config, num_classes: int | None) -> Pool | None:
    """`ModelSpec.global_pool` for the arguments of a model of timm."""
    pool = _get(args, "global_pool", str | None, None)
    if pool is None:
        pool = "token" if isinstance(config, ViTConfig) else "avg"
    allowed = ("token", "avg") if isinstance(config, ViTConfig) else ("avg",)
    check_choice("global_pool", pool, *allowed, *([] if num_classes else [""]))
    fc_norm = _get(args, "fc_norm", bool | None, None)
    # By default timm moves the norm behind the average.
    if isinstance(config, ViTConfig) and (fc_norm or (pool == "avg" and fc_norm is None)):
        raise ConfigError(
            "the norm is behind the pooling (fc_norm), which this library does not have; in timm "
            "pass fc_norm=False to create_model before training"
        )
    # Without a head, a RegNet or ResNet of this library has no pooling unless it is asked for.
    default = "token" if isinstance(config, ViTConfig) else "avg" if num_classes else ""
    return None if pool == default else pool


def _read_num_classes(config: Mapping[str, Any], source: Mapping[str, Any]) -> int | None:
    if config.get("architectures") == ["TimmWrapperModel"]:  # transformers' AutoModel has no head
        return None
    count = _get(config, "num_classes", int, _get(source, "num_classes", int, 1000))
    return count or None


def read_preprocess(source: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    """The preprocessing in a `pretrained_cfg`.

    Args:
        source: the `pretrained_cfg`.
        size: (height, width) of the input in pixels.

    Raises:
        ConfigError: this library has no such preprocessing.
    """
    interpolation = source.get("interpolation", "bicubic")
    check_choice("interpolation", interpolation, "bicubic", "bilinear")
    statistics = {}
    for key in ("mean", "std"):
        values = _get(source, key, tuple[float, ...], getattr(Preprocess, key))
        # One for all channels; timm repeats it for models of other than three channels.
        statistics[key] = values[:1] * 3 if len(set(values)) == 1 else values
        if len(statistics[key]) != 3:
            raise ConfigError(
                f"{key} has {count_noun(len(values), 'value')}; allowed: 3, for R, G and B"
            )
    if (mode := _get(source, "crop_mode", str, "center")) not in ("center", "squash"):
        raise ConfigError(
            f"crop_mode is {describe(mode)}, which this library does not have; use timm's "
            "create_transform(**resolve_model_data_config(model))"
        )
    height, width = size
    return Preprocess(
        height if height == width else size,
        interpolation,
        **statistics,
        crop_pct=_get(source, "crop_pct", float, 0.875),
        crop_mode=mode,
    )


def read_loaded_preprocess(source: Mapping[str, Any]) -> Preprocess:
    """The preprocessing in the `pretrained_cfg` of a model in memory.

    Raises:
        ConfigError: this library has no such preprocessing.
    """
    _, *size = _get(source, "input_size", tuple[int, int, int], (3, 224, 224))
    return read_preprocess(source, (size[0], size[1]))


def read_classes(
    config: Mapping[str, Any],
    source: Mapping[str, Any],
    num_classes: int | None,
    origin: ModelSpec | None,
    name: str,
) -> str | tuple[str, ...] | None:
    """The class names; None if they have none."""
    if num_classes is None:
        return None
    labels = config.get("label_names") or source.get("label_names") or config.get("labels")
    if isinstance(labels, dict):  # by index, as text in JSON
        labels = [labels.get(str(index)) for index in range(len(labels))]
    if labels is not None:
        labels = decode_value(tuple[str, ...], labels, "label_names")
        if len(labels) != num_classes:
            # transformers keeps those of the model that was fine-tuned, if they are so named.
            logger.warning(
                "label_names of %s has %s for %s, and is ignored",
                name,
                count_noun(len(labels), "name"),
                count_noun(num_classes, "class"),
            )
            return None
        if labels != tuple(map(make_label, range(num_classes))):
            return labels
    if origin and origin.num_classes == num_classes:
        return origin.classes
    return "imagenet-1k" if num_classes == 1000 and not origin and labels is None else None
