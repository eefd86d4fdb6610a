"""Settings of a fine-tuning run that fit the model, the number of images and the machine.

Every number is our choice, measured where `docs/finetune.md` says so.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from swag_models.architectures import ViTConfig
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.inference.acceleration import pick_dtype
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import Checkpointing, Engine, Objective, Optimizer, Run
from swag_models.recipe.config_overrides import override
from swag_models.recipe.training.estimate import count_steps
from swag_models.recipe.training.memory import estimate_memory
from swag_models.runtime import count_cpus
from swag_models.spec import ModelSpec

HeadStart = Literal["random", "hashtags"]  # of `config.Run`

MIN_EPOCHS, MAX_EPOCHS = 3, 100
# A run sees EPOCH_SCALE * sqrt(images) images: 50 of them 99 times, 50,000 of them 3 times.
EPOCH_SCALE = 700
# AdamW moves each weight by about the rate, and a sum over a wider layer by more: the rate is
# divided by the width, so that one number serves models of all sizes.
RATE, RATE_REGNET, RATE_LINEAR = 0.1, 0.3, 1.0
# A head that starts from hashtags has less to learn, and would forget at the full rate.
KNOWN_HEAD = 0.1
LAYER_DECAY = 0.75
SMALL_BATCH, LARGE_BATCH, LARGE_DATA = 32, 64, 4000  # images
EVALUATIONS = 20  # at most, so that small data sets are not evaluated all the time
MAX_LOADERS = 8  # worker processes that read images for a GPU
MEMORY_SHARE = 0.7  # of the memory, to be filled with activations by our formula


def choose_run(
    spec: ModelSpec,
    init: str,
    images: int,
    device: torch.device,
    *,
    linear: bool = False,
    multi_label: bool = False,
    head_init: HeadStart = "random",
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    merge_tokens: int | None = None,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Run:
    """Choose the settings of a run.

    Args:
        spec: the model to start from.
        init: its name, for `load_model`.
        images: number of training images.
        device: where the run trains.
        linear: train only a linear classifier on the frozen model.
        multi_label: learn a sigmoid for each class, instead of a softmax over all.
        head_init: as for `config.Run`.
        epochs, lr, batch_size, image_size: replace the choice.
        merge_tokens: as for `config.Run`; by default that of `spec`.
        seed: of new weights, data order and augmentation.
        settings: as for `config_overrides.override`; they replace everything else.

    Raises:
        ConfigError: the model takes images that the trainer cannot make, or a setting is wrong.
    """
    if spec.in_chans != 3:
        raise ConfigError(
            f"{spec.name} takes {count_noun(spec.in_chans, 'channel')}; fine-tune a model of RGB "
            "images"
        )
    height, width = spec.preprocess.size
    if image_size is None and height != width:
        raise ConfigError(
            f"{spec.name} takes images of {height}x{width} pixels, and training needs squares; "
            "pass an image size"
        )
    features = find_width(spec)
    is_vit = isinstance(spec.config, ViTConfig)
    usual_batch = SMALL_BATCH if images < LARGE_DATA else LARGE_BATCH
    rate = RATE_LINEAR if linear else RATE if is_vit else RATE_REGNET
    base = Run(
        arch=spec.arch,
        image_size=height if image_size is None else image_size,
        batch_size=usual_batch if batch_size is None else batch_size,
        epochs=choose_epochs(images) if epochs is None else epochs,
        init=init,
        head_init=head_init,
        trainable="head" if linear else "all",
        warmup=0.1,
        merge_tokens=(spec.merge_tokens or 0) if merge_tokens is None else merge_tokens,
        seed=seed,
        optimizer=Optimizer(
            "adamw",
            lr=rate / features if lr is None else lr,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            layer_decay=1.0 if linear else LAYER_DECAY,
            clip_norm=1.0,
        ),
        objective=Objective("sigmoid" if multi_label else "softmax"),
        augment=Augment(scale=(0.5, 1.0), interpolation=spec.preprocess.interpolation),
        engine=_choose_engine(device),
    )
    run = override(base, settings)
    if run.merge_tokens and not is_vit:
        raise ConfigError(
            f"merge_tokens is {run.merge_tokens}; a RegNet has no tokens, leave it at 0"
        )
    if lr is None and run.head_init == "hashtags":
        run = replace(run, optimizer=replace(run.optimizer, lr=KNOWN_HEAD * run.optimizer.lr))
    steps = count_steps(run, images)
    # one evaluation an epoch, of which a run over few images has many
    passes = steps * run.batch_size / images
    evaluations = min(EVALUATIONS, max(1, round(passes)))
    run = replace(
        run,
        engine=replace(run.engine, micro_batch=fit_micro_batch(run, spec, device)),
        checkpoint=Checkpointing(every=-(-steps // EVALUATIONS), keep=1),
        log_every=max(1, steps // 100),
        eval_every=-(-steps // evaluations),
    )
    return override(run, settings)  # those that were set explicitly win


def choose_epochs(images: int) -> float:
    """The number of epochs for a number of training images, to two digits."""
    epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, EPOCH_SCALE / math.sqrt(images)))
    return float(f"{epochs:.2g}")


def find_width(spec: ModelSpec) -> int:
    """The number of features before the head."""
    config = spec.config
    return config.width if isinstance(config, ViTConfig) else config.stages[-1][0]


def fit_micro_batch(run: Run, spec: ModelSpec, device: torch.device) -> int | None:
    """The largest number of images to process at once that fits into memory, by formula.

    Returns:
        A power of two, or None for the whole batch.
    """
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:  # Windows
        return None
    trained = 0 if run.trainable == "head" else spec.num_params
    estimate = estimate_memory(run, spec.num_params, trained, gpus=1)
    free = MEMORY_SHARE * memory - (estimate.total - estimate.activations)
    images = max(1, int(free // estimate.sample))
    return None if images >= run.batch_size else 2 ** (images.bit_length() - 1)


def _choose_engine(device: torch.device) -> Engine:
    """On a CPU the model keeps all cores busy, so images are read between the steps."""
    if device.type != "cuda":
        return Engine(precision="fp32", workers=0, scaled_decoding=True)
    has_bf16 = pick_dtype(device) == torch.bfloat16
    workers = min(MAX_LOADERS, count_cpus())
    precision: Literal["bf16", "fp16"] = "bf16" if has_bf16 else "fp16"
    return Engine(precision=precision, workers=workers, scaled_decoding=True)
