"""What a run on 3.6 billion images takes, by formulas from stated assumptions.

Every number that is not computed is in ASSUMPTIONS, with its source.
"""

import math
from dataclasses import dataclass

from swag_models.architectures import ViTConfig
from swag_models.hub.model_size import count_size
from swag_models.registry import get_spec

DAY, HOUR = 86400.0, 3600.0


@dataclass(frozen=True)
class Assumption:
    """A number that the plan starts from.

    Attributes:
        value: in base units: bytes, seconds, FLOP/s.
        text: the value with its unit.
        what: what it is.
        source: where it comes from, or that it is assumed.
    """

    value: float
    text: str
    what: str
    source: str


SINGH = "Singh et al. 2022, arXiv 2201.08371"
MEASURED = "measured, benchmarks/README.md"
LLAMA = "quoted: Llama 3, arXiv 2407.21783, section 3.3.4"
ASSUMPTIONS = {
    "images": Assumption(3.6e9, "3.6 billion", "images", SINGH),
    "classes": Assumption(27_000, "27,000", "classes", SINGH),
    "epoch": Assumption(5e9, "5 billion", "samples of an epoch, repeats included", SINGH),
    "samples": Assumption(10e9, "10 billion", "samples of the two largest models", SINGH),
    "batch": Assumption(8192, "8,192", "samples of a step", "the preset; our reading of the paper"),
    "image_bytes": Assumption(
        35e3, "35 kB", "a JPEG with a short side of 256 pixels, and its label", MEASURED
    ),
    "tar": Assumption(1.05, "1.05", "size of a shard / its files: two tar headers", "computed"),
    "shard": Assumption(10_000, "10,000", "images of a shard", "the default of pack"),
    "peak": Assumption(
        989e12, "989 TFLOP/s", "an H100 SXM in bf16, dense", "NVIDIA's H100 data sheet"
    ),
    "mfu_vit": Assumption(0.4, "40%", "of the peak in training, ViT", "assumed; see below"),
    "mfu_regnet": Assumption(
        0.09, "9%", "of the peak in training, RegNetY", f"{MEASURED}: RegNetY-16GF on an H200"
    ),
    "network": Assumption(
        40e9, "40 GB/s", "all-reduce of a GPU: 400 Gbit/s at 80%", "assumed; depends on the cluster"
    ),
    "decode": Assumption(650, "650/s", "images that a CPU core decodes and crops", MEASURED),
    "curate": Assumption(1e5, "100,000/s", "posts that a CPU core curates", MEASURED),
    "download": Assumption(
        275, "275/s", "images that a core downloads and resizes, img2dataset", MEASURED
    ),
    "pack": Assumption(870, "870/s", "images that a core packs", MEASURED),
    "failures": Assumption(
        419 / (54 * DAY * 16_384),
        "419 in 54 days on 16,384 GPUs",
        "unexpected interruptions (466 with planned ones)",
        LLAMA,
    ),
    "write": Assumption(
        2e9, "2 GB/s", "of a checkpoint, all ranks together", "assumed; low for a parallel disk"
    ),
    "restart": Assumption(
        15 * 60.0, "15 min", "from a failure to the next step", "assumed; a new node, start-up"
    ),
    "price_low": Assumption(2.0, "2 USD", "an H100 for an hour, low", "assumed"),
    "price_high": Assumption(4.0, "4 USD", "an H100 for an hour, high", "assumed"),
    "disk": Assumption(20.0, "20 USD", "a TB of storage for a month", "assumed"),
}
ARCHS = ("vit_b16", "vit_l16", "vit_h14", "regnety_16gf", "regnety_128gf")
GPUS = (128, 256, 512, 1024)


def get_value(name: str) -> float:
    """Return the value of an assumption."""
    return ASSUMPTIONS[name].value


@dataclass(frozen=True)
class Model:
    """A model with a head of all classes.

    Attributes:
        arch: name of the architecture.
        parameters: number, with the head.
        flops: of a training step for one image of 224 pixels, forward and backward.
        mfu: assumed fraction of the peak.
        state_bytes: weights and optimizer state in float32: 12 bytes for each parameter with
            AdamW (ViT), 8 with SGD and momentum (RegNetY).
    """

    arch: str
    parameters: int
    flops: float
    mfu: float
    state_bytes: int

    @property
    def rate(self) -> float:
        """Images per second on a GPU, without communication."""
        return get_value("peak") * self.mfu / self.flops


def describe_model(arch: str) -> Model:
    """Return the sizes of an architecture with a head of all classes."""
    config = get_spec(arch).config
    parameters, macs = count_size(
        config, (224, 224), in_chans=3, num_classes=int(get_value("classes"))
    )
    is_vit = isinstance(config, ViTConfig)
    mfu = get_value("mfu_vit" if is_vit else "mfu_regnet")
    # A multiply-add is 2 operations; the backward pass takes twice the forward pass.
    return Model(arch, parameters, 6.0 * macs, mfu, parameters * (12 if is_vit else 8))


@dataclass(frozen=True)
class Training:
    """Training of a model on a number of GPUs.

    Attributes:
        compute: seconds of a step's computation.
        reduce: seconds of the all-reduce of float32 gradients, which overlaps with computation.
        step: seconds of a step: the longer of both.
        days: for all samples.
        gpu_hours: for all samples.
        cost: USD, low and high.
        read_rate: bytes per second that all ranks read.
        cores: CPU cores that decode for each GPU.
    """

    compute: float
    reduce: float
    step: float
    days: float
    gpu_hours: float
    cost: tuple[float, float]
    read_rate: float
    cores: float


def plan_training(model: Model, gpus: int) -> Training:
    """Plan the training of a model.

    A ring all-reduce sends and receives 2 (R - 1) / R times the gradients of R ranks (Patarasuk and
    Yuan 2009).

    Args:
        model: from `describe_model`.
        gpus: number of GPUs.
    """
    batch = get_value("batch")
    compute = batch / gpus / model.rate
    reduce = 2 * (gpus - 1) / gpus * 4 * model.parameters / get_value("network")
    step = max(compute, reduce)
    seconds = get_value("samples") / batch * step
    hours = gpus * seconds / HOUR
    # Copies of an image are decoded one by one, but are read once.
    images = batch / step * get_value("images") / get_value("epoch")
    return Training(
        compute=compute,
        reduce=reduce,
        step=step,
        days=seconds / DAY,
        gpu_hours=hours,
        cost=(hours * get_value("price_low"), hours * get_value("price_high")),
        read_rate=images * get_value("image_bytes") * get_value("tar"),
        cores=batch / step / gpus / get_value("decode"),
    )


@dataclass(frozen=True)
class Failures:
    """Checkpoints and lost work of a training.

    Attributes:
        between: seconds between failures of any GPU, mean.
        expected: number of failures in the training.
        write: seconds to write a checkpoint.
        interval: seconds between checkpoints with the least lost work.
        lost: fraction of the time that is lost with this interval.
    """

    between: float
    expected: float
    write: float
    interval: float
    lost: float


def plan_failures(model: Model, gpus: int, days: float) -> Failures:
    """Plan the checkpoints of a training whose steps wait while one is written.

    Args:
        model: from `describe_model`.
        gpus: number of GPUs.
        days: length of the training.
    """
    between = 1 / (get_value("failures") * gpus)
    write = model.state_bytes / get_value("write")
    interval = choose_interval(write, between)
    lost = write / interval + (interval / 2 + get_value("restart")) / between
    return Failures(between, days * DAY / between, write, interval, lost)


def choose_interval(write: float, between: float) -> float:
    """Return the seconds of computation between checkpoints with the least lost work.

    Daly 2006 (Future Generation Computer Systems 22, eq. 37), a higher-order form of Young 1974
    (Communications of the ACM 17): sqrt(2 d M) for short times d of writing.

    Args:
        write: seconds to write a checkpoint, d.
        between: mean seconds between failures, M.
    """
    if write >= 2 * between:
        return between
    ratio = write / (2 * between)
    return math.sqrt(2 * write * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write


def plan_storage() -> dict[str, float]:
    """Return bytes of the shards, their number, bytes of one, and USD for a month of storage."""
    images = get_value("images")
    size = images * get_value("image_bytes") * get_value("tar")
    shards = images / get_value("shard")
    return {
        "bytes": size,
        "shards": shards,
        "shard_bytes": size / shards,
        "month": size / 1e12 * get_value("disk"),
    }


def plan_preparation() -> dict[str, float]:
    """Return the core-hours of each step from posts to shards."""
    images = get_value("images")
    return {step: images / get_value(step) / HOUR for step in ("curate", "download", "pack")}


def count_stream_shards(gpus: int, workers: int) -> tuple[int, float]:
    """Return the number of streams, and of the shards of each in an epoch.

    Args:
        gpus: number of ranks.
        workers: worker processes of each.
    """
    streams = gpus * workers
    return streams, plan_storage()["shards"] / streams
