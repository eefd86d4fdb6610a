"""Presets: named training runs, and the source of each of their numbers. Imports no torch.

A preset has the name of the model that it trains. SWAG's own training code was never released, so
every number is marked; see `value_sources`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from swag_models.errors import ConfigError, suggest_names
from swag_models.recipe.config import EMA, Engine, Objective, Optimizer, Run
from swag_models.recipe.config_overrides import iterate_fields
from swag_models.recipe.distill_runs import DISTILL, DISTILL_SOURCES
from swag_models.recipe.nano_runs import (
    DRAWINGS_SOURCES,
    NANO_DISTILL,
    NANO_FINETUNE,
    NANO_HASHTAGS,
    NANO_LINEAR,
    NANO_MULTILABEL,
    NANO_SOURCES,
    REGNETY_200MF_HASHTAGS,
    REGNETY_NANO_FINETUNE,
    REGNETY_NANO_HASHTAGS,
    REGNETY_NANO_LINEAR,
    REGNETY_NANO_MULTILABEL,
)
from swag_models.recipe.value_sources import (
    UNUSED_OBJECTIVE,
    ValueSource,
    choose,
    confirm,
    interpret,
    quote,
)

DATA_FIELDS = ("samples_per_epoch", "num_classes")  # of a preset, beside those of its run


@dataclass(frozen=True)
class Preset:
    """A run with a name.

    Args:
        name: of the model that it trains.
        summary: in a line.
        run: the settings.
        samples_per_epoch: of the data that it is meant for; used for estimates only.
        num_classes: of the data that it is meant for; used for estimates only.
        sources: by the name of a field, or of a part for all of its fields; the longest name that
            matches a field counts.
    """

    name: str
    summary: str
    run: Run
    samples_per_epoch: int
    num_classes: int
    sources: Mapping[str, ValueSource]


def get_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        ConfigError: there is none; the message suggests similar names.
    """
    presets = {preset.name: preset for preset in PRESETS}
    if name in presets:
        return presets[name]
    raise ConfigError(suggest_names("preset", name, presets))


def find_value_source(preset: Preset, field: str) -> ValueSource:
    """Find where a value of a preset comes from.

    Args:
        preset: the preset.
        field: a field of its run such as "optimizer.lr", or one of DATA_FIELDS.
    """
    assert field in DATA_FIELDS or field in dict(iterate_fields(preset.run)), field
    # "ema.decay", then "ema"
    names = [field.rsplit(".", cut)[0] for cut in range(field.count(".") + 1)]
    return next((preset.sources[name] for name in names if name in preset.sources), DEFAULT)


# Documents. Pull request 5793 is the recipe that torchvision's metadata of the weights link to.
PAPER = "Singh et al. 2022, arXiv 2201.08371"
MAHAJAN = "Mahajan et al. 2018, arXiv 1805.00932, section 2.2"
MODEL_TABLE = "model table in the README of facebookresearch/SWAG"
MODEL_CODE = "public code of the released models"
FINETUNE_CONFIG = "authors' config for RegNetY 128GF, facebookresearch/SWAG issue 8"
FINETUNE_ANSWER = "the values of the paper, as discussed in facebookresearch/SWAG issue 9"
LOSS_ANSWER = f"authors' answer, facebookresearch/SWAG issue 15, and {MAHAJAN}"
PRECISION_ADVICE = "authors' answer in their issue tracker"
LINEAR_RECIPE = "pytorch/vision pull request 5793"
WEIGHTS = "torchvision's metadata of the weights"
ML_DECODER = "train.py of Alibaba-MIIL/ML_Decoder, arXiv 2111.12933"

# A source names each field, so that a field that is added later has none until someone states it.
OBJECTIVE_FIELDS = ("objective.kind", "objective.label_smoothing", "objective.mixup")
EMA_FIELDS = ("ema.decay", "ema.warmup_ratio")
CROP_FIELDS = ("augment.scale", "augment.ratio")
SCHEDULE_FIELDS = ("warmup", "schedule")
UNUSED_FIELDS = (
    *("augment.auto", "augment.color_jitter", "augment.grayscale", "augment.sizes"),
    *("patch_drop_rate", "merge_tokens", "cooldown", "optimizer.adjust_lr_fn"),
)

# Sources that several presets share
DEFAULT = choose("the default; not part of the published recipe")
ARCH = confirm("the published architectures", MODEL_TABLE)
NO_DROP_PATH = confirm("the released models have neither stochastic depth nor dropout", MODEL_CODE)
CROP_RANGE = interpret("the usual range of RandomResizedCrop; none is stated")
FLIP = interpret("horizontal flip is confirmed; one half is the usual probability")
NOT_STATED = interpret("none is stated")
NO_EMA = interpret("stated for fine-tuning only")
NO_BETAS = choose("for AdamW; SGD has none")
NO_MOMENTUM = choose("for SGD; AdamW has betas instead")
NO_SCALING = interpret("the rate is meant for this batch size")
BF16 = confirm("bf16 with norms in float32 is stable; ViT-H in fp16 is not", PRECISION_ADVICE)
AMP = choose("mixed precision is confirmed, its type is not; bf16 needs no loss scaling")
LARGE = choose("to fit the memory of one GPU; does not change what is learnt")
IN1K = confirm("the training images of ImageNet-1k", WEIGHTS)
IN1K_CLASSES = confirm("the classes of ImageNet-1k", WEIGHTS)
SHARED_TARGET = confirm(
    "cross-entropy with 1/K on each of K hashtags; losses per hashtag were worse", LOSS_ANSWER
)
PUBLISHED_BACKBONE = confirm("the published backbone of hashtag pre-training", WEIGHTS)
LARGE_ENGINE = {"engine.parallel": LARGE, "engine.grad_checkpointing": LARGE}
# FSDP2 over the GPUs of a run
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
    **UNUSED_OBJECTIVE,
    "arch": ARCH,
    "image_size": confirm("pre-trained at 224 pixels", MODEL_TABLE),
    "batch_size": interpret("8192 over all GPUs"),
    "epochs": interpret("1 epoch of 5 billion; 2 are confirmed for the two largest models only"),
    "steps": choose("the length is given in epochs"),
    **dict.fromkeys(SCHEDULE_FIELDS, interpret("5% of all steps, then half a cosine to 0")),
    "drop_path_rate": NO_DROP_PATH,
    "optimizer.clip_norm": NOT_STATED,
    "optimizer.layer_decay": NOT_STATED,
    **dict.fromkeys(("objective.kind", "objective.weighting"), SHARED_TARGET),
    "objective.label_smoothing": NOT_STATED,
    "objective.mixup": NOT_STATED,
    **dict.fromkeys(CROP_FIELDS, CROP_RANGE),
    "augment.interpolation": interpret("as in the published preprocessing"),
    "augment.flip": FLIP,
    **dict.fromkeys(UNUSED_FIELDS, NOT_STATED),
    "ema": NO_EMA,
    "engine.precision": BF16,
    "samples_per_epoch": confirm("about 5 billion samples of 3.6 billion images", PAPER),
    "num_classes": confirm("about 27,000 canonical hashtags", PAPER),
}
# one statement covers several fields
REGNET_SGD = interpret("SGD with Nesterov momentum 0.9")
REGNET_RATE = interpret("0.1 per 256 samples, scaled linearly")
REGNET_DECAY = interpret("1e-5, none on batch norms")
REGNET_HASHTAG_SOURCES = {
    **HASHTAG_SOURCES,
    "optimizer": REGNET_SGD,
    "optimizer.lr": REGNET_RATE,
    "optimizer.lr_batch": REGNET_RATE,
    "optimizer.betas": NO_BETAS,
    "optimizer.weight_decay": REGNET_DECAY,
    "optimizer.no_decay": REGNET_DECAY,
}
VIT_DECAY = interpret("0.1, none on biases, norms, class token and position embedding")
VIT_HASHTAG_SOURCES = {
    **HASHTAG_SOURCES,
    "optimizer": interpret("AdamW, betas 0.9 and 0.95, rate 4e-4 at batch size 8192"),
    "optimizer.momentum": NO_MOMENTUM,
    "optimizer.weight_decay": VIT_DECAY,
    "optimizer.no_decay": VIT_DECAY,
}
# overrides "epochs" for regnety_128gf and vit_h14
TWICE = confirm("the two largest models saw 10 billion samples, 2 epochs", PAPER)

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
    **UNUSED_OBJECTIVE,
    "arch": ARCH,
    "image_size": confirm("the image size of the published model", MODEL_TABLE),
    "steps": choose("the length is given in epochs, which suit other data too"),
    "init": PUBLISHED_BACKBONE,
    "trainable": confirm("fine-tuned end to end", WEIGHTS),
    "drop_path_rate": NO_DROP_PATH,
    "optimizer.kind": REGNET_SGD,
    "optimizer.momentum": REGNET_SGD,
    "optimizer.lr_batch": NO_SCALING,
    "optimizer.betas": NO_BETAS,
    "optimizer.no_decay": choose("has no effect without weight decay"),
    "optimizer.layer_decay": NOT_STATED,
    "objective.label_smoothing": NOT_STATED,
    "objective.mixup": NOT_STATED,
    **dict.fromkeys(CROP_FIELDS, CROP_RANGE),
    "augment.flip": FLIP,
    **dict.fromkeys(UNUSED_FIELDS, NOT_STATED),
    "engine.precision": AMP,
    "samples_per_epoch": IN1K,
    "num_classes": IN1K_CLASSES,
}
REGNET_IN1K_SOURCES = {
    **IN1K_SOURCES,
    "batch_size": confirm("20,000 steps of 512", FINETUNE_ANSWER),
    "epochs": confirm(
        "8 epochs, stated as 20,000 steps; for 1,281,167 images they are 20,018", FINETUNE_ANSWER
    ),
    **dict.fromkeys(SCHEDULE_FIELDS, confirm("a cosine without warm-up", FINETUNE_ANSWER)),
    "optimizer.lr": confirm("a cosine from 6e-3", FINETUNE_ANSWER),
    "optimizer.weight_decay": confirm("none", FINETUNE_ANSWER),
    "optimizer.clip_norm": NOT_STATED,
    "objective.kind": interpret("cross-entropy with the targets that mixup mixes"),
    "objective.mixup": confirm("alpha 0.1", FINETUNE_CONFIG),
    "augment.interpolation": confirm("bicubic RandomResizedCrop", FINETUNE_CONFIG),
    # Their constant 1e-4 is the share of the new weights. A user who took it for the decay got 50%.
    **dict.fromkeys(
        EMA_FIELDS,
        confirm(
            "1e-4 of the new weights in each step; copies in the first 5% of steps", FINETUNE_CONFIG
        ),
    ),
    "engine.sync_bn": confirm("batch statistics over all GPUs", FINETUNE_CONFIG),
}
# the config that the authors published is for a RegNet
LIKE_REGNET = interpret("as confirmed for the RegNets")
VIT_IN1K_SOURCES = {
    **IN1K_SOURCES,
    "batch_size": LIKE_REGNET,
    "epochs": LIKE_REGNET,
    **dict.fromkeys(SCHEDULE_FIELDS, LIKE_REGNET),
    "optimizer.lr": interpret("0.01"),
    "optimizer.weight_decay": LIKE_REGNET,
    "optimizer.clip_norm": interpret("norm 1"),
    **dict.fromkeys(OBJECTIVE_FIELDS, LIKE_REGNET),
    "augment.interpolation": LIKE_REGNET,
    **dict.fromkeys(EMA_FIELDS, LIKE_REGNET),
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
LINEAR_SGD = confirm("SGD with Nesterov momentum 0.9", LINEAR_RECIPE)
LINEAR_SOURCES = {
    **IN1K_SOURCES,
    "image_size": confirm("224 pixels", LINEAR_RECIPE),
    "batch_size": confirm("256 for RegNets, 1024 for ViTs", LINEAR_RECIPE),
    "epochs": confirm("28 epochs", LINEAR_RECIPE),
    "trainable": confirm("a linear classifier on the frozen backbone", WEIGHTS),
    "warmup": interpret("a cosine is confirmed; no warm-up is stated"),
    "schedule": confirm("a cosine", LINEAR_RECIPE),
    "optimizer.kind": LINEAR_SGD,
    "optimizer.momentum": LINEAR_SGD,
    "optimizer.lr": confirm("1e-3 for RegNets", LINEAR_RECIPE),
    "optimizer.weight_decay": confirm("1e-3 for RegNets, 1e-9 for ViTs", LINEAR_RECIPE),
    "optimizer.no_decay": interpret("no exception is stated"),
    "optimizer.clip_norm": NOT_STATED,
    **dict.fromkeys(OBJECTIVE_FIELDS, interpret("plain cross-entropy; nothing else is stated")),
    "augment.interpolation": confirm("bicubic RandomResizedCrop", LINEAR_RECIPE),
    "ema": NO_EMA,
}
VIT_LINEAR_SOURCES = {**LINEAR_SOURCES, "optimizer.lr": interpret("1e-2")}

# Multi-label fine-tuning, which SWAG does not have: a published recipe for MS-COCO

MULTILABEL_RUN = Run(
    arch="vit_b16",
    image_size=448,
    batch_size=64,
    epochs=40,
    warmup=0.2,
    optimizer=Optimizer("adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4, clip_norm=1.0),
    objective=Objective("sigmoid"),
    ema=EMA(decay=0.9997, warmup_ratio=0.05),
)
LIKE_IN1K = choose("as in fine-tuning on ImageNet-1k")
ADAM = quote(
    "Adam, torch's betas, decoupled weight decay 1e-4 except on norms and biases", ML_DECODER
)
MULTILABEL_SOURCES = {
    **IN1K_SOURCES,
    "image_size": quote("448 pixels", ML_DECODER),
    "batch_size": choose("near the published 56, and a multiple of common numbers of GPUs"),
    "epochs": quote("40 epochs", ML_DECODER),
    "trainable": quote("the whole model", ML_DECODER),
    **dict.fromkeys(SCHEDULE_FIELDS, quote("rises in 20% of steps, then a cosine", ML_DECODER)),
    "optimizer": ADAM,
    "optimizer.kind": ADAM,
    "optimizer.lr": quote("a peak of 1e-4", ML_DECODER),
    "optimizer.betas": ADAM,
    "optimizer.momentum": NO_MOMENTUM,
    "optimizer.no_decay": ADAM,
    "optimizer.clip_norm": LIKE_IN1K,
    "objective.kind": choose("plain binary cross-entropy; the source has kind=asymmetric"),
    **dict.fromkeys((*CROP_FIELDS, "augment.flip"), choose("the source uses RandAugment, Cutout")),
    "augment.interpolation": LIKE_IN1K,
    "ema.decay": quote("0.9997", ML_DECODER),
    "ema.warmup_ratio": LIKE_IN1K,
    "samples_per_epoch": quote("the training images of MS-COCO 2014", ML_DECODER),
    "num_classes": quote("the categories of MS-COCO", ML_DECODER),
}

# Samples per epoch and classes of the hashtag data, ImageNet-1k, the generated posts and their
# held-out images; of MS-COCO
IG, IN, POSTS, HELD_OUT = (5_000_000_000, 27_000), (1_281_167, 1000), (24_000, 61), (2_000, 32)
COCO = (82_783, 80)
DRAWINGS = (21_000, 1_700)  # of the clip art, emoji and scenes of `python -m studies models`
TUNED = "fine-tuning on ImageNet-1k, end to end"
LINEAR_CLASSIFIER = "a linear classifier for ImageNet-1k on a frozen backbone"
DISTILLED = "learning from the outputs of another model, without labels"
SEVERAL = "multi-label fine-tuning, end to end"
NANO_SEVERAL = "miniature multi-label fine-tuning on scenes with several things"
NANO_PRETRAINING = "miniature pre-training on the generated scenes' hashtags"
DRAWINGS_PRETRAINING = "pre-training on the keywords of clip art and emoji"
NANO_TUNED = "miniature fine-tuning on held-out scenes"
NANO_LINEAR_PROBE = "miniature linear classifier on held-out scenes"


def _make_presets(
    arch: str, *, in1k_size: int = 384, epochs: int = 1, large: bool = False
) -> tuple[Preset, ...]:
    """Pre-training, fine-tuning, linear and multi-label classifier of one architecture.

    Args:
        arch: of the catalog.
        in1k_size: pixels in fine-tuning.
        epochs: of pre-training.
        large: shard the model and recompute activations when the backbone is trained.
    """
    runs = (REGNET_HASHTAGS, REGNET_IN1K, REGNET_LINEAR)
    sources = (REGNET_HASHTAG_SOURCES, REGNET_IN1K_SOURCES, LINEAR_SOURCES)
    if arch.startswith("vit"):
        runs = (VIT_HASHTAGS, VIT_IN1K, VIT_LINEAR)
        sources = (VIT_HASHTAG_SOURCES, VIT_IN1K_SOURCES, VIT_LINEAR_SOURCES)
    engine, engine_sources = (SHARDED, LARGE_ENGINE) if large else (Engine(), {})
    hashtags = replace(runs[0], arch=arch, epochs=epochs, engine=engine)
    in1k = replace(runs[1], arch=arch, init=arch, image_size=in1k_size, engine=engine)
    linear = replace(runs[2], arch=arch, init=arch)
    several = replace(MULTILABEL_RUN, arch=arch, init=arch, engine=engine)
    hashtag_sources = {**sources[0], **engine_sources, **({"epochs": TWICE} if epochs == 2 else {})}
    several_sources = {**MULTILABEL_SOURCES, **engine_sources}
    summary = f"pre-training on hashtags, {5 * epochs} billion samples"
    return (
        Preset(f"{arch}_hashtags", summary, hashtags, *IG, hashtag_sources),
        Preset(f"{arch}_in1k", TUNED, in1k, *IN, {**sources[1], **engine_sources}),
        Preset(f"{arch}_in1k_linear", LINEAR_CLASSIFIER, linear, *IN, sources[2]),
        Preset(f"{arch}_multilabel", SEVERAL, several, *COCO, several_sources),
        Preset(
            *(f"{arch}_distill", DISTILLED, replace(DISTILL, arch=arch, engine=engine), *IN),
            {**DISTILL_SOURCES, **engine_sources},
        ),
    )


PRESETS = (
    *_make_presets("regnety_16gf"),
    *_make_presets("regnety_32gf"),
    *_make_presets("regnety_128gf", epochs=2, large=True),
    *_make_presets("vit_b16"),
    *_make_presets("vit_l16", in1k_size=512, large=True),
    *_make_presets("vit_h14", in1k_size=518, epochs=2, large=True),
    Preset("vit_nano_hashtags", NANO_PRETRAINING, NANO_HASHTAGS, *POSTS, NANO_SOURCES),
    Preset("vit_nano_finetune", NANO_TUNED, NANO_FINETUNE, *HELD_OUT, NANO_SOURCES),
    Preset("vit_nano_linear", NANO_LINEAR_PROBE, NANO_LINEAR, *HELD_OUT, NANO_SOURCES),
    Preset("vit_nano_multilabel", NANO_SEVERAL, NANO_MULTILABEL, *HELD_OUT, NANO_SOURCES),
    Preset("regnety_nano_hashtags", NANO_PRETRAINING, REGNETY_NANO_HASHTAGS, *POSTS, NANO_SOURCES),
    Preset("regnety_nano_finetune", NANO_TUNED, REGNETY_NANO_FINETUNE, *HELD_OUT, NANO_SOURCES),
    Preset("regnety_nano_linear", NANO_LINEAR_PROBE, REGNETY_NANO_LINEAR, *HELD_OUT, NANO_SOURCES),
    Preset(
        "regnety_nano_multilabel", NANO_SEVERAL, REGNETY_NANO_MULTILABEL, *HELD_OUT, NANO_SOURCES
    ),
    *(
        Preset(f"{arch}_distill", DISTILLED, replace(NANO_DISTILL, arch=arch), *POSTS, NANO_SOURCES)
        for arch in ("vit_nano", "regnety_nano")
    ),
    Preset(
        "regnety_200mf_hashtags",
        DRAWINGS_PRETRAINING,
        REGNETY_200MF_HASHTAGS,
        *DRAWINGS,
        DRAWINGS_SOURCES,
    ),
)
