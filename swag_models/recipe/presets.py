"""Runs by name, and where each of their numbers comes from. Data only; imports no torch.

A preset is called like the model it makes. SWAG's own training code was never released: "confirmed" is what public code, the
weights' metadata or the authors' answers in their issue tracker say, "quoted" what other papers say of it, "our reading" what
we take the recipe to be, and "our choice" is ours alone. Papers: Singh et al. 2022 (arXiv 2201.08371), Mahajan et al. 2018
(arXiv 1805.00932).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from swag_models.errors import ConfigError, suggest_names
from swag_models.recipe.config import (
    EMA,
    Augment,
    Engine,
    Objective,
    Optimizer,
    Run,
    iterate_fields,
)

Mark = Literal["confirmed", "quoted", "our reading", "our choice"]
PLANNED = ("samples_per_epoch", "num_classes")  # what a preset says beside its run


@dataclass(frozen=True)
class ValueSource:
    """Where a number comes from."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Preset:
    """A run with a name.

    samples_per_epoch: samples in an epoch of the data it was meant for. num_classes: theirs. Both are for planning only.
    sources: by the name of a field, or of a part for all of its fields; the longest name that fits a field counts.
    """

    name: str
    summary: str
    run: Run
    samples_per_epoch: int
    num_classes: int
    sources: Mapping[str, ValueSource]


def get_preset(name: str) -> Preset:
    """The preset of a name; ConfigError suggests the nearest names."""
    known = {preset.name: preset for preset in PRESETS}
    if name in known:
        return known[name]
    raise ConfigError(suggest_names("preset", name, known))


def find_value_source(preset: Preset, field: str) -> ValueSource:
    """Where the value of a field such as "optimizer.lr" comes from, or "samples_per_epoch" or "num_classes"."""
    assert field in PLANNED or field in dict(iterate_fields(preset.run)), field
    names = [field.rsplit(".", cut)[0] for cut in range(field.count(".") + 1)]
    return next((preset.sources[name] for name in names if name in preset.sources), DEFAULT)


def _start(run: Run, arch: str, **changes: Any) -> Run:
    """The run for another architecture, from its published trunk."""
    return replace(run, arch=arch, init=arch, **changes)


DEFAULT = ValueSource("our choice", "the default; no part of the published recipe")
ARCH = ValueSource("confirmed", "the published architectures")
NO_DROP_PATH = ValueSource(
    "confirmed", "the released models have neither stochastic depth nor dropout"
)
CROP = ValueSource("confirmed", "RandomResizedCrop and horizontal flip")
CROP_RANGE = ValueSource("our reading", "the usual range of a RandomResizedCrop; none is named")
FLIP = ValueSource("our reading", "horizontal flip is confirmed, and one half the usual share")
CUBIC = ValueSource("confirmed", "bicubic RandomResizedCrop")
NO_SMOOTHING = ValueSource("our reading", "none is named")
NO_MIXUP = ValueSource("our reading", "none is named")
NO_EMA = ValueSource("our reading", "none is named but for fine-tuning")
NO_BETAS = ValueSource("our choice", "of AdamW; SGD has none")
NO_MOMENTUM = ValueSource("our choice", "of SGD; AdamW goes by its betas")
NO_LAYER_DECAY = ValueSource("our reading", "none is named")
NO_CLIPPING = ValueSource("our reading", "none is named")
NO_SCALING = ValueSource("our reading", "the rate is for this batch size as it is")
BF16 = ValueSource(
    "confirmed",
    "the authors' advice: bf16 with norms in float32 is stable, where ViT-H in fp16 is not",
)
AMP = ValueSource(
    "our choice", "mixed precision is confirmed, its kind is not; in bf16 no loss needs scaling"
)
LARGE = ValueSource("our choice", "for the memory of one GPU; it changes nothing that is learnt")
IN1K = ValueSource("confirmed", "the training images of ImageNet-1k")
IN1K_CLASSES = ValueSource("confirmed", "the classes of ImageNet-1k")
TRUNK = ValueSource("confirmed", "the published trunk of hashtag pre-training")
LARGE_ENGINE = {"engine.parallel": LARGE, "engine.grad_checkpointing": LARGE}
SHARDED = Engine(parallel="fsdp", grad_checkpointing=True)

# Pre-training on hashtags

REGNET_HASHTAGS = Run(
    arch="regnety_16gf",
    image_size=224,
    batch_size=8192,
    epochs=1,
    warmup=0.05,
    optimizer=Optimizer(
        "sgd", lr=0.1, lr_batch=256, momentum=0.9, weight_decay=1e-5, no_decay="norms"
    ),
)
VIT_HASHTAGS = replace(
    REGNET_HASHTAGS,
    arch="vit_b16",
    optimizer=Optimizer(
        "adamw", lr=4e-4, betas=(0.9, 0.95), weight_decay=0.1, no_decay="norms and biases"
    ),
)
HASHTAG_SOURCES = {
    "arch": ARCH,
    "image_size": ValueSource("confirmed", "pre-trained at 224 pixels"),
    "batch_size": ValueSource("our reading", "8192 over all GPUs"),
    "epochs": ValueSource(
        "our reading", "1 epoch of 5 billion; 2 are confirmed for the two largest models alone"
    ),
    "steps": ValueSource("our choice", "told in epochs instead"),
    "warmup": ValueSource("our reading", "5% of all steps, then half a cosine to 0"),
    "drop_path_rate": NO_DROP_PATH,
    "optimizer.clip_norm": NO_CLIPPING,
    "optimizer.layer_decay": NO_LAYER_DECAY,
    "objective.kind": ValueSource(
        "confirmed",
        "cross-entropy with 1/K on each of K hashtags; losses per hashtag were found worse",
    ),
    "objective.label_smoothing": NO_SMOOTHING,
    "objective.mixup": NO_MIXUP,
    "augment": CROP_RANGE,
    "augment.interpolation": ValueSource("our reading", "as the published preprocessing"),
    "augment.flip": FLIP,
    "ema": NO_EMA,
    "engine.precision": BF16,
    "samples_per_epoch": ValueSource("confirmed", "about 5 billion samples of 3.6 billion images"),
    "num_classes": ValueSource("confirmed", "about 27,000 canonical hashtags"),
}
REGNET_HASHTAG_SOURCES = {
    **HASHTAG_SOURCES,
    "optimizer": ValueSource("our reading", "SGD with Nesterov momentum 0.9"),
    "optimizer.lr": ValueSource("our reading", "0.1 per 256 samples, scaled linearly"),
    "optimizer.lr_batch": ValueSource("our reading", "0.1 per 256 samples, scaled linearly"),
    "optimizer.betas": NO_BETAS,
    "optimizer.weight_decay": ValueSource("our reading", "1e-5, but none on batch norms"),
    "optimizer.no_decay": ValueSource("our reading", "1e-5, but none on batch norms"),
}
VIT_HASHTAG_SOURCES = {
    **HASHTAG_SOURCES,
    "optimizer": ValueSource("our reading", "AdamW, betas 0.9 and 0.95, rate 4e-4 at batch 8192"),
    "optimizer.momentum": NO_MOMENTUM,
    "optimizer.weight_decay": ValueSource(
        "our reading", "0.1, but none on biases, norms, class token and positions"
    ),
    "optimizer.no_decay": ValueSource(
        "our reading", "0.1, but none on biases, norms, class token and positions"
    ),
}
TWICE = {
    "epochs": ValueSource("confirmed", "the two largest models saw 10 billion samples, 2 epochs")
}

# Fine-tuning on ImageNet-1k, and linear classifiers

REGNET_IN1K = Run(
    arch="regnety_16gf",
    image_size=384,
    batch_size=512,
    epochs=8,
    init="regnety_16gf",
    optimizer=Optimizer("sgd", lr=6e-3, momentum=0.9),
    objective=Objective(mixup=0.1),
    ema=EMA(decay=0.9999, warmup_ratio=0.05),
)
VIT_IN1K = replace(
    REGNET_IN1K,
    arch="vit_b16",
    init="vit_b16",
    optimizer=Optimizer("sgd", lr=0.01, momentum=0.9, clip_norm=1.0),
)
IN1K_SOURCES = {
    "arch": ARCH,
    "image_size": ValueSource("confirmed", "the size of the published model"),
    "steps": ValueSource("our choice", "told in epochs instead, which fit other data too"),
    "init": TRUNK,
    "trainable": ValueSource("confirmed", "fine-tuned end to end"),
    "drop_path_rate": NO_DROP_PATH,
    "optimizer.kind": ValueSource("our reading", "SGD with Nesterov momentum 0.9"),
    "optimizer.momentum": ValueSource("our reading", "SGD with Nesterov momentum 0.9"),
    "optimizer.lr_batch": NO_SCALING,
    "optimizer.betas": NO_BETAS,
    "optimizer.no_decay": ValueSource(
        "our choice", "without weight decay nothing is to be exempt from"
    ),
    "optimizer.layer_decay": NO_LAYER_DECAY,
    "objective.label_smoothing": NO_SMOOTHING,
    "augment": CROP_RANGE,
    "augment.flip": FLIP,
    "engine.precision": AMP,
    "samples_per_epoch": IN1K,
    "num_classes": IN1K_CLASSES,
}
REGNET_IN1K_SOURCES = {
    **IN1K_SOURCES,
    "batch_size": ValueSource("confirmed", "20,000 steps of 512"),
    "epochs": ValueSource(
        "confirmed", "8 epochs, told as 20,000 steps; of 1,281,167 images they are 20,018"
    ),
    "warmup": ValueSource("confirmed", "a cosine from 6e-3, with no warm-up"),
    "optimizer.lr": ValueSource("confirmed", "a cosine from 6e-3"),
    "optimizer.weight_decay": ValueSource("confirmed", "none"),
    "optimizer.clip_norm": NO_CLIPPING,
    "objective.kind": ValueSource("our reading", "cross-entropy with the targets that mixup mixes"),
    "objective.mixup": ValueSource("confirmed", "alpha 0.1"),
    "augment.interpolation": CUBIC,
    "ema": ValueSource(
        "confirmed", "1e-4 of the new weights in each step; copies in the first 5% of steps"
    ),
    "engine.sync_bn": ValueSource("confirmed", "batch statistics over all GPUs"),
}
LIKE_REGNET = ValueSource("our reading", "as confirmed for the RegNets")
VIT_IN1K_SOURCES = {
    **IN1K_SOURCES,
    **dict.fromkeys(
        (
            "batch_size",
            "epochs",
            "warmup",
            "optimizer.weight_decay",
            "objective",
            "augment.interpolation",
            "ema",
        ),
        LIKE_REGNET,
    ),
    "optimizer.lr": ValueSource("our reading", "0.01"),
    "optimizer.clip_norm": ValueSource("our reading", "norm 1"),
}
REGNET_LINEAR = Run(
    arch="regnety_16gf",
    image_size=224,
    batch_size=256,
    epochs=28,
    init="regnety_16gf",
    trainable="head",
    optimizer=Optimizer("sgd", lr=1e-3, momentum=0.9, weight_decay=1e-3, no_decay="nothing"),
)
VIT_LINEAR = replace(
    REGNET_LINEAR,
    arch="vit_b16",
    init="vit_b16",
    batch_size=1024,
    optimizer=Optimizer("sgd", lr=1e-2, momentum=0.9, weight_decay=1e-9, no_decay="nothing"),
)
LINEAR_SOURCES = {
    **IN1K_SOURCES,
    "image_size": ValueSource("confirmed", "224 pixels"),
    "batch_size": ValueSource("confirmed", "256 for RegNets, 1024 for ViTs"),
    "epochs": ValueSource("confirmed", "28 epochs"),
    "trainable": ValueSource("confirmed", "a linear classifier on the frozen trunk"),
    "warmup": ValueSource("our reading", "a cosine is confirmed, and no warm-up is named"),
    "optimizer.kind": ValueSource("confirmed", "SGD with Nesterov momentum 0.9"),
    "optimizer.momentum": ValueSource("confirmed", "SGD with Nesterov momentum 0.9"),
    "optimizer.lr": ValueSource("confirmed", "1e-3 for RegNets"),
    "optimizer.weight_decay": ValueSource("confirmed", "1e-3 for RegNets, 1e-9 for ViTs"),
    "optimizer.no_decay": ValueSource("our reading", "no exemption is named"),
    "optimizer.clip_norm": NO_CLIPPING,
    "objective": ValueSource("our reading", "plain cross-entropy; nothing else is named"),
    "augment.interpolation": CUBIC,
    "ema": NO_EMA,
}
VIT_LINEAR_SOURCES = {**LINEAR_SOURCES, "optimizer.lr": ValueSource("our reading", "1e-2")}

# Miniatures for the generated scenes, which a processor trains in minutes: all of it is our choice

NANO = ValueSource("our choice", "for the generated scenes, on a processor")
NANO_HASHTAGS = Run(
    arch="vit_nano",
    image_size=48,
    batch_size=32,
    epochs=1.25,
    warmup=0.05,
    optimizer=Optimizer("adamw", lr=2e-3, weight_decay=0.05, clip_norm=1.0),
    augment=Augment(scale=(0.8, 1.0)),
    engine=Engine(precision="fp32", workers=0),
)
NANO_FINETUNE = replace(
    NANO_HASHTAGS,
    epochs=None,
    steps=200,
    init="vit_nano_hashtags",
    optimizer=replace(NANO_HASHTAGS.optimizer, lr=1e-3),
)
NANO_LINEAR = replace(
    NANO_FINETUNE, trainable="head", optimizer=replace(NANO_HASHTAGS.optimizer, lr=1e-2)
)
REGNETY_NANO_HASHTAGS = replace(
    NANO_HASHTAGS,
    arch="regnety_nano",
    batch_size=64,
    epochs=0.85,
    optimizer=replace(NANO_HASHTAGS.optimizer, lr=4e-3),
)
REGNETY_NANO_FINETUNE = replace(
    REGNETY_NANO_HASHTAGS,
    batch_size=32,
    epochs=10,
    init="regnety_nano_hashtags",
    optimizer=replace(NANO_HASHTAGS.optimizer, lr=2e-3),
)
REGNETY_NANO_LINEAR = replace(
    REGNETY_NANO_FINETUNE, trainable="head", optimizer=replace(NANO_HASHTAGS.optimizer, lr=1e-2)
)
NANO_SOURCES = {
    **dict.fromkeys(
        (*(name.split(".")[0] for name, _ in iterate_fields(NANO_FINETUNE)), *PLANNED), NANO
    ),
    "init": ValueSource("our choice", "the model, or a folder, that the preset of this name makes"),
    "samples_per_epoch": ValueSource(
        "our choice", "about what curating 20,000 posts gives, or the held-out pictures"
    ),
    "num_classes": ValueSource(
        "our choice", "about what curating 20,000 posts gives, or the things in the scenes"
    ),
}

# Samples in an epoch, classes: of the hashtag data, ImageNet-1k, the generated posts, and their held-out pictures

IG, IN, POSTS, HELD_OUT = (5_000_000_000, 27_000), (1_281_167, 1000), (24_000, 61), (2_000, 32)
ONE_EPOCH, TWO_EPOCHS = (
    "pre-training on hashtags, 5 billion samples",
    "pre-training on hashtags, 10 billion samples",
)
TUNED, LINEAR = (
    "fine-tuning on ImageNet-1k, end to end",
    "a linear classifier for ImageNet-1k on a frozen trunk",
)

PRESETS = (
    Preset("regnety_16gf_hashtags", ONE_EPOCH, REGNET_HASHTAGS, *IG, REGNET_HASHTAG_SOURCES),
    Preset("regnety_16gf_in1k", TUNED, REGNET_IN1K, *IN, REGNET_IN1K_SOURCES),
    Preset("regnety_16gf_in1k_linear", LINEAR, REGNET_LINEAR, *IN, LINEAR_SOURCES),
    Preset(
        "regnety_32gf_hashtags",
        ONE_EPOCH,
        replace(REGNET_HASHTAGS, arch="regnety_32gf"),
        *IG,
        REGNET_HASHTAG_SOURCES,
    ),
    Preset(
        "regnety_32gf_in1k", TUNED, _start(REGNET_IN1K, "regnety_32gf"), *IN, REGNET_IN1K_SOURCES
    ),
    Preset(
        "regnety_32gf_in1k_linear",
        LINEAR,
        _start(REGNET_LINEAR, "regnety_32gf"),
        *IN,
        LINEAR_SOURCES,
    ),
    Preset(
        "regnety_128gf_hashtags",
        TWO_EPOCHS,
        replace(REGNET_HASHTAGS, arch="regnety_128gf", epochs=2, engine=SHARDED),
        *IG,
        {**REGNET_HASHTAG_SOURCES, **LARGE_ENGINE, **TWICE},
    ),
    Preset(
        "regnety_128gf_in1k",
        TUNED,
        _start(REGNET_IN1K, "regnety_128gf", engine=SHARDED),
        *IN,
        {**REGNET_IN1K_SOURCES, **LARGE_ENGINE},
    ),
    Preset(
        "regnety_128gf_in1k_linear",
        LINEAR,
        _start(REGNET_LINEAR, "regnety_128gf"),
        *IN,
        LINEAR_SOURCES,
    ),
    Preset("vit_b16_hashtags", ONE_EPOCH, VIT_HASHTAGS, *IG, VIT_HASHTAG_SOURCES),
    Preset("vit_b16_in1k", TUNED, VIT_IN1K, *IN, VIT_IN1K_SOURCES),
    Preset("vit_b16_in1k_linear", LINEAR, VIT_LINEAR, *IN, VIT_LINEAR_SOURCES),
    Preset(
        "vit_l16_hashtags",
        ONE_EPOCH,
        replace(VIT_HASHTAGS, arch="vit_l16", engine=SHARDED),
        *IG,
        {**VIT_HASHTAG_SOURCES, **LARGE_ENGINE},
    ),
    Preset(
        "vit_l16_in1k",
        TUNED,
        _start(VIT_IN1K, "vit_l16", image_size=512, engine=SHARDED),
        *IN,
        {**VIT_IN1K_SOURCES, **LARGE_ENGINE},
    ),
    Preset("vit_l16_in1k_linear", LINEAR, _start(VIT_LINEAR, "vit_l16"), *IN, VIT_LINEAR_SOURCES),
    Preset(
        "vit_h14_hashtags",
        TWO_EPOCHS,
        replace(VIT_HASHTAGS, arch="vit_h14", epochs=2, engine=SHARDED),
        *IG,
        {**VIT_HASHTAG_SOURCES, **LARGE_ENGINE, **TWICE},
    ),
    Preset(
        "vit_h14_in1k",
        TUNED,
        _start(VIT_IN1K, "vit_h14", image_size=518, engine=SHARDED),
        *IN,
        {**VIT_IN1K_SOURCES, **LARGE_ENGINE},
    ),
    Preset("vit_h14_in1k_linear", LINEAR, _start(VIT_LINEAR, "vit_h14"), *IN, VIT_LINEAR_SOURCES),
    Preset(
        "vit_nano_hashtags",
        "miniature pre-training on the generated scenes' hashtags",
        NANO_HASHTAGS,
        *POSTS,
        NANO_SOURCES,
    ),
    Preset(
        "vit_nano_finetune",
        "miniature fine-tuning on held-out scenes",
        NANO_FINETUNE,
        *HELD_OUT,
        NANO_SOURCES,
    ),
    Preset(
        "vit_nano_linear",
        "miniature linear classifier on held-out scenes",
        NANO_LINEAR,
        *HELD_OUT,
        NANO_SOURCES,
    ),
    Preset(
        "regnety_nano_hashtags",
        "miniature pre-training on the generated scenes' hashtags",
        REGNETY_NANO_HASHTAGS,
        *POSTS,
        NANO_SOURCES,
    ),
    Preset(
        "regnety_nano_finetune",
        "miniature fine-tuning on held-out scenes",
        REGNETY_NANO_FINETUNE,
        *HELD_OUT,
        NANO_SOURCES,
    ),
    Preset(
        "regnety_nano_linear",
        "miniature linear classifier on held-out scenes",
        REGNETY_NANO_LINEAR,
        *HELD_OUT,
        NANO_SOURCES,
    ),
)
