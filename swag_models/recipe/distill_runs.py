"""Settings of distillation for any student, and their sources. Imports no torch."""

from dataclasses import replace

from swag_models.errors import ConfigError
from swag_models.recipe.config import Objective, Optimizer, Run
from swag_models.recipe.distillation import Distillation
from swag_models.recipe.value_sources import ValueSource, choose, interpret, quote

CONSISTENT = "Beyer et al. 2022, arXiv 2106.05237, and bit_i1k.py of google-research/big_vision"

DISTILL = Run(
    arch="vit_b16",
    image_size=224,
    batch_size=4096,
    epochs=300,
    warmup=0.05,
    optimizer=Optimizer("adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0),
    objective=Objective(mixup=1.0),
    distill=Distillation(),
)
ADAMW = choose("AdamW, which suits all students; the source has Adam at 0.03 for ResNets")
DISTILL_SOURCES: dict[str, ValueSource] = {
    "arch": choose("any architecture"),
    "image_size": quote("224 pixels", CONSISTENT),
    "batch_size": quote("4096", CONSISTENT),
    "epochs": quote("300, the shortest of the published lengths; more are better", CONSISTENT),
    "steps": choose("the length is given in epochs"),
    "warmup": quote("5,000 steps, which are 5% of 300 epochs, then a cosine to 0", CONSISTENT),
    "schedule": quote("a cosine", CONSISTENT),
    "cooldown": choose("for wsd; a cosine has none"),
    **dict.fromkeys(
        ("drop_path_rate", "patch_drop_rate", "merge_tokens"), choose("none is stated")
    ),
    "optimizer": ADAMW,
    "optimizer.clip_norm": quote("norm 1", CONSISTENT),
    "objective": choose("there are no labels; only mixup applies"),
    "objective.mixup": quote("images mixed with a uniform share, for both networks", CONSISTENT),
    "augment": interpret("a random crop and a flip, the same for both networks"),
    "ema": choose("none is stated"),
    "engine.precision": choose("mixed precision; bf16 needs no loss scaling"),
    "distill.teacher": choose("you choose it"),
    "distill.feature_weight": choose("works for every teacher, also one without classes"),
    "distill.feature_loss": choose("does not depend on the scale of the teacher's features"),
    "distill.logit_weight": choose("the published backbones have no classes"),
    "distill.temperature": quote("1", CONSISTENT),
    "samples_per_epoch": quote("the training images of ImageNet-1k", CONSISTENT),
    "num_classes": quote("the classes of ImageNet-1k", CONSISTENT),
}


def check_distill_run(run: Run) -> None:
    """Raise ConfigError for settings that would have no effect or a wrong one in distillation."""
    if run.trainable != "all":
        raise ConfigError(f"trainable is {run.trainable}; allowed in distillation: all")
    if run.head_init != "random":
        raise ConfigError(
            f"head_init is {run.head_init}; allowed in distillation: random, because the student "
            "has no head or that of its teacher"
        )
    if run.augment.sizes:
        raise ConfigError(
            f"augment.sizes is {run.augment.sizes}; allowed in distillation: none, because both "
            "networks have one size"
        )
    if replace(run.objective, mixup=0.0) != Objective():
        raise ConfigError(
            "in distillation there are no labels: of the objective only mixup applies; leave out "
            "the other settings of objective"
        )
