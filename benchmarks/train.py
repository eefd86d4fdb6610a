"""The training loop against timm's training script: images per second, waiting for data, MFU.

    python benchmarks/train.py --timm-script train.py [--arch vit_b16 ...] [--batch 4] [--steps 3]
        [--rounds 5] [--device cpu]
    python benchmarks/train.py --feed

timm's script is `train.py` at the root of https://github.com/huggingface/pytorch-image-models; its
wheel does not include it. Both train the same architecture from scratch with AdamW on the same
JPEGs of 400 x 300 pixels, with the same precision, crops, flips and number of workers. They take
turns, each in its own process, which is ended after 2 * `steps` steps: the first half warms up,
the second is measured, from one log line to the next. --feed compares the data loaders only, up to
normalised float32 batches.
"""

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from embed import make_images
from measure import Cost, measure_cpu
from timm.data import create_dataset, create_loader

from swag_models.models import build
from swag_models.preprocess import Transform
from swag_models.recipe.augmentation import Augment
from swag_models.recipe.config import EMA, Engine, Optimizer, Run
from swag_models.recipe.data.train_loader import open_train_loader
from swag_models.recipe.data.transforms import Augmentation
from swag_models.recipe.training.logging import LOG_FILE, read_log
from swag_models.recipe.training.memory import find_arch

NUM_CLASSES = 10
TIMM = {  # architecture -> timm's name, what makes it the same, image size
    "vit_b16": ("vit_base_patch16_224", {}, 224),
    "vit_l16": ("vit_large_patch16_224", {}, 224),
    "regnety_16gf": ("regnety_160", {}, 224),
    "regnety_32gf": ("regnety_320", {}, 224),
    "vit_nano": (
        "vit_tiny_patch16_224",
        {
            "img_size": 48,
            "patch_size": 8,
            "embed_dim": 96,
            "depth": 4,
            "num_heads": 3,
            "mlp_ratio": 2.0,
        },
        48,
    ),
}
LINE = re.compile(r"Train: 0 \[ *(\d+)/.* Data: [\d.]+ \(([\d.]+)\)")
OURS = """
import json, sys
from swag_models.recipe.config import Run
from swag_models.recipe.training.trainer import train
train(Run.from_dict(json.loads(sys.argv[1])), sys.argv[2], sys.argv[3], progress=False)
"""


@dataclass(frozen=True)
class Speed:
    """Speed of one training run.

    Attributes:
        rate: images per second.
        wait: fraction of time spent waiting for data.
        mfu: fraction of the device's peak, from our log; 0 if the peak is not known.
    """

    rate: float
    wait: float
    mfu: float = 0.0


def make_folder(root: Path, count: int) -> Path:
    """Write images in one folder per class."""
    for number in range(NUM_CLASSES):
        (root / f"class{number}").mkdir(parents=True)
    for number, path in enumerate(make_images(root, count, 400, 300)):
        path.rename(root / f"class{number % NUM_CLASSES}" / path.name)
    return root


def make_run(arch: str, options: argparse.Namespace) -> Run:
    return Run(
        arch=arch,
        image_size=TIMM[arch][2],
        batch_size=options.batch,
        steps=1000,  # more than it is given time for
        optimizer=Optimizer("adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
        ema=EMA() if options.ema else None,
        engine=Engine(precision=options.precision, workers=options.workers),
        log_every=options.steps,
    )


def check_models(arch: str) -> None:
    """Check that both have the same number of parameters."""
    name, changes, size = TIMM[arch]
    with torch.device("meta"):
        ours = build(find_arch(arch).config, num_classes=NUM_CLASSES, image_size=size)
        theirs = timm.create_model(name, num_classes=NUM_CLASSES, **changes)
    counts = [
        sum(parameter.numel() for parameter in model.parameters()) for model in (ours, theirs)
    ]
    assert counts[0] == counts[1], counts


def measure_ours(arch: str, data: Path, output: Path, options: argparse.Namespace) -> Speed:
    run = json.dumps(make_run(arch, options).to_dict())
    lines, log = [], output / LOG_FILE
    with start(["-c", OURS, run, data, output]) as process:
        while len(lines) < 2:
            time.sleep(0.05)
            assert process.poll() is None, "training failed"
            lines = read_log(log) if log.exists() else []
    first, second = lines[:2]
    rate = options.steps * options.batch / (second["time"] - first["time"])
    return Speed(
        rate, second["wait_share"], rate * second.get("mfu", 0.0) / second["images_per_second"]
    )


def measure_timm(arch: str, data: Path, output: Path, options: argparse.Namespace) -> Speed:
    name, changes, size = TIMM[arch]
    config = output.parent / "timm.yaml"  # older versions of timm have no option for the device
    config.write_text(f"device: {options.device}\n")
    command: list[Any] = [options.timm_script, "--config", config, "--data-dir", data]
    command += f"--model {name} --num-classes {NUM_CLASSES} --input-size 3 {size} {size}".split()
    command += f"--batch-size {options.batch} --workers {options.workers}".split()
    command += ["--opt", "adamw", "--lr", "1e-4", "--opt-betas", "0.9", "0.999"]
    command += ["--weight-decay", "0.05"]
    command += ["--warmup-epochs", "0", "--color-jitter", "0", "--smoothing", "0"]
    command += ["--train-interpolation", "bicubic", "--channels-last"]
    command += ["--log-interval", options.steps, "--output", output]
    if options.amp:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[options.precision]
        command += ["--amp", "--amp-dtype", dtype]
    if options.ema:
        command += ["--model-ema"]
    if changes:
        command += ["--model-kwargs", *(f"{key}={value}" for key, value in changes.items())]
    logged: list[tuple[float, float]] = []  # time of a log line, and waiting until then, in seconds
    lines = []
    with start(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            if match := LINE.search(line):
                logged.append((time.perf_counter(), (int(match[1]) + 1) * float(match[2])))
                if len(logged) == 3:
                    break
    assert len(logged) == 3, "".join(lines)
    (start_time, start_waited), (end_time, end_waited) = logged[1:]
    seconds = end_time - start_time
    return Speed(options.steps * options.batch / seconds, (end_waited - start_waited) / seconds)


@contextmanager
def start(arguments: list[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run Python in a process that is killed in the end with its workers, before a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it may have failed before
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def compare_training(arch: str, data: Path, scratch: Path, options: argparse.Namespace) -> None:
    check_models(arch)
    speeds: dict[str, list[Speed]] = {"swag_models": [], "timm": []}
    for turn in range(options.rounds):
        speeds["swag_models"].append(
            measure_ours(arch, data, scratch / f"{arch}_ours{turn}", options)
        )
        speeds["timm"].append(measure_timm(arch, data, scratch / f"{arch}_timm{turn}", options))
    mfu_per_rate = statistics.median(speed.mfu / speed.rate for speed in speeds["swag_models"])
    base = statistics.median(speed.rate for speed in speeds["timm"])
    for name, runs in speeds.items():
        rates = [speed.rate for speed in runs]
        rate, wait = statistics.median(rates), statistics.median(speed.wait for speed in runs)
        spread = f"{rate:.2f} ({min(rates):.2f} to {max(rates):.2f})"
        cells = [arch, name, spread, f"{rate / base:.2f}", f"{wait:.2%}"]
        cells += [f"{rate * mfu_per_rate:.1%}" if mfu_per_rate else "unknown"]
        print(f"| {' | '.join(cells)} |", flush=True)


def feed_ours(data: Path, workers: int, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    normalise = Transform(find_arch("vit_b16").preprocess).normalise
    loader = open_train_loader(
        data,
        Augmentation(Augment(), options.size),
        batch_size=options.batch,
        seed=0,
        rank=0,
        world_size=1,
        engine=Engine(workers=workers),
    )
    for batch in loader:
        yield normalise(batch.images)


def feed_timm(data: Path, workers: int, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    loader = create_loader(
        create_dataset(
            "", root=str(data), split="train", is_training=True, batch_size=options.batch
        ),
        input_size=(3, options.size, options.size),
        batch_size=options.batch,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bicubic",
        num_workers=workers,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    for images, _ in loader:
        yield images


def measure_feed(batches: Iterator[Any], steps: int, skip: int) -> Cost:
    """Time of a number of batches, after `skip` batches that workers may have prepared."""
    for _ in itertools.islice(batches, skip):
        pass
    process = psutil.Process()
    start, cpu = time.perf_counter(), measure_cpu(process)
    count = sum(1 for _ in itertools.islice(batches, steps))
    assert count == steps, f"the data end after {count + skip} batches"
    return Cost(time.perf_counter() - start, measure_cpu(process) - cpu)


def compare_feeds(data: Path, options: argparse.Namespace) -> None:
    feeds: dict[str, Callable[..., Iterator[torch.Tensor]]] = {
        "swag_models": feed_ours,
        "timm": feed_timm,
    }
    for workers in (0, 1, 2):
        rates: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(options.rounds):
            for name, make in feeds.items():
                cost = measure_feed(make(data, workers, options), options.steps, 4)
                rates[name].append(options.steps * options.batch / cost.wall)
        base = statistics.median(rates["timm"])
        for name, values in rates.items():
            rate = statistics.median(values)
            spread = f"{rate:.0f} ({min(values):.0f} to {max(values):.0f})"
            print(f"| {workers} | {name} | {spread} | {rate / base:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timm-script")
    parser.add_argument("--feed", action="store_true")
    parser.add_argument(
        "--arch", nargs="+", default=["vit_b16", "regnety_16gf"], choices=list(TIMM)
    )
    parser.add_argument("--batch", type=int, help="default: 4, or 32 for --feed")
    parser.add_argument("--steps", type=int, help="default: 3, or 24 for --feed")
    parser.add_argument("--size", type=int, default=224, help="pixels, for --feed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--ema", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if not options.feed and not options.timm_script:
        parser.error(
            "--timm-script is missing; download train.py from "
            "https://github.com/huggingface/pytorch-image-models"
        )
    options.batch = options.batch or (32 if options.feed else 4)
    options.steps = options.steps or (24 if options.feed else 3)
    options.amp = options.precision != "fp32"
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as name:
        # timm restarts its loader after each epoch: one epoch must last for all measured steps.
        data = make_folder(Path(name, "data"), max(200, (2 * options.steps + 10) * options.batch))
        if options.feed:
            print(
                "| workers | loader | images/s, median (min to max) | / timm |\n|---|---|---|---|"
            )
            compare_feeds(data, options)
            return
        print(
            "| architecture | loop | images/s, median (min to max) | / timm | waiting for data "
            "| MFU |"
        )
        print("|---|---|---|---|---|---|")
        for arch in options.arch:
            compare_training(arch, data, Path(name), options)


if __name__ == "__main__":
    main()
