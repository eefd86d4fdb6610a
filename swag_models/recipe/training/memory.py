"""Memory of each GPU at the peak of a step, by formula, and settings with which it suffices."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from swag_models.architectures import STEM_WIDTH, Config, RegNetConfig, ResNetConfig, ViTConfig
from swag_models.catalog import MODELS
from swag_models.errors import ConfigError, suggest_names
from swag_models.models.token_merging import count_merges
from swag_models.models.vit_block import count_kept_patches
from swag_models.recipe.config import Run
from swag_models.recipe.config_overrides import override
from swag_models.spec import ModelSpec

TIMM_PREFIX = "timm:"  # of the architectures of students that are not in the catalog
FLOAT_BYTES, HALF_BYTES = 4, 2
# numbers that the optimizer stores for each weight; Muon one for a matrix of a hidden layer
OPTIMIZER_STATES = {"sgd": 1, "adamw": 2, "muon": 2}
MAX_ALTERNATIVES = 3
# Changes that save memory, the cheapest first: FSDP2 adds communication, gradient checkpointing a
# third of the operations.
CHANGES: tuple[tuple[str, ...], ...] = (
    (),
    ("engine.parallel=fsdp",),
    ("engine.grad_checkpointing=true",),
    ("engine.parallel=fsdp", "engine.grad_checkpointing=true"),
)


@dataclass(frozen=True)
class Memory:
    """Estimated bytes on each GPU at the peak of a step, by formula.

    Not counted: work space of kernels, communication buffers, blocks that FSDP2 gathers, logits,
    fragmentation.

    Attributes:
        weights: float32; divided by the number of GPUs under "fsdp", as the next three.
        gradients: float32, of trained parameters.
        optimizer: float32, `OPTIMIZER_STATES` numbers for each trained parameter; Muon's one less
            for each of `count_matrix_weights`.
        ema: float32, a copy of the weights.
        casts: trained weights in half precision, which autocast caches until the end of a step.
        teacher: float32 weights of a frozen teacher, a copy on each GPU; 0 without one.
        activations: stored for the backward pass, of all samples that a GPU processes at once. A
            teacher's are freed before the student stores any, so that only the larger count.
        sample: the activations of one sample; not part of the total.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    casts: int
    teacher: int
    activations: int
    sample: int

    @property
    def total(self) -> int:
        """Sum in bytes."""
        return sum(asdict(self).values()) - self.sample


@dataclass(frozen=True)
class TeacherCost:
    """What a frozen teacher adds to a run.

    Attributes:
        flops: floating-point operations for one sample.
        parameters: number of them.
        spec: of the model; None for stored embeddings, or if no teacher is given.
        width: of the features that the student's are projected to; None if this is unknown.
        text: what it is, for people.
    """

    flops: int = 0
    parameters: int = 0
    spec: ModelSpec | None = None
    width: int | None = None
    text: str = ""


NO_TEACHER = TeacherCost()


class BlockSize(NamedTuple):
    """Bytes that a block stores for the backward pass of one sample: its input, and everything."""

    input: int
    total: int


def estimate_memory(
    run: Run, parameters: int, trained: int, gpus: int, teacher: TeacherCost = NO_TEACHER
) -> Memory:
    """Estimate the memory of each GPU by formula; see `Memory` and `estimate_activations`.

    Args:
        run: the settings.
        parameters: number of parameters of the model.
        trained: number of those that are trained.
        gpus: number of GPUs.
        teacher: in distillation.
    """
    shards = gpus if run.engine.parallel == "fsdp" else 1
    local_batch = -(-run.batch_size // gpus)  # rounded up: the GPU with most samples
    # gradients of micro batches are added up in place, so one micro batch is alive at a time
    micro_batch = min(run.engine.micro_batch or local_batch, local_batch)
    sample = estimate_activations(run)
    if teacher.spec:
        (size, _), product = teacher.spec.preprocess.size, count_product_bytes(run)
        blocks = list_blocks(teacher.spec.config, size, product)
        sample = max(sample, *(block.total for block in blocks))
    states = OPTIMIZER_STATES[run.optimizer.kind] * trained
    if run.optimizer.kind == "muon":
        states -= count_matrix_weights(find_arch(run.arch).config)
    return Memory(
        weights=FLOAT_BYTES * parameters // shards,
        gradients=FLOAT_BYTES * trained // shards,
        optimizer=FLOAT_BYTES * states // shards,
        ema=FLOAT_BYTES * parameters // shards if run.ema else 0,
        casts=0 if run.engine.precision == "fp32" else HALF_BYTES * trained,
        teacher=FLOAT_BYTES * teacher.parameters,
        activations=micro_batch * sample,
        sample=sample,
    )


def estimate_activations(run: Run) -> int:
    """Estimate the bytes of activations of one sample of the largest size by formula.

    Every block stores the inputs of its matrix products, convolutions, norms and activation
    functions; see `_size_vit_blocks` and the functions after it. With gradient checkpointing a
    block stores its input, and one block at a time is computed again. With a frozen backbone
    nothing is stored, and the tensors of one block at a time are alive.
    """
    config, size = find_arch(run.arch).config, run.train_sizes[-1]
    product = count_product_bytes(run)
    blocks = list_blocks(config, size, product, run.patch_drop_rate, run.merge_tokens)
    largest = max(block.total for block in blocks)
    if run.trainable == "head":
        return largest
    if run.engine.grad_checkpointing:
        return sum(block.input for block in blocks) + largest
    return sum(block.total for block in blocks)


def count_product_bytes(run: Run) -> int:
    """Bytes of a number in matrix products and convolutions."""
    return FLOAT_BYTES if run.engine.precision == "fp32" else HALF_BYTES


def list_blocks(
    config: Config,
    image_size: int,
    product: int,
    patch_drop_rate: float = 0.0,
    merge_tokens: int = 0,
) -> list[BlockSize]:
    """Sizes of a model's blocks; see `_size_vit_blocks` and the functions after it."""
    if isinstance(config, ViTConfig):
        return list(_size_vit_blocks(config, image_size, product, patch_drop_rate, merge_tokens))
    if isinstance(config, ResNetConfig):
        return list(_size_resnet_blocks(config, image_size, product))
    return list(_size_regnet_blocks(config, image_size, product))


def count_matrix_weights(config: Config) -> int:
    """Weights in the matrices that Muon takes; see `find_matrices`."""
    if isinstance(config, ViTConfig):  # query, key, value, projection; two layers of the MLP
        return config.depth * config.width * (4 * config.width + 2 * config.mlp_width)
    if isinstance(config, ResNetConfig):
        return _count_resnet_matrices(config)
    count, width_before = 0, config.stem_width
    for width, depth in config.stages:
        count += width_before * width  # the convolution of the shortcut
        for _ in range(depth):
            squeezed = round(config.se_ratio * width_before)
            count += width_before * width + width * width + 2 * width * squeezed
            width_before = width
    return count


def list_fitting_settings(
    run: Run,
    parameters: int,
    trained: int,
    gpus: int,
    gpu_memory: float,
    teacher: TeacherCost = NO_TEACHER,
) -> list[list[str]]:
    """List changes with which a run fits into the memory of its GPUs, by formula.

    Args:
        run: the settings, with which it does not fit.
        parameters: number of parameters of the model.
        trained: number of those that are trained.
        gpus: number of GPUs.
        gpu_memory: bytes of memory of a GPU.
        teacher: in distillation.

    Returns:
        Up to MAX_ALTERNATIVES lists of settings for `override`, those with the fewest settings
        first. `engine.micro_batch` divides the samples of a GPU into as few parts as fit, which
        are equal up to one sample.
    """

    def estimate(run: Run) -> Memory:
        return estimate_memory(run, parameters, trained, gpus, teacher)

    def fits(settings: Sequence[str]) -> bool:
        changed = override(run, settings)
        return estimate(changed).total <= gpu_memory

    alternatives = list[list[str]]()
    for change in CHANGES:
        settings, changed = list(change), override(run, change)
        if change and changed == run:
            continue
        if not fits(settings):
            size = _fit_micro_batch(-(-run.batch_size // gpus), estimate(changed), gpu_memory)
            settings.append(f"engine.micro_batch={size}")
        # none of the settings is superfluous
        rests = [settings[:index] + settings[index + 1 :] for index in range(len(settings))]
        if fits(settings) and not any(map(fits, rests)):
            alternatives.append(settings)
    return sorted(alternatives, key=len)[:MAX_ALTERNATIVES]  # the order of CHANGES otherwise


def _fit_micro_batch(local_batch: int, memory: Memory, gpu_memory: float) -> int:
    """The `engine.micro_batch` of the fewest equal parts that fit; 1 if none does."""
    largest = int((gpu_memory - (memory.total - memory.activations)) // memory.sample)
    parts = -(-local_batch // max(1, largest))
    return -(-local_batch // parts)


def find_arch(arch: str) -> ModelSpec:
    """Find a spec of the catalog by its architecture.

    Raises:
        ConfigError: there is none; the message suggests similar names.
    """
    if arch.startswith(TIMM_PREFIX):
        raise ConfigError(
            f"arch is {arch}, and only `recipe distill` takes architectures of timm; to plan such "
            "a run, measure its images/s in a run with --set steps=100"
        )
    specs = {spec.arch: spec for spec in reversed(MODELS)}  # the first: several works share one
    if arch not in specs:
        raise ConfigError(suggest_names("arch", arch, specs))
    return specs[arch]


def _size_vit_blocks(
    config: ViTConfig, image_size: int, product: int, patch_drop_rate: float, merge_tokens: int
) -> Iterator[BlockSize]:
    """Sizes of a ViT's blocks for T tokens, width D, MLP width M.

    After Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, without dropout and with fused
    attention, which does not store the scores: inputs of the two norms (2 TD, float32), then in the
    dtype of products the outputs of the norms (2 TD), queries, keys and values (3 TD), the output
    of attention (TD), and input and output of GELU (2 TM). Merging leaves fewer tokens to the
    second norm and the MLP, and stores the merged ones (TD, float32).

    Args:
        config: the architecture.
        image_size: pixels.
        product: bytes of a number in matrix products.
        patch_drop_rate: share of the patches that is left out.
        merge_tokens: number of tokens that each block merges.
    """
    patches = (image_size // config.patch_size) ** 2
    tokens = count_kept_patches(patches, patch_drop_rate) + 1  # and the class token
    row = FLOAT_BYTES * config.width
    attention, mlp = 5 * config.width, config.width + 2 * config.mlp_width
    for _ in range(config.depth):
        left = tokens - count_merges(tokens, merge_tokens)
        floats = row * (tokens + (2 * left if merge_tokens else left))
        yield BlockSize(row * tokens, floats + product * (tokens * attention + left * mlp))
        tokens = left


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


def _size_resnet_blocks(config: ResNetConfig, image_size: int, product: int) -> Iterator[BlockSize]:
    """Sizes of a ResNet's blocks of width W and inner width I that map pixels P to P'.

    Counted as for a RegNet: for a bottleneck first 1x1 (2 IP), 3x3 (2 IP'), last 1x1 and the sum's
    ReLU (2 WP'); for a basic block the two 3x3 (2 WP' each); the convolution of a shortcut (WP').

    Args:
        config: the architecture.
        image_size: pixels.
        product: bytes of a number in convolutions.
    """
    side, width_before = image_size // 4, STEM_WIDTH  # behind the stem and its pooling
    for stage, ((width, depth), inner) in enumerate(zip(config.stages, config.inner_widths)):
        for block in range(depth):
            side_before, side = side, -(-side // 2) if block == 0 and stage else side
            if config.block == "bottleneck":
                values = 2 * inner * side_before**2 + (2 * inner + 2 * width) * side**2
            else:
                values = 4 * width * side**2
            if width != width_before or side != side_before:
                values += width * side**2
            yield BlockSize(product * side_before**2 * width_before, product * values)
            width_before = width


def _count_resnet_matrices(config: ResNetConfig) -> int:
    """Weights of the 1x1 convolutions of a ResNet."""
    count, width_before = 0, STEM_WIDTH
    for stage, ((width, depth), inner) in enumerate(zip(config.stages, config.inner_widths)):
        if width != width_before or stage:
            count += width_before * width  # the convolution of the shortcut
        for _ in range(depth if config.block == "bottleneck" else 0):
            count += width_before * inner + inner * width
            width_before = width
        width_before = width
    return count
