"""What a training run tells: log.jsonl, TensorBoard's files, a bar on the terminal, and curves.png at the end.

log.jsonl has one JSON object per line: step, kind ("train", "eval", or "skip" for a step not taken), time (seconds that the
run has taken, summed over its restarts), and numbers by name. Numbers that JSON has no word for are texts: "nan", "inf" and
"-inf".
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from swag_models.atomic import atomic_write
from swag_models.errors import ConfigError
from swag_models.recipe.plotting import make_figure, save_png
from swag_models.runtime import import_extra

if TYPE_CHECKING:
    import torch

LOG, BOARD, CURVES = "log.jsonl", "tensorboard", "curves.png"
REDRAW = 0.5  # seconds between two looks of the bar
log = logging.getLogger("swag_models")


class MetricLogger:
    """The journal of a run of `steps` steps that goes on after `first_step`; 0 is a new one.

    What an earlier run told of later steps is forgotten, and all of it by a new one. One that is silent does nothing: only rank
    0 of a run tells. A disk that takes no more ends the telling, with one warning, but not the run. ConfigError if a line of
    the log cannot be read.
    """

    def __init__(
        self, folder: Path, first_step: int, steps: int, *, progress: bool, silent: bool = False
    ) -> None:
        self.folder, self.silent = folder, silent
        if silent:
            return
        import_extra("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG
        kept = (
            [line for line in read_log(path) if first_step and line["step"] <= first_step]
            if path.exists()
            else []
        )
        with atomic_write(path) as temporary:
            temporary.write_text("".join(map(_encode, kept)), encoding="utf-8")
        if not first_step:
            shutil.rmtree(folder / BOARD, ignore_errors=True)
        self._before, self._start = kept[-1]["time"] if kept else 0.0, time.monotonic()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (open as long as the run)
        self._board: Any = SummaryWriter(str(folder / BOARD), purge_step=first_step + 1)
        self._full = False
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            mininterval=REDRAW,
            dynamic_ncols=True,
            disable=not (progress and sys.stderr.isatty()),
        )

    def record(
        self,
        step: int,
        kind: Literal["train", "eval", "skip"] = "train",
        **numbers: float | int | str,
    ) -> None:
        """One line of the log; numbers are TensorBoard's scalars too, as kind/name."""
        if self.silent or self._full:
            return
        seconds = round(self._before + time.monotonic() - self._start, 3)
        line = _encode({"step": step, "kind": kind, "time": seconds, **numbers}).encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                self._file.truncate(end)
                raise OSError("the disk is full")
            for name, value in numbers.items():
                if not isinstance(value, str):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()
        except OSError as error:
            self._stop(error)

    def advance(self, *, loss: float | torch.Tensor, lr: float) -> None:
        """One step more on the bar. A tensor is only read when the bar is drawn, so a GPU is not kept waiting."""
        if not self.silent and self._bar.update():
            self._bar.set_postfix(loss=f"{float(loss):.4g}", lr=f"{lr:.3g}")

    def close(self) -> None:
        """End all, and draw the curves; a second call does nothing."""
        if self.silent:
            return
        self.silent = True
        self._bar.close()
        self._file.close()
        for last in (
            self._board.close,
            lambda: draw_curves(read_log(self.folder / LOG), self.folder / CURVES),
        ):
            try:
                last()
            except OSError as error:
                self._stop(error)

    def _stop(self, error: OSError) -> None:
        if not self._full:
            log.warning(
                "%s takes no more of the journal: %s; training goes on",
                self.folder,
                error.strerror or error,
            )
        self._full = True


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, but a last one that was cut off; ConfigError names another that is none."""
    lines, parts = [], path.read_bytes().split(b"\n")
    for number, part in enumerate(
        parts[:-1], 1
    ):  # after the last end of line there is nothing, or a torn line
        try:
            line = json.loads(part)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not {"step", "kind", "time"} <= line.keys():
            raise ConfigError(
                f"{path}, line {number}, is not of a log; move the file away, or correct it"
            )
        lines.append(line)
    return lines


def draw_curves(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Loss, learning rate, and what evaluations found, over steps; no file if there is nothing to draw."""
    curves: dict[str, dict[str, tuple[list[int], list[float]]]] = {
        "loss": {},
        "learning rate": {},
        "evaluation": {},
    }
    for line in lines:
        for name, value in line.items():
            if name == "loss":
                place, label = "loss", line["kind"]
            elif name == "lr":
                place, label = "learning rate", line["kind"]
            elif line["kind"] == "eval" and name not in ("step", "kind", "time"):
                place, label = "evaluation", name
            else:
                continue
            number = _to_float(value)
            if number is not None:
                steps, values = curves[place].setdefault(label, ([], []))
                steps.append(line["step"])
                values.append(number)
    drawn = {place: each for place, each in curves.items() if each}
    if not drawn:
        return
    figure = make_figure(7, 2.6 * len(drawn))
    for axes, (place, each) in zip(
        figure.subplots(len(drawn), squeeze=False)[:, 0], drawn.items(), strict=True
    ):
        for label, (steps, values) in each.items():
            axes.plot(steps, values, marker="." if len(steps) < 30 else None, label=label)
        axes.set(xlabel="step", ylabel=place)
        axes.grid(alpha=0.3)
        if place != "learning rate":
            axes.legend()
    save_png(figure, path, dpi=120)


def _encode(line: Mapping[str, Any]) -> str:
    odd = {
        name: str(value)
        for name, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return json.dumps({**line, **odd}, allow_nan=False) + "\n"


def _to_float(value: Any) -> float | None:
    """None for a text that is no number, and for what has no place on an axis."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
