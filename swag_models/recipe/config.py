"""Settings of a training run as frozen dataclasses. Imports no torch."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from swag_models.decoding import decode_fields
from swag_models.errors import ConfigError
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.distillation import Distillation
from swag_models.recipe.limits import check_fields, is_positive

MAX_GAMMA = 64  # focusing exponents; published ones are at most 5
LossKind = Literal["softmax", "sigmoid", "asymmetric"]


@dataclass(frozen=True)
class Optimizer:
    """How gradients become updates.

    Args:
        kind: SGD with Nesterov momentum, AdamW, or Muon for the matrices of hidden layers (linear
            layers and 1x1 convolutions) and AdamW for all other parameters.
        lr: peak learning rate.
        lr_batch: batch size that `lr` is meant for and scaled linearly from; None for no scaling.
        momentum: of SGD and of Muon, where 0.95 is usual.
        betas: of AdamW.
        adjust_lr_fn: how Muon scales the update of a matrix of A rows and B columns, as in torch:
            "match_rms_adamw" by 0.2 sqrt(max(A, B)), so that learning rate and weight decay of
            AdamW suit both (Liu et al. 2025, arXiv 2502.16982); "original" by
            sqrt(max(1, A / B)) (Jordan 2024, kellerjordan.github.io/posts/muon).
        weight_decay: L2 penalty of SGD; decoupled weight decay of AdamW and Muon.
        no_decay: parameters without weight decay; "norms and biases" includes class token and
            position embedding.
        layer_decay: ratio of the learning rate of a layer to that of the layer above.
        clip_norm: largest norm of all gradients together; None for no limit.
    """

    kind: Literal["sgd", "adamw", "muon"] = "adamw"
    lr: float = 1e-3
    lr_batch: int | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    weight_decay: float = 0.0
    no_decay: Literal["nothing", "norms", "norms and biases"] = "norms and biases"
    layer_decay: float = 1.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            lr=(lambda lr: lr > 0, "a positive number"),
            lr_batch=(is_positive, "a number of samples, or none"),
            momentum=(lambda m: 0 <= m < 1, "from 0 to below 1"),
            betas=(lambda b: min(b) >= 0 and max(b) < 1, "two numbers from 0 to below 1"),
            weight_decay=(lambda decay: decay >= 0, "0 or more"),
            layer_decay=(lambda decay: 0 < decay <= 1, "above 0, at most 1"),
            clip_norm=(is_positive, "a positive number, or none"),
        )


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Args:
        kind: "softmax" is cross-entropy with targets that sum to 1 over an image's K classes;
            "sigmoid" is a binary cross-entropy for every class; "asymmetric" is the asymmetric
            loss, a binary cross-entropy that gives little weight to classes which the image does
            not have and which already have a low probability. The heads of the last two start at
            the class frequencies.
        label_smoothing: fraction of the target that is spread over all classes.
        mixup: alpha of the Beta distribution that weights two mixed images; 0 for no mixup.
        weighting: of an image's classes in the target of "softmax": "none" gives 1/K to each;
            "idf" gives more to rare classes, in proportion to their inverse document frequency.
        gamma_pos: of "asymmetric": exponent of 1 - p in the loss of a class that the image has.
        gamma_neg: of "asymmetric": exponent of p in the loss of a class that it does not have.
        clip: of "asymmetric": probability that is subtracted from p in the loss of a class that
            the image does not have, which is 0 below it.
    """

    kind: LossKind = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    weighting: Literal["none", "idf"] = "none"
    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        check_fields(
            self,
            label_smoothing=(lambda share: 0 <= share < 1, "from 0 to below 1"),
            mixup=(lambda alpha: alpha >= 0, "0 or more"),
            gamma_pos=(lambda gamma: 0 <= gamma <= MAX_GAMMA, f"0 to {MAX_GAMMA}"),
            gamma_neg=(lambda gamma: 0 <= gamma <= MAX_GAMMA, f"0 to {MAX_GAMMA}"),
            # 1 - p + clip must not vanish in float32
            clip=(lambda clip: clip == 0 or 1e-6 <= clip < 1, "0, or 1e-6 to below 1"),
        )
        if self.weighting != "none" and self.kind != "softmax":
            raise ConfigError(
                f"weighting is {self.weighting!r} with kind={self.kind}; allowed: none, because "
                "only the targets of kind=softmax are shared among the classes of an image"
            )
        if self.kind != "asymmetric":
            for name in ("gamma_pos", "gamma_neg", "clip"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ConfigError(
                        f"{name} is {getattr(self, name):g} with kind={self.kind}, which does not "
                        "use it; set kind=asymmetric, or leave it out"
                    )

    @property
    def is_multi_label(self) -> bool:
        """Whether each class has a probability of its own, instead of a share of one."""
        return self.kind != "softmax"

    def describe(self) -> str:
        """The kind, and the parameters that only this kind has, for reports."""
        if self.kind == "asymmetric":
            exponents = f"gamma_pos {self.gamma_pos:g}, gamma_neg {self.gamma_neg:g}"
            return f"asymmetric ({exponents}, clip {self.clip:g})"
        return self.kind if self.weighting == "none" else f"{self.kind}, {self.weighting}-weighted"


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights, which is what gets published.

    Args:
        decay: factor of the average in each step; the new weights have 1 - decay.
        warmup_ratio: fraction of steps, at the beginning, in which it is a copy of the weights.
    """

    decay: float = 0.9999
    warmup_ratio: float = 0.05

    def __post_init__(self) -> None:
        check_fields(
            self,
            decay=(lambda decay: 0 <= decay < 1, "from 0 to below 1"),
            warmup_ratio=(lambda ratio: 0 <= ratio <= 1, "a fraction from 0 to 1"),
        )


@dataclass(frozen=True)
class Engine:
    """How the work is laid out on machines; affects speed and memory, not what is learnt.

    Args:
        parallel: "ddp" stores all on every rank; "fsdp" (FSDP2) shards weights and optimizer.
        precision: of matrix products; weights and norms stay float32. "fp16" scales the loss.
        micro_batch: samples that a rank processes at once; gradients are added up. None for all.
        sync_bn: compute batch statistics over all ranks.
        grad_checkpointing: recompute activations in the backward pass to save memory.
        channels_last: memory format of images and, except under "fsdp", weights.
        compile: compile the model with torch.compile.
        workers: processes per lane that read images.
        lanes: number of parts in which shards are read, a multiple of the number of ranks now and
            after any resume. None for one per rank.
        buffer: samples in the shuffle buffer of a worker.
        scaled_decoding: decode training JPEGs at 1/8 to 1/2 of their size if crops stay large.
    """

    parallel: Literal["ddp", "fsdp"] = "ddp"
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    micro_batch: int | None = None
    sync_bn: bool = True
    grad_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    workers: int = 4
    lanes: int | None = None
    buffer: int = 2000
    scaled_decoding: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            micro_batch=(is_positive, "a number of samples, or none"),
            workers=(lambda workers: workers >= 0, "0 or more"),
            lanes=(is_positive, "1 or more, or none"),
            buffer=(is_positive, "1 or more"),
        )


@dataclass(frozen=True)
class Checkpointing:
    """When checkpoints are written, and how many are kept.

    Args:
        every: steps between two checkpoints.
        keep: number of most recent checkpoints to keep, besides the one with the best accuracy and,
            with the schedule "wsd", the one before the learning rate falls.
    """

    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        check_fields(self, every=(is_positive, "1 or more"), keep=(is_positive, "1 or more"))


@dataclass(frozen=True)
class Run:
    """A training run. Exactly one of `epochs` and `steps` is given.

    Args:
        arch: an architecture of the catalog; in distillation also timm:NAME.
        image_size: pixels, in training (see `augment.sizes`), validation and the published model.
        batch_size: samples in a step, over all ranks.
        epochs, steps: length of the run.
        init: initial weights: a catalog name, a folder or hf-hub:org/repo; None for random ones.
        head_init: start of a new head: "random", or the rows of the "hashtags" of `init`.
        trainable: all parameters, or only the head on a frozen backbone.
        warmup: fraction of steps in which the learning rate rises linearly to its peak.
        schedule: how it then falls to 0: "cosine", half a cosine; "wsd" (warm-up, stable, decay)
            stays at the peak and falls in the last steps only, as 1 - root (arXiv 2405.18392).
        cooldown: fraction of steps, at the end, in which the learning rate of "wsd" falls.
        drop_path_rate: probability of skipping the last block; falls linearly to 0 at the first.
        patch_drop_rate: share of the patches of a ViT, drawn for each image, that a training step
            leaves out; the class token is kept (FLIP, arXiv 2212.00794; arXiv 2208.07220).
        merge_tokens: number of similar tokens that each block of a ViT merges, in training,
            validation and the published model (arXiv 2210.09461).
        seed: of initial weights, data order and augmentation.
        optimizer: how gradients become updates.
        objective: what is minimised.
        augment: training-time augmentation.
        ema: moving average of the weights; None for none.
        distill: learn from a teacher instead of labels; None to learn from labels.
        engine: how the work is laid out.
        checkpoint: when checkpoints are written.
        log_every: steps between two log lines.
        eval_every: steps between two evaluations; None evaluates only at the end.
        on_nonfinite_loss: stop the run, or skip the step, if loss or gradients are not finite.
        loss_spike_factor: treat a loss above this multiple of its running mean as not finite.
    """

    arch: str
    image_size: int
    batch_size: int
    epochs: float | None = None
    steps: int | None = None
    init: str | None = None
    head_init: Literal["random", "hashtags"] = "random"
    trainable: Literal["all", "head"] = "all"
    warmup: float = 0.0
    schedule: Literal["cosine", "wsd"] = "cosine"
    cooldown: float = 0.2
    drop_path_rate: float = 0.0
    patch_drop_rate: float = 0.0
    merge_tokens: int = 0
    seed: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)
    objective: Objective = field(default_factory=Objective)
    augment: Augment = field(default_factory=Augment)
    ema: EMA | None = None
    distill: Distillation | None = None
    engine: Engine = field(default_factory=Engine)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    log_every: int = 50
    eval_every: int | None = None
    on_nonfinite_loss: Literal["stop", "skip"] = "stop"
    loss_spike_factor: float | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            image_size=(is_positive, "a number of pixels"),
            batch_size=(is_positive, "1 or more"),
            epochs=(is_positive, "a positive number, or none"),
            steps=(is_positive, "1 or more, or none"),
            warmup=(lambda warmup: 0 <= warmup < 1, "a fraction from 0 to below 1"),
            cooldown=(lambda cooldown: 0 <= cooldown <= 1, "a fraction from 0 to 1"),
            log_every=(is_positive, "1 or more"),
            eval_every=(is_positive, "1 or more, or none"),
            loss_spike_factor=(lambda factor: factor is None or factor > 1, "above 1, or none"),
            drop_path_rate=(lambda rate: 0 <= rate < 1, "from 0 to below 1"),
            patch_drop_rate=(lambda rate: 0 <= rate < 1, "from 0 to below 1"),
            merge_tokens=(lambda count: count >= 0, "0 or more"),
        )
        if (self.epochs is None) == (self.steps is None):
            given = f"epochs is {self.epochs} and steps {self.steps}"
            raise ConfigError(f"{given}; give one of them, and none for the other")
        if self.trainable == "head" and self.optimizer.kind == "muon":
            raise ConfigError(
                "optimizer.kind is 'muon' and trainable is 'head', which is no hidden layer; use "
                "sgd or adamw"
            )
        if self.trainable == "head" and self.patch_drop_rate:
            raise ConfigError(
                f"patch_drop_rate is {self.patch_drop_rate:g} and trainable is 'head'; a frozen "
                "backbone sees all patches, leave it at 0"
            )
        if self.schedule == "wsd" and self.warmup + self.cooldown > 1:
            raise ConfigError(
                f"warmup is {self.warmup:g} and cooldown {self.cooldown:g}; allowed: fractions "
                "whose sum is at most 1"
            )

    @property
    def train_sizes(self) -> tuple[int, ...]:
        """The sizes in pixels that training images have, each once and the smallest first."""
        return tuple(sorted(set(self.augment.sizes or (self.image_size,))))

    @property
    def lr(self) -> float:
        """The peak learning rate at this run's batch size."""
        lr_batch = self.optimizer.lr_batch
        return self.optimizer.lr * (self.batch_size / lr_batch if lr_batch else 1)

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "Run":
        """The inverse of `to_dict`, also after JSON; ConfigError names a field that is wrong."""
        return decode_fields(cls, data, name="a run", positive=False)  # ranges: __post_init__
