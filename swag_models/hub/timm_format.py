"""The entries of config.json that timm and transformers read. Imports neither of them, nor torch.

Format: `timm/models/_hub.py`, `save_config_for_hf`. `timm_reader` reads such entries.
"""

import math
from dataclasses import asdict
from typing import Any

from swag_models.architectures import RegNetConfig, ResNetConfig, ViTConfig
from swag_models.spec import ModelSpec

# Architecture names of timm by width. timm takes all other numbers from `model_args`.
TIMM_VITS = {
    768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224",
    1280: "vit_huge_patch14_224",
}
# RegNetY configurations of Radosavovic et al. (arXiv 2003.13678) and SWAG, with timm's names.
TIMM_REGNETS = {
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
# Architecture names of timm by kind of block and groups. timm takes all numbers from `model_args`.
TIMM_RESNETS = {
    ResNetConfig("basic", (2, 2, 2, 2)): "resnet18",
    ResNetConfig("basic", (3, 4, 6, 3)): "resnet34",
    ResNetConfig("bottleneck", (3, 4, 6, 3)): "resnet50",
    ResNetConfig("bottleneck", (3, 4, 23, 3)): "resnet101",
    ResNetConfig("bottleneck", (3, 8, 36, 3)): "resnet152",
    ResNetConfig("bottleneck", (3, 4, 6, 3), groups=32, group_width=4): "resnext50_32x4d",
    ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=4): "resnext101_32x4d",
    ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=8): "resnext101_32x8d",
    ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=16): "resnext101_32x16d",
    ResNetConfig("bottleneck", (3, 4, 23, 3), groups=32, group_width=32): "resnext101_32x32d",
}
# Arguments of timm's ResNets and the fields of a ResNetConfig
RESNET_ARGS = {"layers": "depths", "cardinality": "groups", "base_width": "group_width"}
# The architecture of all other RegNets. timm does not have it, and says so, unless
# `swag_models.timm` was imported. Without a name, transformers would make a random ResNet-50.
OWN_REGNET = "swag_models_regnety"
OWN_TIMM_PREFIX = "swag_"  # of the catalog's models in timm, see `swag_models.timm`
# Entry with which transformers takes the sigmoid of each logit, for losses and probabilities.
MULTI_LABEL = {"problem_type": "multi_label_classification"}
# Numbers of classes for which timm and transformers assume the class names of ImageNet.
IMAGENET_COUNTS = {1000, 11221, 11821, 21841, 21842, 21843}


def is_known_to_timm(spec: ModelSpec) -> bool:
    """Whether timm has the architecture, so that its `create_model` reads the folder."""
    return not isinstance(spec.config, RegNetConfig) or spec.config in TIMM_REGNETS


def describe_for_timm(spec: ModelSpec) -> dict[str, Any]:
    """The entries of config.json that timm and transformers read."""
    preprocess, num_classes = spec.preprocess, spec.num_classes or 0
    model_args: dict[str, Any] = {} if spec.in_chans == 3 else {"in_chans": spec.in_chans}
    if isinstance(spec.config, ViTConfig):
        architecture = TIMM_VITS.get(spec.config.width, TIMM_VITS[768])
        first_conv, classifier, num_features = "patch_embed.proj", "head", spec.config.width
        pool = "token" if spec.global_pool is None else spec.global_pool
        model_args |= _make_vit_args(spec.config, preprocess.size)
        if pool == "avg":  # by default timm would then move the norm behind the pooling
            model_args |= {"global_pool": pool, "fc_norm": False}
        elif not pool:
            model_args |= {"global_pool": pool}
        pool_size = None
    else:
        architecture, conv_args = _name_for_timm(spec.config)
        model_args |= conv_args
        first_conv, classifier = "stem.conv", "head.fc"
        if isinstance(spec.config, ResNetConfig):
            first_conv, classifier = "conv1", "fc"
        num_features = spec.config.stages[-1][0]
        stride = 2 ** (1 + len(spec.config.stages))
        pool_size = [math.ceil(side / stride) for side in preprocess.size]
        pool = spec.global_pool or "avg"
    pretrained_cfg: dict[str, Any] = {
        "input_size": [spec.in_chans, *preprocess.size],
        "fixed_input_size": isinstance(spec.config, ViTConfig),
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop_pct,
        "crop_mode": preprocess.crop_mode,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "num_classes": num_classes,
        "pool_size": pool_size,
        # timm before 1.0.31 would adapt this convolution from 3 channels, whatever the file has
        "first_conv": first_conv if spec.in_chans == 3 else None,
        "classifier": classifier,
        "license": spec.license,
    }
    labels = spec.classes if isinstance(spec.classes, tuple) else None
    if spec.classes is None and num_classes in IMAGENET_COUNTS:
        labels = tuple(map(make_label, range(num_classes)))
    if labels:
        pretrained_cfg["label_names"] = list(labels)
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        **_describe_labels(labels),
        **(MULTI_LABEL if spec.multi_label else {}),
        "num_features": num_features,
        "global_pool": pool,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }


def _name_for_timm(config: RegNetConfig | ResNetConfig) -> tuple[str, dict[str, Any]]:
    """The name of a convolutional architecture in timm, and its arguments."""
    if isinstance(config, ResNetConfig):
        if config in TIMM_RESNETS:
            return TIMM_RESNETS[config], {}
        name = "resnet18" if config.block == "basic" else "resnet50"
        args = {key: getattr(config, field) for key, field in RESNET_ARGS.items()}
        return name, {key: list(v) if isinstance(v, tuple) else v for key, v in args.items()}
    if config in TIMM_REGNETS:
        return TIMM_REGNETS[config], {}
    return OWN_REGNET, asdict(config)


def _describe_labels(labels: tuple[str, ...] | None) -> dict[str, Any]:
    """The entries that transformers reads for class names; timm's are in `pretrained_cfg`."""
    if labels is None:
        return {}
    if len(labels) in IMAGENET_COUNTS:  # otherwise transformers takes ImageNet's names
        return {"label_names": list(labels)}
    # Not as `label_names`, which transformers would save again for a model fine-tuned on others.
    names: dict[str, Any] = {"id2label": {str(index): label for index, label in enumerate(labels)}}
    if len(set(labels)) == len(labels):
        names["label2id"] = {label: index for index, label in enumerate(labels)}
    return names


def make_label(index: int) -> str:
    """The name of a class without a name, as in transformers."""
    return f"LABEL_{index}"


def _make_vit_args(config: ViTConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer."""
    ratio = config.mlp_width / config.width
    if int(config.width * ratio) != config.mlp_width:  # timm truncates the product
        ratio = math.nextafter(ratio, math.inf)
    return {
        "img_size": list(image_size),
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": ratio,
    }
