"""Estimate of a run before it starts: steps, operations, days, memory of each GPU by formula."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch

from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, suggest_names
from swag_models.models import Backbone, build
from swag_models.publish.model_info import count_flops
from swag_models.recipe.config import Run
from swag_models.recipe.limits import MAX_STEPS
from swag_models.recipe.training.logging import find_peak
from swag_models.spec import ModelSpec, Preprocess, RegNetConfig, ViTConfig

FLOAT_BYTES, HALF_BYTES = 4, 2
DEFAULT_GPU = "H100"
# Fraction of the peak that training reaches: our choice; large models in well-tuned training reach
# 0.3 to 0.5.
PEAK_FRACTION = 0.4
DEFAULT_GPU_MEMORY = 80e9  # bytes, of an H100
# JPEG images that a CPU core decodes, crops and resizes to 224 pixels in a second, by their size:
# measured on an AMD EPYC of 2024 with Pillow 12 (fastest of 12 rounds: 552 and 121).
DECODE_RATES = {"341 x 256": 550, "1024 x 768": 120}
OPTIMIZER_STATES = {"sgd": 1, "adamw": 2}  # numbers that the optimizer stores for each weight


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on each GPU at the peak of a step, by formula.

    Not counted: work space of kernels, communication buffers, blocks that FSDP2 gathers, logits,
    fragmentation.

    Attributes:
        weights: float32; divided by the number of GPUs under "fsdp", as the next three.
        gradients: float32, of trained parameters.
        optimizer: float32, `OPTIMIZER_STATES` numbers for each trained parameter.
        ema: float32, a copy of the weights.
        casts: trained weights in half precision, which autocast caches until the end of a step.
        activations: stored for the backward pass, of all samples that a GPU processes at once.
        sample: the activations of one sample; not part of the total.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    casts: int
    activations: int
    sample: int

    @property
    def total(self) -> int:
        """Sum in bytes."""
        return sum(asdict(self).values()) - self.sample


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        steps: optimizer steps.
        samples: over all steps.
        parameters: of the model.
        trained: of the parameters.
        passes: operations of a training step in units of a forward pass.
        flops: floating-point operations for one sample, forward and backward.
        gpus: number of GPUs.
        throughput: images per second on each GPU.
        basis: where the throughput comes from.
        days: of training.
        memory: of each GPU.
        gpu_memory: bytes of memory of a GPU.
        micro_batch: the largest `engine.micro_batch` whose memory a GPU has; 0 if there is none.
        cores: CPU cores that decode as many images as all GPUs process, by size of JPEG images.
    """

    steps: int
    samples: int
    parameters: int
    trained: int
    passes: int
    flops: int
    gpus: int
    throughput: float
    basis: str
    days: float
    memory: Memory
    gpu_memory: float
    micro_batch: int
    cores: dict[str, int]


class BlockSize(NamedTuple):
    """Bytes that a block stores for the backward pass of one sample: its input, and everything."""

    input: int
    total: int


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
            f"epochs is {run.epochs:g}, which is {steps:,} steps; allowed: {MAX_STEPS:,} steps or "
            "less"
        )
    return steps


def check_batch_memory(run: Run, ranks: int) -> None:
    """Raise ConfigError if the images of a batch do not fit into the memory of a rank's machine."""
    size = 3 * run.image_size**2 * run.batch_size // ranks  # uint8
    if not hasattr(os, "sysconf"):  # Windows
        return
    if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise ConfigError(
            f"batch_size is {run.batch_size}: its images of {run.image_size} pixels take "
            f"{size / 1e9:,.1f} GB on each of {ranks} ranks, more than the memory of "
            f"{memory / 1e9:,.1f} GB; set a smaller batch_size or image_size"
        )


def plan(
    run: Run,
    samples_per_epoch: int,
    *,
    num_classes: int,
    gpus: int = 1,
    throughput: float | None = None,
    flops: float | None = None,
    gpu_memory: float = DEFAULT_GPU_MEMORY,
) -> Plan:
    """Estimate what a run takes. Needs neither a GPU nor memory for the model.

    Args:
        run: the settings.
        samples_per_epoch: of the data.
        num_classes: of the data.
        gpus: number of GPUs.
        throughput: images per second on each GPU; by default PEAK_FRACTION of the peak.
        flops: peak FLOP/s of a GPU; by default that of an H100.
        gpu_memory: bytes of memory of a GPU; by default those of an H100.

    Raises:
        ConfigError: a value is out of range.
    """
    values = {"samples_per_epoch": samples_per_epoch, "gpus": gpus, "flops": flops}
    values |= {"throughput": throughput, "gpu_memory": gpu_memory}
    for name, value in values.items():
        if value is not None and not value > 0:  # NaN is not
            raise ConfigError(f"{name} is {value}; give a positive number")
    if gpus > run.batch_size:
        raise ConfigError(
            f"gpus is {gpus}; a batch of {run.batch_size} samples keeps at most {run.batch_size} "
            "busy"
        )
    spec = replace(
        find_arch(run.arch),
        preprocess=Preprocess(run.image_size),
        num_classes=num_classes,
        in_chans=3,
        global_pool=None,
    )
    model = _build_meta(spec, run)
    parameters = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    # The backward pass costs two forward passes, gradient checkpointing another one; a frozen trunk
    # has no backward pass.
    passes = 1 if run.trainable == "head" else 4 if run.engine.grad_checkpointing else 3
    operations = passes * count_flops(spec)
    if throughput is None:
        throughput, basis = _assume_throughput(run, operations, flops)
    else:
        basis = "given"
    steps = count_steps(run, samples_per_epoch)
    memory = estimate_memory(run, parameters, trained, gpus)
    fixed = memory.total - memory.activations
    return Plan(
        steps=steps,
        samples=steps * run.batch_size,
        parameters=parameters,
        trained=trained,
        passes=passes,
        flops=operations,
        gpus=gpus,
        throughput=throughput,
        basis=basis,
        days=steps * run.batch_size / (throughput * gpus) / 86400,
        memory=memory,
        gpu_memory=gpu_memory,
        micro_batch=max(0, min(run.batch_size // gpus, int((gpu_memory - fixed) // memory.sample))),
        cores={size: math.ceil(throughput * gpus / rate) for size, rate in DECODE_RATES.items()},
    )


def estimate_memory(run: Run, parameters: int, trained: int, gpus: int) -> Memory:
    """Estimate the memory of each GPU by formula; see `Memory` and `estimate_activations`.

    Args:
        run: the settings.
        parameters: number of parameters of the model.
        trained: number of those that are trained.
        gpus: number of GPUs.
    """
    shards = gpus if run.engine.parallel == "fsdp" else 1
    local_batch = -(-run.batch_size // gpus)  # rounded up: the GPU with most samples
    # gradients of micro batches are added up in place, so one micro batch is alive at a time
    micro_batch = min(run.engine.micro_batch or local_batch, local_batch)
    sample = estimate_activations(run)
    return Memory(
        weights=FLOAT_BYTES * parameters // shards,
        gradients=FLOAT_BYTES * trained // shards,
        optimizer=FLOAT_BYTES * OPTIMIZER_STATES[run.optimizer.kind] * trained // shards,
        ema=FLOAT_BYTES * parameters // shards if run.ema else 0,
        casts=0 if run.engine.precision == "fp32" else HALF_BYTES * trained,
        activations=micro_batch * sample,
        sample=sample,
    )


def estimate_activations(run: Run) -> int:
    """Estimate the bytes of activations of one sample by formula.

    Every block stores the inputs of its matrix products, convolutions, norms and activation
    functions; see `_size_vit_blocks` and `_size_regnet_blocks`. With gradient checkpointing a block
    stores its input, and one block at a time is computed again. With a frozen trunk nothing is
    stored, and the tensors of one block at a time are alive.
    """
    config = find_arch(run.arch).config
    product = FLOAT_BYTES if run.engine.precision == "fp32" else HALF_BYTES
    if isinstance(config, ViTConfig):
        blocks = list(_size_vit_blocks(config, run.image_size, product))
    else:
        blocks = list(_size_regnet_blocks(config, run.image_size, product))
    largest = max(block.total for block in blocks)
    if run.trainable == "head":
        return largest
    if run.engine.grad_checkpointing:
        return sum(block.input for block in blocks) + largest
    return sum(block.total for block in blocks)


def find_arch(arch: str) -> ModelSpec:
    """Find a spec of the catalog by its architecture.

    Raises:
        ConfigError: there is none; the message suggests similar names.
    """
    specs = {spec.arch: spec for spec in MODELS}
    if arch not in specs:
        raise ConfigError(suggest_names("arch", arch, specs))
    return specs[arch]


def _build_meta(spec: ModelSpec, run: Run) -> Backbone:
    """The model that a run trains, on the meta device."""
    with torch.device("meta"):
        model = build(
            spec.config,
            num_classes=spec.num_classes,
            image_size=run.image_size,
            drop_path_rate=run.drop_path_rate,
        )
    if run.trainable == "head":
        model.freeze()
    return model


def _assume_throughput(run: Run, operations: int, flops: float | None) -> tuple[float, str]:
    """Images per second on a GPU, and where the number comes from."""
    origin = "given"
    if flops is None:
        flops = find_peak(DEFAULT_GPU, run.engine.precision)
        assert flops is not None
        origin = f"an {DEFAULT_GPU}'s in {run.engine.precision}"
    basis = f"assumed: {PEAK_FRACTION:.0%} of {flops / 1e12:g} TFLOP/s ({origin})"
    return PEAK_FRACTION * flops / operations, basis


def _size_vit_blocks(config: ViTConfig, image_size: int, product: int) -> Iterator[BlockSize]:
    """Sizes of a ViT's blocks for T tokens, width D, MLP width M.

    After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, without dropout and with fused
    attention, which does not store the scores: inputs of the two norms (2 TD, float32), then in the
    dtype of products the outputs of the norms (2 TD), queries, keys and values (3 TD), the output
    of attention (TD), and input and output of GELU (2 TM).

    Args:
        config: the architecture.
        image_size: pixels.
        product: bytes of a number in matrix products.
    """
    tokens = (image_size // config.patch_size) ** 2 + 1  # and the class token
    residual = FLOAT_BYTES * tokens * config.width
    products = product * tokens * (6 * config.width + 2 * config.mlp_width)
    for _ in range(config.depth):
        yield BlockSize(residual, 2 * residual + products)


def _size_regnet_blocks(config: RegNetConfig, image_size: int, product: int) -> Iterator[BlockSize]:
    """Sizes of a RegNet's blocks of width W that map pixels P to P' (P / 4 in a stage's first).

    Our count for conv - norm - ReLU, which stores the outputs of convolution and ReLU, since a
    norm stores its input and ReLU its output: first 1x1 (2 WP), 3x3 (2 WP'), output of
    squeeze-and-excitation (WP'), last 1x1 and the sum's ReLU (2 WP'), and a stage's first block the
    convolution of the shortcut (WP'). The input is the ReLU output of the block before.

    Args:
        config: the architecture.
        image_size: pixels.
        product: bytes of a number in convolutions.
    """
    side, width_before = image_size // 2, config.stem_width  # behind the stem of stride 2
    for width, depth in config.stages:
        for block in range(depth):
            side_before, side = side, -(-side // 2) if block == 0 else side
            inputs = product * side_before**2 * (width_before if block == 0 else width)
            maps = 2 * side_before**2 + (6 if block == 0 else 5) * side**2
            yield BlockSize(inputs, product * width * maps)
        width_before = width
