"""Small training runs: data, settings and processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from swag_models.cli import main
from swag_models.recipe.training.checkpointer import STATE_FILE

STEPS = 12
SETTINGS = (
    *(
        "image_size=32",
        "batch_size=12",
        "epochs=none",
        f"steps={STEPS}",
        "augment.interpolation=bilinear",
    ),
    *("log_every=1", "checkpoint.every=4", "optimizer.lr=0.003"),
)
REGNET = ("arch=regnety_nano", "optimizer.kind=sgd", "optimizer.lr=0.05")
STATEFUL = (
    "ema.decay=0.9",
    "objective.mixup=0.4",
    "drop_path_rate=0.2",
    "checkpoint.every=2",
)  # checkpoints must restore all of these
PRELOADED = (
    *(
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint.state_dict",
        "torchvision.transforms.v2",
        "safetensors.torch",
    ),
    *("matplotlib.backends.backend_agg", "pyarrow.parquet", "torch._dynamo"),
)
PRESET = "vit_nano_hashtags"


def make_digits(root: Path, count: int, first: int = 0) -> Path:
    """Write handwritten digits, in one folder per digit."""
    from PIL import Image
    from sklearn.datasets import load_digits  # the processes do not need it

    images, digits = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 255 / 16).round().astype("uint8")
    for number in range(first, first + count):
        path = root / f"digit {digits[number]}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    return root


def make_arguments(
    data: Any,
    output: Path,
    *settings: str,
    options: Sequence[str | Path] = (),
    preset: str = PRESET,
) -> list[str]:
    """The arguments of `swag-models recipe train`."""
    chosen = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return [
        "recipe",
        "train",
        preset,
        "--data",
        str(data),
        "-o",
        str(output),
        "--quiet",
        *chosen,
        *map(str, options),
    ]


def start(arguments: Sequence[str], ranks: int = 1) -> list[BaseProcess]:
    """Start `swag-models` on a number of ranks, in processes whose stderr goes to `<output>.err`.

    They are forked from a process that has imported modules which take seconds to import.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "swag_models.recipe.training.trainer",
            "tensorboard.compat.proto.event_pb2",
            "matplotlib.figure",
            *PRELOADED,
        ]
    )
    port = find_port()
    processes = [
        context.Process(target=_begin, args=(list(arguments), rank, ranks, port))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: Sequence[BaseProcess], seconds: float = 90) -> list[int | None]:
    """Wait for the processes and return their exit codes."""
    try:
        for process in processes:
            process.join(seconds)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(arguments: Sequence[str], ranks: int = 1) -> None:
    """Train in processes and assert that they succeed."""
    codes = finish(start(arguments, ranks))
    assert codes == [0] * ranks, read_errors(arguments)


def read_errors(arguments: Sequence[str]) -> str:
    path = _find_errors(arguments)
    return path.read_text() if path.exists() else ""


def read_lines(output: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def read_losses(output: Path) -> list[float]:
    return [line["loss"] for line in read_lines(output)]


def read_weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


def list_steps(output: Path) -> list[int]:
    """Steps of complete checkpoints."""
    return sorted(
        int(path.parent.name.removeprefix("step-"))
        for path in (output / "checkpoints").glob(f"step-*/{STATE_FILE}")
    )


def compare(one: Path, two: Path, losses: float = 2e-5, weights: float = 1e-3) -> None:
    """Assert that losses and published weights of two runs differ by less."""
    ours, theirs = read_losses(one), read_losses(two)
    assert len(ours) == len(theirs)
    assert max(abs(a - b) for a, b in zip(ours, theirs)) < losses
    our_weights, their_weights = (
        load_file(output / "model" / "model.safetensors") for output in (one, two)
    )
    assert our_weights.keys() == their_weights.keys()
    assert (
        max((our_weights[name] - their_weights[name]).abs().max().item() for name in our_weights)
        < weights
    )


def find_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def killed_at_exit(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Kill the processes when the block ends, whatever happens in it."""
    try:
        yield
    finally:
        finish(processes, 0)


def _find_errors(arguments: Sequence[str]) -> Path:
    output = Path(arguments[arguments.index("-o") + 1])
    return output.with_name(f"{output.name}.err")


def _begin(arguments: list[str], rank: int, ranks: int, port: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if ranks > torch.cuda.device_count():  # NCCL needs a GPU for each rank
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    errors = os.open(_find_errors(arguments), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    sys.stderr = sys.stdout = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    sys.exit(main(arguments))
