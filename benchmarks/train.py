"""The training loop against timm's own training script: images per second, waiting for data, and MFU.

    python benchmarks/train.py --timm-script train.py [--arch vit_b16 ...] [--batch 4] [--steps 3] [--rounds 5] [--device cpu]
    python benchmarks/train.py --feed

timm's script is `train.py` at the root of https://github.com/huggingface/pytorch-image-models; its wheel does not have it. Both
train the same architecture from scratch with AdamW on the same JPEGs of 400 x 300 pixels, in the same precision, with the same
crops, flips and number of workers. They take turns, each in a process of its own, which is ended after 2 * `steps` steps: the
first half is for warming up, the second counts, from one line of its log to the next. --feed instead compares what gives both
their batches, float32 and normalised, with no model behind it.
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

import timm
import torch
from embed import make_images
from timm.data import create_dataset, create_loader

from swag_models.models import build
from swag_models.preprocess import Transform
from swag_models.recipe.config import EMA, Augment, Engine, Optimizer, Run
from swag_models.recipe.data.train_loader import open_train_loader
from swag_models.recipe.data.transforms import Augmentation
from swag_models.recipe.training.logging import LOG_FILE, read_log
from swag_models.recipe.training.model import find_spec

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
    """Images per second; the share of time spent waiting for data; and the share of the device's peak, known from our log."""

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
        steps=1000,  # more than it will do
        optimizer=Optimizer("adamw", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
        ema=EMA() if options.ema else None,
        engine=Engine(precision=options.precision, workers=options.workers),
        log_every=options.steps,
    )


def check_models(arch: str) -> None:
    """That both have as many parameters."""
    name, changes, size = TIMM[arch]
    with torch.device("meta"):
        ours = build(
            find_spec(Run(arch, size, 1, steps=1)).config, num_classes=NUM_CLASSES, image_size=size
        )
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
    (output.parent / "timm.yaml").write_text(
        f"device: {options.device}\n"
    )  # older versions have no option for it
    command: list[Any] = [
        options.timm_script,
        "--config",
        output.parent / "timm.yaml",
        "--data-dir",
        data,
    ]
    command += [
        "--model",
        name,
        "--num-classes",
        NUM_CLASSES,
        "--input-size",
        3,
        size,
        size,
        "--batch-size",
        options.batch,
    ]
    command += [
        "--opt",
        "adamw",
        "--lr",
        1e-4,
        "--opt-betas",
        0.9,
        0.999,
        "--weight-decay",
        0.05,
        "--warmup-epochs",
        0,
    ]
    command += [
        "--color-jitter",
        0,
        "--smoothing",
        0,
        "--train-interpolation",
        "bicubic",
        "--channels-last",
    ]
    command += ["--workers", options.workers, "--log-interval", options.steps, "--output", output]
    command += (
        ["--amp", "--amp-dtype", {"bf16": "bfloat16", "fp16": "float16"}[options.precision]]
        if options.amp
        else []
    )
    command += ["--model-ema"] if options.ema else []
    command += (
        ["--model-kwargs", *(f"{key}={value}" for key, value in changes.items())] if changes else []
    )
    seen: list[
        tuple[float, float]
    ] = []  # when the line came, and what was waited in all, in seconds
    told = []
    with start(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            told.append(line)
            if found := LINE.search(line):
                seen.append((time.perf_counter(), (int(found[1]) + 1) * float(found[2])))
                if len(seen) == 3:
                    break
    assert len(seen) == 3, "".join(told)
    (begun, waited), (ended, waited_all) = seen[1:]
    return Speed(
        options.steps * options.batch / (ended - begun), (waited_all - waited) / (ended - begun)
    )


@contextmanager
def start(arguments: list[Any], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Python as a process, which in the end is killed with its workers: it is not to write a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)], start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it may have failed by itself
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
    peak = statistics.median(speed.mfu / speed.rate for speed in speeds["swag_models"])
    base = statistics.median(speed.rate for speed in speeds["timm"])
    for name, each in speeds.items():
        rates = [speed.rate for speed in each]
        rate, wait = statistics.median(rates), statistics.median(speed.wait for speed in each)
        print(
            f"| {arch} | {name} | {rate:.2f} ({min(rates):.2f} to {max(rates):.2f}) | {rate / base:.2f} | {wait:.2%} "
            f"| {rate * peak:.1%} |",
            flush=True,
        )


def feed_ours(data: Path, workers: int, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    engine, normalise = (
        Engine(workers=workers),
        Transform(find_spec(make_run("vit_b16", options)).preprocess).normalise,
    )
    augmentation = Augmentation(Augment(), options.size)
    feed = open_train_loader(
        data, augmentation, batch_size=options.batch, seed=0, rank=0, world_size=1, engine=engine
    )
    for batch in feed:
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


def measure_feed(batches: Iterator[torch.Tensor], steps: int, skip: int) -> float:
    """Images per second after some batches, which workers may have had ready."""
    for _ in itertools.islice(batches, skip):
        pass
    start = time.perf_counter()
    count = sum(len(images) for images in itertools.islice(batches, steps))
    return count / (time.perf_counter() - start)


def compare_feeds(data: Path, options: argparse.Namespace) -> None:
    feeds: dict[str, Callable[..., Iterator[torch.Tensor]]] = {
        "swag_models": feed_ours,
        "timm": feed_timm,
    }
    for workers in (0, 1, 2):
        rates: dict[str, list[float]] = {name: [] for name in feeds}
        for _ in range(options.rounds):
            for name, make in feeds.items():
                rates[name].append(measure_feed(make(data, workers, options), options.steps, 4))
        base = statistics.median(rates["timm"])
        for name, each in rates.items():
            rate = statistics.median(each)
            print(
                f"| {workers} | {name} | {rate:.0f} ({min(each):.0f} to {max(each):.0f}) | {rate / base:.2f} |",
                flush=True,
            )


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
            "--timm-script is missing; get train.py of https://github.com/huggingface/pytorch-image-models"
        )
    options.batch = options.batch or (32 if options.feed else 4)
    options.steps = options.steps or (24 if options.feed else 3)
    options.amp = options.precision != "fp32"
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as name:
        # timm ends an epoch to begin the next: it must last, and workers must not come to its end.
        data = make_folder(Path(name, "data"), max(200, (2 * options.steps + 10) * options.batch))
        if options.feed:
            print("| workers | feed | images/s, median (min to max) | / timm |\n|---|---|---|---|")
            compare_feeds(data, options)
            return
        print(
            "| architecture | loop | images/s, median (min to max) | / timm | waiting for data | MFU |"
        )
        print("|---|---|---|---|---|---|")
        for arch in options.arch:
            compare_training(arch, data, Path(name), options)


if __name__ == "__main__":
    main()
