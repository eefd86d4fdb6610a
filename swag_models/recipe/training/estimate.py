"""Estimate of a run before it starts: steps, operations, days, memory, CPU cores for the data."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe
from swag_models.models import Backbone, build
from swag_models.publish.model_info import count_flops
from swag_models.recipe.config import Run
from swag_models.recipe.distill_runs import check_distill_run
from swag_models.recipe.limits import MAX_STEPS
from swag_models.recipe.training.logging import find_peak
from swag_models.recipe.training.memory import (
    NO_TEACHER,
    Memory,
    TeacherCost,
    estimate_memory,
    find_arch,
    list_fitting_settings,
)
from swag_models.recipe.training.teacher_spec import price_teacher
from swag_models.spec import ModelSpec, Preprocess

DEFAULT_GPU = "H100"
# Fraction of the peak that training reaches: our choice; large models in well-tuned training reach
# 0.3 to 0.5.
PEAK_FRACTION = 0.4
GPU_MEMORY = {  # bytes, of the same data sheets as GPU_PEAKS; of an A100 the larger edition
    "GB200": 186e9,
    "B200": 180e9,
    "H200 NVL": 141e9,
    "H200": 141e9,
    "GH200": 96e9,
    "H100 NVL": 94e9,
    "H100 PCIe": 80e9,
    "H100": 80e9,
    "A100": 80e9,
    "L40S": 48e9,
    "RTX 4090": 24e9,
}


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        steps: optimizer steps.
        samples: over all steps.
        parameters: of the model.
        trained: of the parameters.
        passes: operations of a training step in units of a forward pass.
        flops: floating-point operations for one sample, forward and backward, and of a teacher.
        teacher: what the teacher of a distillation is, and what is counted of it; empty without.
        gpus: number of GPUs.
        throughput: images per second on each GPU.
        basis: where the throughput comes from.
        days: of training.
        memory: of each GPU.
        gpu: what messages call a GPU: its name, if known, and its memory.
        gpu_memory: bytes of memory of a GPU.
        alternatives: settings with which the run fits; see `list_fitting_settings`. Empty if it
            does, or if there are none.
        decode_rates: images per second that a CPU core decodes, by a name of the images.
        cores_per_rank: CPU cores that decode as many images as a GPU processes, by the same name.
        cores: of all ranks.
    """

    steps: int
    samples: int
    parameters: int
    trained: int
    passes: int
    flops: int
    teacher: str
    gpus: int
    throughput: float
    basis: str
    days: float
    memory: Memory
    gpu: str
    gpu_memory: float
    alternatives: list[list[str]]
    decode_rates: dict[str, float]
    cores_per_rank: dict[str, int]
    cores: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether the memory of a GPU suffices, by formula."""
        return self.memory.total <= self.gpu_memory


def count_steps(run: Run, samples_per_epoch: int) -> int:
    """Number of optimizer steps in a run: its epochs to the nearest step, at least one.

    Raises:
        ConfigError: there are too many.
    """
    if run.steps is not None:
        return run.steps
    assert run.epochs is not None
    steps = max(1, round(run.epochs * samples_per_epoch / run.batch_size))
    if steps > MAX_STEPS:
        raise ConfigError(
            f"epochs is {run.epochs:g}, which is {count_noun(steps, 'step')}; allowed: "
            f"{MAX_STEPS:,} steps or less"
        )
    return steps


def check_batch_memory(run: Run, ranks: int, image_size: int | None = None) -> None:
    """Raise ConfigError if the images of a batch do not fit into the memory of a rank's machine.

    Args:
        run: the settings.
        ranks: number of processes.
        image_size: pixels of an image that is loaded; by default the largest that the run trains.
    """
    image_size = image_size or run.train_sizes[-1]
    size = 3 * image_size**2 * run.batch_size // ranks  # uint8
    if not hasattr(os, "sysconf"):  # Windows
        return
    if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ConfigError(
            f"batch_size is {run.batch_size}: its images of {image_size} pixels take "
            f"{size / 1e9:,.1f} GB on each of {count_noun(ranks, 'rank')}, more than the memory of "
            f"{memory / 1e9:,.1f} GB; set a smaller batch_size or image_size"
        )


def check_train_sizes(run: Run) -> None:
    """Raise ConfigError if the architecture does not take a size of `augment.sizes`."""
    config = find_arch(run.arch).config
    for size in run.train_sizes if run.augment.sizes else ():
        try:
            with torch.device("meta"):
                build(config, num_classes=None, image_size=size)
        except ConfigError as error:
            raise ConfigError(f"augment.sizes: {error}") from None


def count_step_flops(run: Run, spec: ModelSpec) -> int:
    """Operations of a forward pass in training for one image, on average over `augment.sizes`.

    Args:
        run: the settings.
        spec: of the model that the run trains.
    """
    sizes = run.augment.sizes or (run.image_size,)
    specs = [replace(spec, preprocess=replace(spec.preprocess, image_size=size)) for size in sizes]
    flops = [count_flops(spec, patch_drop_rate=run.patch_drop_rate) for spec in specs]
    return round(sum(flops) / len(flops))


def plan(
    run: Run,
    samples_per_epoch: int,
    *,
    num_classes: int,
    gpus: int = 1,
    throughput: float | None = None,
    gpu: str = DEFAULT_GPU,
    flops: float | None = None,
    gpu_memory: float | None = None,
    decode_rates: Mapping[str, float] | None = None,
) -> Plan:
    """Estimate what a run takes. Needs neither a GPU nor memory for the model.

    Args:
        run: the settings.
        samples_per_epoch: of the data.
        num_classes: of the data.
        gpus: number of GPUs.
        throughput: images per second on each GPU; by default PEAK_FRACTION of the peak.
        gpu: name of the GPU, one of GPU_PEAKS, in upper or lower case.
        flops: peak FLOP/s of a GPU; by default those of `gpu`.
        gpu_memory: bytes of memory of a GPU; by default those of `gpu`.
        decode_rates: images per second that a CPU core decodes, by a name of the images.

    Raises:
        ConfigError: a value is out of range, or the GPU is unknown.
    """
    if gpu_memory is None or (flops is None and throughput is None):
        gpu = _find_gpu(gpu)
    gpu_title = gpu if gpu_memory is None else "a GPU of"
    gpu_memory = GPU_MEMORY[gpu] if gpu_memory is None else gpu_memory
    values = {"samples_per_epoch": samples_per_epoch, "gpus": gpus, "flops": flops}
    values |= {"throughput": throughput, "gpu_memory": gpu_memory}
    values |= {f"decode rate of {name}": rate for name, rate in (decode_rates or {}).items()}
    for name, value in values.items():
        if value is not None and not value > 0:  # NaN is not
            raise ConfigError(f"{name} is {value}; give a positive number")
    if gpus > run.batch_size:
        raise ConfigError(
            f"gpus is {gpus}; a batch of {count_noun(run.batch_size, 'sample')} keeps at most "
            f"{run.batch_size} busy"
        )
    check_train_sizes(run)
    teacher = NO_TEACHER
    if run.distill:
        check_distill_run(run)
        teacher = price_teacher(run.distill)
    spec, parameters, trained = _count_parameters(run, num_classes, teacher)
    # The backward pass costs two forward passes, gradient checkpointing another; a frozen backbone
    # has no backward pass.
    passes = 1 if run.trainable == "head" else 4 if run.engine.grad_checkpointing else 3
    operations = passes * count_step_flops(run, spec) + teacher.flops
    if throughput is None:
        throughput, basis = _assume_throughput(run, operations, gpu, flops)
    else:
        basis = "given"
    steps = count_steps(run, samples_per_epoch)
    memory = estimate_memory(run, parameters, trained, gpus, teacher)
    rates = dict(decode_rates or {})
    per_rank = {name: math.ceil(throughput / rate) for name, rate in rates.items()}
    fitting = list_fitting_settings(run, parameters, trained, gpus, gpu_memory, teacher)
    return Plan(
        steps=steps,
        samples=steps * run.batch_size,
        parameters=parameters,
        trained=trained,
        passes=passes,
        flops=operations,
        teacher=teacher.text,
        gpus=gpus,
        throughput=throughput,
        basis=basis,
        days=steps * run.batch_size / (throughput * gpus) / 86400,
        memory=memory,
        gpu=f"{gpu_title} {gpu_memory / 1e9:g} GB",
        gpu_memory=gpu_memory,
        alternatives=[] if memory.total <= gpu_memory else fitting,
        decode_rates=rates,
        cores_per_rank=per_rank,
        cores={name: gpus * cores for name, cores in per_rank.items()},
    )


def _count_parameters(
    run: Run, num_classes: int, teacher: TeacherCost
) -> tuple[ModelSpec, int, int]:
    """The spec of the model that a run trains, its parameters, and those that are trained.

    A student has the classes of its teacher, or none, and a projection to its teacher's features.
    """
    classes: int | None = num_classes
    if run.distill and not run.distill.logit_weight:
        classes = None
    elif teacher.spec:
        classes = teacher.spec.num_classes
    spec = replace(
        find_arch(run.arch),
        preprocess=Preprocess(run.image_size),
        num_classes=classes,
        in_chans=3,
        global_pool=None,
        merge_tokens=run.merge_tokens or None,
    )
    model = _build_meta(spec, run)
    weights = list(model.parameters())
    projection = 0
    if run.distill and run.distill.feature_weight and teacher.width:
        projection = (model.num_features + 1) * teacher.width
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return spec, sum(weight.numel() for weight in weights) + projection, trained + projection


def _build_meta(spec: ModelSpec, run: Run) -> Backbone:
    """The model that a run trains, on the meta device."""
    with torch.device("meta"):
        model = build(
            spec.config,
            num_classes=spec.num_classes,
            image_size=run.image_size,
            drop_path_rate=run.drop_path_rate,
            patch_drop_rate=run.patch_drop_rate,
            merge_tokens=run.merge_tokens,
        )
    if run.trainable == "head":
        model.freeze()
    return model


def _find_gpu(given: str) -> str:
    """The name of a GPU in GPU_MEMORY; case, spaces and punctuation do not matter."""
    names = {re.sub(r"[\W_]", "", name).lower(): name for name in GPU_MEMORY}
    name = names.get(re.sub(r"[\W_]", "", given).lower())
    if name is None:
        raise ConfigError(
            f"unknown GPU {describe(given)}; known: {', '.join(GPU_MEMORY)}; for another GPU, "
            "give flops= and gpu_memory= as well"
        )
    return name


def _assume_throughput(
    run: Run, operations: int, gpu: str, flops: float | None
) -> tuple[float, str]:
    """Images per second on a GPU, and where the number comes from."""
    origin = "given"
    if flops is None:
        flops = find_peak(gpu, run.engine.precision)
        if flops is None:
            raise ConfigError(
                f"the peak of {gpu} in {run.engine.precision} is not known here; give flops="
            )
        origin = f"{gpu} in {run.engine.precision}"
    basis = f"assumed: {PEAK_FRACTION:.0%} of {flops / 1e12:g} TFLOP/s ({origin})"
    return PEAK_FRACTION * flops / operations, basis
