"""A training run as frozen values: what is trained, on how much, and how. Imports no torch.

`replace()` makes a variant, and so does `override(run, ["optimizer.lr=0.01"])`, which is what `--set` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from swag_models.errors import ConfigError

T = TypeVar("T")
WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Optimizer:
    """How gradients become updates.

    kind: SGD with Nesterov momentum, or AdamW.
    lr: the peak learning rate for `lr_batch` samples in a step, and scaled linearly to `batch_size`; as it is if that is None.
    no_decay: what weight decay leaves alone: nothing, the norms, or norms, biases, class token and position embedding.
    layer_decay: the learning rate of each layer is this times that of the layer above it.
    clip_norm: the largest norm of all gradients together; None for no limit.
    """

    kind: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    lr_batch: int | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    no_decay: Literal["nothing", "norms", "norms and biases"] = "norms and biases"
    layer_decay: float = 1.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(self, "lr", self.lr > 0, "a positive number")
        _check(
            self,
            "lr_batch",
            self.lr_batch is None or self.lr_batch > 0,
            "a number of samples, or none",
        )
        _check(self, "momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        _check(
            self,
            "betas",
            all(0 <= beta < 1 for beta in self.betas),
            "two numbers from 0 to below 1",
        )
        _check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        _check(self, "layer_decay", 0 < self.layer_decay <= 1, "above 0, at most 1")
        _check(
            self,
            "clip_norm",
            self.clip_norm is None or self.clip_norm > 0,
            "a positive number, or none",
        )


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    kind: "softmax" is cross-entropy with 1/K on each of an image's K classes; "sigmoid" is a yes or no for every class.
    label_smoothing: share of the target that is spread over all classes.
    mixup: alpha of the Beta distribution that two images and their targets are mixed by; 0 for none.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(self, "label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1")
        _check(self, "mixup", self.mixup >= 0, "0 or more")


@dataclass(frozen=True)
class Augment:
    """RandomResizedCrop and horizontal flip. `scale` is the share of the picture's area, `ratio` width to height."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(
            self, "scale", 0 < self.scale[0] <= self.scale[1] <= 1, "two shares, the smaller first"
        )
        _check(
            self,
            "ratio",
            0 < self.ratio[0] <= self.ratio[1],
            "two positive numbers, the smaller first",
        )
        _check(self, "flip", 0 <= self.flip <= 1, "a probability")


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights, which is what gets published.

    Args:
        decay: factor of the average in each step; the new weights have 1 - decay.
        warmup_ratio: fraction of all steps, at the beginning, in which the average is a copy of the weights.
    """

    decay: float = 0.9999
    warmup_ratio: float = 0.05

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(self, "decay", 0 <= self.decay < 1, "from 0 to below 1")
        _check(self, "warmup_ratio", 0 <= self.warmup_ratio <= 1, "a fraction from 0 to 1")


@dataclass(frozen=True)
class Engine:
    """How the work is laid out on machines; it changes speed and memory, not what is learnt.

    parallel: "ddp" holds everything on every rank, "fsdp" (FSDP2) shards weights, gradients and optimizer.
    precision: of the products; weights and norms stay float32. "fp16" scales the loss.
    micro_batch: samples that a rank takes at once; gradients of several are added up. None for all of its share.
    sync_bn: batch statistics over all ranks.
    workers: processes per lane that read pictures. lanes: parts that shards are read in; the number of ranks must divide it,
        and a run that may move to more ranks needs as many. None for one per rank.
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

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(
            self,
            "micro_batch",
            self.micro_batch is None or self.micro_batch > 0,
            "a number of samples, or none",
        )
        _check(self, "workers", self.workers >= 0, "0 or more")
        _check(self, "lanes", self.lanes is None or self.lanes > 0, "1 or more, or none")
        _check(self, "buffer", self.buffer > 0, "1 or more")


@dataclass(frozen=True)
class Checkpointing:
    """When checkpoints are written, and how many are kept.

    Args:
        every: steps between two checkpoints.
        keep: number of most recent checkpoints to keep; the one with the best accuracy is kept as well.
    """

    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(self, "every", self.every > 0, "1 or more")
        _check(self, "keep", self.keep > 0, "1 or more")


@dataclass(frozen=True)
class Run:
    """A training run. One of `epochs` and `steps` says how long it is.

    arch: of the catalog. init: the weights to begin with: a catalog name, a folder, hf-hub:org/repo; None for fresh ones.
    trainable: all parameters, or the head alone on a frozen trunk.
    log_every: steps between two log lines. eval_every: steps between two evaluations; None evaluates at the end only.
    on_nonfinite_loss: whether a loss or gradient that is not finite stops the run, or the step is skipped.
    loss_spike_factor: a loss above this times its running mean counts as not finite; None for no limit.
    image_size: pixels. batch_size: samples in a step, over all ranks. warmup: the share of all steps in which the learning
    rate rises linearly from 0; then it falls to 0 along half a cosine.
    """

    arch: str
    image_size: int
    batch_size: int
    epochs: float | None = None
    steps: int | None = None
    init: str | None = None
    trainable: Literal["all", "head"] = "all"
    warmup: float = 0.0
    drop_path_rate: float = 0.0
    seed: int = 0
    optimizer: Optimizer = field(default_factory=Optimizer)
    objective: Objective = field(default_factory=Objective)
    augment: Augment = field(default_factory=Augment)
    ema: EMA | None = None
    engine: Engine = field(default_factory=Engine)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    log_every: int = 50
    eval_every: int | None = None
    on_nonfinite_loss: Literal["stop", "skip"] = "stop"
    loss_spike_factor: float | None = None

    def __post_init__(self) -> None:
        _settle_kinds(self)
        _check(self, "image_size", self.image_size > 0, "a number of pixels")
        _check(self, "batch_size", self.batch_size > 0, "1 or more")
        _check(self, "epochs", self.epochs is None or self.epochs > 0, "a positive number, or none")
        _check(self, "steps", self.steps is None or self.steps > 0, "1 or more, or none")
        _check(self, "warmup", 0 <= self.warmup < 1, "a share from 0 to below 1")
        _check(self, "log_every", self.log_every > 0, "1 or more")
        _check(
            self, "eval_every", self.eval_every is None or self.eval_every > 0, "1 or more, or none"
        )
        spike = self.loss_spike_factor
        _check(self, "loss_spike_factor", spike is None or spike > 1, "above 1, or none")
        _check(self, "drop_path_rate", 0 <= self.drop_path_rate < 1, "from 0 to below 1")
        if (self.epochs is None) == (self.steps is None):
            raise ConfigError(
                f"epochs is {self.epochs} and steps {self.steps}; give one of them, and none for the other"
            )

    @property
    def lr(self) -> float:
        """The peak learning rate at this run's batch size."""
        return self.optimizer.lr * (
            self.batch_size / self.optimizer.lr_batch if self.optimizer.lr_batch else 1
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Run:
        """The inverse of `to_dict`, from JSON too; ConfigError names a field that is unknown, missing or of another kind."""
        return _decode(cls, data, "")


def override(run: Run, settings: Sequence[str]) -> Run:
    """The run with "field=value" or "part.field=value" in place of what it has, all at once.

    Values are words, numbers, none, true, false, or pairs such as 0.9,0.95. A part that is None, as `ema` may be, comes with
    its other fields' defaults. ConfigError names what is allowed.
    """
    data = run.to_dict()
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(
                f"setting {setting!r} is not field=value; for example optimizer.lr=0.01"
            )
        *parts, name = path.strip().split(".")
        inside: Any = data
        cls: Any = Run
        for depth, part in enumerate([*parts, name]):
            known = get_type_hints(cls) if is_dataclass(cls) else {}
            if part not in known:
                where = ".".join([*parts, name][:depth]) or "a run"
                raise ConfigError(
                    f"{path}: {where} has no field {part!r}; fields: {', '.join(known) or 'none'}"
                )
            cls = next((kind for kind in _options(known[part]) if is_dataclass(kind)), known[part])
            if depth < len(parts):
                if inside[part] is None and is_dataclass(cls):
                    inside[part] = asdict(cls())  # type: ignore[operator]
                inside = inside[part]
        inside[name] = _convert(known[name], _read_text(text.strip(), known[name]), path.strip())
    return Run.from_dict(data)


def iterate_fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and value of every field that is no part itself, in order."""
    for each in fields(value):
        inner = getattr(value, each.name)
        if is_dataclass(inner):
            yield from iterate_fields(inner, f"{path}{each.name}.")
        else:
            yield f"{path}{each.name}", inner


def _read_text(text: str, hint: Any) -> Any:
    """What a text stands for where an annotation allows it: a folder may be called 2024."""
    if "," in text and str not in _options(hint):
        return [_read_text(part.strip(), float) for part in text.split(",")]
    if str in _options(hint):
        return None if text.lower() == "none" else text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _decode(cls: type[T], data: Any, path: str) -> T:
    """A part from the JSON object of its fields."""
    hints = get_type_hints(cls)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path.rstrip('.') or 'a run'} is {data!r}; it has fields: {', '.join(hints)}"
        )
    if unknown := sorted(set(data) - set(hints)):
        raise ConfigError(
            f"{path.rstrip('.') or 'a run'} has no field {', '.join(unknown)}; fields: {', '.join(hints)}"
        )
    values = {name: _convert(hints[name], value, f"{path}{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{path.rstrip('.') or 'a run'}: {str(error).split('() ')[-1]}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}{error}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    """A value as an annotation says, or ConfigError."""
    for kind in _options(hint):
        if is_dataclass(kind) and isinstance(value, kind):  # type: ignore[arg-type]
            return value
        if is_dataclass(kind) and isinstance(value, dict):
            return _decode(kind, value, f"{path}.")  # type: ignore[arg-type]
        if get_origin(kind) is Literal and value in get_args(kind):
            return value
        if (
            get_origin(kind) is tuple
            and isinstance(value, (list, tuple))
            and len(value) == len(get_args(kind))
        ):
            return tuple(_convert(each, item, path) for each, item in zip(get_args(kind), value))
        if kind is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if kind in (int, bool, str, NoneType) and type(value) is kind:
            return value
    raise ConfigError(f"{path} is {value!r}; allowed: {' or '.join(map(_name, _options(hint)))}")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _name(kind: Any) -> str:
    """What users call a type."""
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers with a comma between"
    if is_dataclass(kind):
        return f"its fields ({', '.join(each.name for each in fields(kind))})"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true, false",
        str: "a text",
        NoneType: "none",
    }
    return names[kind]


def _settle_kinds(part: Any) -> None:
    """Values as the annotations say, so that a run made in Python and the same read from JSON are one."""
    for name, hint in get_type_hints(type(part)).items():
        object.__setattr__(part, name, _convert(hint, getattr(part, name), name))


def _check(part: Any, name: str, fits: bool, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{name} is {getattr(part, name)!r}; allowed: {allowed}")
