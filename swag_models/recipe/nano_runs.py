"""Settings of the miniatures for the generated scenes, and their source. Imports no torch."""

from dataclasses import replace

from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import EMA, Checkpointing, Engine, Objective, Optimizer, Run
from swag_models.recipe.config_overrides import iterate_fields
from swag_models.recipe.distill_runs import DISTILL
from swag_models.recipe.value_sources import choose

# Trained on a CPU in minutes; every number is our choice.
NANO_CHOICE = choose("for the generated scenes, on a CPU")
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
NANO_MULTILABEL = replace(NANO_FINETUNE, objective=Objective("sigmoid"))
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
REGNETY_NANO_MULTILABEL = replace(REGNETY_NANO_FINETUNE, objective=Objective("sigmoid"))
NANO_DISTILL = replace(
    DISTILL,
    image_size=48,
    batch_size=64,
    epochs=None,
    steps=400,
    optimizer=Optimizer("adamw", lr=4e-3, weight_decay=0.05, clip_norm=1.0),
    objective=Objective(),
    augment=NANO_HASHTAGS.augment,
    engine=NANO_HASHTAGS.engine,
)
NANO_PARTS = {name.split(".")[0] for name, _ in iterate_fields(NANO_FINETUNE)}
NANO_SOURCES = {
    **dict.fromkeys(NANO_PARTS, NANO_CHOICE),
    "init": choose("the model or folder that the preset of this name writes"),
    "samples_per_epoch": choose("about what curating 20,000 posts gives, or the test images"),
    "num_classes": choose("about what curating 20,000 posts gives, or the things in the scenes"),
}

# The model of drawings that ships with the library, trained in three hours of a CPU
DRAWINGS = choose("for the drawings, on a CPU")
REGNETY_200MF_HASHTAGS = Run(
    arch="regnety_200mf",
    image_size=96,
    batch_size=128,
    epochs=120,
    warmup=0.03,
    optimizer=Optimizer("adamw", lr=3e-3, weight_decay=0.05, clip_norm=1.0),
    augment=Augment(scale=(0.35, 1.0), sizes=(64, 80, 96), color_jitter=0.4, grayscale=0.1),
    ema=EMA(decay=0.999),
    engine=Engine(precision="bf16", workers=1),
    checkpoint=Checkpointing(every=500),
)
DRAWINGS_PARTS = {name.split(".")[0] for name, _ in iterate_fields(REGNETY_200MF_HASHTAGS)}
DRAWINGS_SOURCES = {
    **dict.fromkeys(DRAWINGS_PARTS, DRAWINGS),
    "samples_per_epoch": choose("what curating the drawings and 3,000 scenes gives"),
    "num_classes": choose("what curating the drawings and 3,000 scenes gives"),
}
