"""Measurements of a training run: log.jsonl, TensorBoard, progress bar, curves.png, throughput.

log.jsonl has one JSON object per line: `step`, `kind` ("train", "eval", or "skip" for a step that
was not taken), `time` (seconds of training, summed over restarts), and numbers by name. JSON has no
NaN and no infinity; they are the strings "nan", "inf" and "-inf".
"""

import json
import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from swag_models.atomic import write_text
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, escape_unprintable, list_names
from swag_models.hub.hf_format import CURVES_FILE
from swag_models.hub.progress import make_bar
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.recipe.training.event_file import EventFile

LOG_FILE, BOARD_FOLDER = "log.jsonl", "tensorboard"
BAR_SECONDS = 0.5  # between two updates of the bar
# Peak of dense matrix products, FLOP/s, in bf16 or fp16 and, where we looked it up, in float32
# without tensor cores; by words of the device's name, special models before the general one.
# Source: NVIDIA's data sheets of B200 and GB200 NVL72, H200, GH200, H100, A100 and L40S, and the
# white paper of the Ada architecture (fp16 with fp32 accumulation). Where they give
# figures with sparsity, half of them.
GPU_PEAKS: dict[str, tuple[float, float | None]] = {
    "GB200": (2500e12, None),
    "B200": (2250e12, None),
    "H200 NVL": (835e12, None),
    "H200": (989e12, None),
    "GH200": (989e12, None),
    "H100 NVL": (835e12, None),
    "H100 PCIe": (756e12, None),
    "H100": (989e12, 67e12),
    "A100": (312e12, None),
    "L40S": (362e12, 91.6e12),
    "RTX 4090": (165.2e12, 82.6e12),
}
log = logging.getLogger("swag_models")


class MetricLogger:
    """Writes the measurements of a run: log lines, TensorBoard files, a progress bar, curves.

    A full disk stops the logging with one warning; training continues.

    Args:
        folder: of the run; created if missing.
        first_step: number of steps done before. Measurements of later steps, which an interrupted
            process may have left, are removed; 0 removes all of them.
        steps: number of steps of the run.
        progress: draw the bar if stderr is a terminal.
        tensorboard: write files for TensorBoard, which must be installed.
        silent: do nothing at all, as on every rank but the main one.

    Raises:
        ConfigError: a line of the existing log is damaged.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        steps: int,
        *,
        progress: bool,
        tensorboard: bool = True,
        silent: bool = False,
    ) -> None:
        self.folder, self.silent = folder, silent
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_FILE
        lines = read_log(path) if path.exists() else []
        lines = [line for line in lines if first_step and line["step"] <= first_step]
        write_text(path, "".join(map(_encode, lines)))
        if not first_step:
            shutil.rmtree(folder / BOARD_FOLDER, ignore_errors=True)
        self._seconds_before = lines[-1]["time"] if lines else 0.0
        self._start = time.monotonic()
        # Unbuffered and in one write per line, so that a killed process leaves at most one partial
        # line.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (open as long as the run)
        self._board = EventFile(folder / BOARD_FOLDER, first_step + 1) if tensorboard else None
        self._failed = False
        self._bar = make_bar(
            progress,
            total=steps,
            initial=first_step,
            unit="step",
            mininterval=BAR_SECONDS,
            dynamic_ncols=True,
        )

    def record(
        self,
        step: int,
        kind: Literal["train", "eval", "skip"] = "train",
        **numbers: float | int | str,
    ) -> None:
        """Write one log line; numbers become TensorBoard scalars named kind/name as well."""
        if self.silent or self._failed:
            return
        seconds = round(self._seconds_before + time.monotonic() - self._start, 3)
        line = _encode({"step": step, "kind": kind, "time": seconds, **numbers}).encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                self._file.truncate(end)
                raise OSError("the disk is full")
            if self._board:
                for name, value in numbers.items():
                    if not isinstance(value, str):
                        self._board.add_scalar(f"{kind}/{name}", value, step)
                self._board.flush()
        except OSError as error:
            self._stop(error)

    def advance(self, *, loss: float | torch.Tensor, lr: float) -> None:
        """Advance the bar by one step.

        A tensor is read only when the bar is drawn, because reading it makes the GPU wait.
        """
        if not self.silent and self._bar.update():
            self._bar.set_postfix(loss=f"{float(loss):.4g}", lr=f"{lr:.3g}")

    def warn_of_broken(self, count: int, reasons: Iterable[str], data: str = "") -> None:
        """Log how many images and shards the run could not read, if any.

        Args:
            count: number of failed reads since the run began.
            reasons: messages of this process, two of which are quoted.
            data: what messages begin with.
        """
        if count and not self.silent:
            times = f"{data}{count_noun(count, 'time')}"
            line = f"{times} an image or shard could not be read and was left out"
            examples = list_names([*reasons], 2)
            log.warning(
                "%s", escape_unprintable(f"{line}: {examples or 'before the restart'}", 499)
            )

    def close(self) -> None:
        """Close all files and draw the curves; a second call does nothing."""
        if self.silent:
            return
        self.silent = True
        self._bar.close()
        self._file.close()
        for finish in (self._board.close if self._board else None, self._draw):
            try:
                if finish:
                    finish()
            except OSError as error:
                self._stop(error)

    def _draw(self) -> None:
        draw_curves(read_log(self.folder / LOG_FILE), self.folder / CURVES_FILE)

    def _stop(self, error: OSError) -> None:
        if not self._failed:
            log.warning(
                "cannot write the log in %s: %s; training continues without it",
                self.folder,
                error.strerror or error,
            )
        self._failed = True


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; a partial last line, which a killed process leaves, is ignored.

    Raises:
        ConfigError: another line is damaged; the message has its number.
    """
    lines = []
    *texts, _ = path.read_bytes().split(b"\n")  # the last part is empty, or a partial line
    for number, text in enumerate(texts, 1):
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not {"step", "kind", "time"} <= line.keys():
            raise ConfigError(
                f"line {number} of {path} is not a log line; correct it, or move the file away"
            )
        lines.append(line)
    return lines


def draw_curves(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Plot loss, learning rate and evaluation results over steps; no file if there are none.

    Args:
        lines: of a log.
        path: PNG file to write.
    """
    plots: dict[str, dict[str, tuple[list[int], list[float]]]] = {
        "loss": {},
        "learning rate": {},
        "evaluation": {},
    }  # axis -> curve -> steps, values
    for line in lines:
        for name, value in line.items():
            if name == "loss":
                axis, label = "loss", line["kind"]
            elif name == "lr":
                axis, label = "learning rate", line["kind"]
            elif line["kind"] == "eval" and name not in ("step", "kind", "time"):
                axis, label = "evaluation", name
            else:
                continue
            number = _to_float(value)
            if number is not None:
                steps, values = plots[axis].setdefault(label, ([], []))
                steps.append(line["step"])
                values.append(number)
    plots = {axis: curves for axis, curves in plots.items() if curves}
    if not plots:
        return
    figure = make_figure(7, 2.6 * len(plots))
    subplots = figure.subplots(len(plots), squeeze=False)[:, 0]
    for axes, (axis, curves) in zip(subplots, plots.items(), strict=True):
        for label, (steps, values) in curves.items():
            # without markers a curve of one point would be invisible
            axes.plot(steps, values, marker="." if len(steps) < 30 else None, label=label)
        axes.set(xlabel="step", ylabel=axis)
        axes.grid(alpha=0.3)
        if axis != "learning rate":
            axes.legend()
    save_png(figure, path, dpi=120)


class Throughput:
    """Measures speed, waiting for data, memory and MFU between two calls of `read`.

    MFU (model FLOPs utilisation) is the fraction of the GPU's peak that forward and backward
    passes use, without recomputation. It is measured on the GPUs of `GPU_PEAKS` only.

    Args:
        flops_per_image: of this rank, in a training step.
        device: of this rank.
        precision: "fp32", "bf16" or "fp16".
    """

    def __init__(self, flops_per_image: float, device: torch.device, precision: str) -> None:
        self.flops_per_image, self.device = flops_per_image, device
        self.peak: float | None = None  # FLOP/s
        if device.type == "cuda":
            self.peak = find_peak(torch.cuda.get_device_name(device), precision)
        self._reset()

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count the time of the `with` block as waiting for data, unless a GPU is busy after it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            is_gpu = self.device.type == "cuda"
            if not is_gpu or torch.cuda.current_stream(self.device).query():
                self._waited += time.perf_counter() - start

    def count(self, images: int) -> None:
        """Add a number of images that were processed."""
        self._images += images

    def read(self) -> dict[str, float]:
        """Read what was measured since the last call, after the GPU has finished its work.

        Returns:
            images_per_second; wait_share, the fraction of time spent waiting for data;
            memory_gib, the peak of a GPU's tensors since the last call, or of a CPU's process
            since its start; and mfu, if the peak of the device is known.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._start
        speed = self._images / seconds
        numbers = {
            "images_per_second": speed,
            "wait_share": self._waited / seconds,
            "memory_gib": self._read_memory() / 2**30,
        }
        if self.peak:
            numbers["mfu"] = speed * self.flops_per_image / self.peak
        self._reset()
        return numbers

    def _reset(self) -> None:
        self._start, self._waited, self._images = time.perf_counter(), 0.0, 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _read_memory(self) -> int:
        """Bytes; 0 where they are not known."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:  # Windows
            return 0
        unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def find_peak(name: str, precision: str) -> float | None:
    """Peak FLOP/s of a GPU by its name; None if unknown. Whole words count: A1000 is not A100.

    Slower editions of the same name are unknown: RTX 4090 D, RTX 4090 Laptop GPU.
    """
    for words, (half, single) in GPU_PEAKS.items():
        if re.search(rf"\b{words}\b(?! (?:D|Laptop)\b)", name):
            return single if precision == "fp32" else half
    return None


def _encode(line: Mapping[str, Any]) -> str:
    special = {
        name: str(value)
        for name, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return json.dumps({**line, **special}, allow_nan=False) + "\n"


def _to_float(value: Any) -> float | None:
    """A number that can be plotted, or None."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
