"""Log, TensorBoard files, progress bar and curves, over kills and restarts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fetch_support import small_disk
from PIL import Image

from swag_models.errors import ConfigError
from swag_models.recipe.training.logging import MetricLogger, draw_curves, read_log

KILLED = """
import os, signal, sys
from pathlib import Path
from swag_models.recipe.training.logging import MetricLogger
logger = MetricLogger(Path(sys.argv[1]), 0, 100, progress=False)
for step in range(1, 6):
    logger.record(step, loss=float(step))
os.kill(os.getpid(), signal.SIGKILL)
"""


def open_logger(folder: Path, first_step: int = 0) -> MetricLogger:
    return MetricLogger(folder, first_step, 100, progress=False)


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars as TensorBoard reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return {
        name: [(each.step, each.value) for each in board.Scalars(name)]
        for name in board.Tags()["scalars"]
    }


def test_a_line_is_in_the_log_once_it_is_recorded(tmp_path: Path) -> None:
    logger = open_logger(tmp_path / "new" / "run")
    logger.record(10, loss=2.5, lr=0.1, skipped=3)
    logger.record(10, "eval", top1=50.0, of="average")
    first, second = (
        json.loads(line)
        for line in (tmp_path / "new" / "run" / "log.jsonl").read_text().splitlines()
    )
    assert 0 <= first.pop("time") <= second.pop("time") < 60
    assert first == {"step": 10, "kind": "train", "loss": 2.5, "lr": 0.1, "skipped": 3}
    assert second == {"step": 10, "kind": "eval", "top1": 50.0, "of": "average"}
    scalars = read_scalars(tmp_path / "new" / "run")
    assert scalars.pop("train/lr") == [(10, pytest.approx(0.1))]
    assert scalars == {
        "train/loss": [(10, 2.5)],
        "train/skipped": [(10, 3)],
        "eval/top1": [(10, 50)],
    }
    logger.close()
    logger.close()


def test_nan_and_infinity_are_valid_json(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    logger.record(1, loss=float("nan"), scale=float("-inf"))
    logger.close()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["scale"]) == ("nan", "-inf")
    assert not (tmp_path / "curves.png").exists()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was killed after five steps."""
    folder = tmp_path_factory.mktemp("killed")
    assert (
        subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False).returncode
        == -signal.SIGKILL
    )
    time.sleep(1.1)  # TensorBoard's files are in the order of the seconds in which they were begun
    return folder


@pytest.mark.parametrize("torn", ["", '{"step": 4, "ki', '{"step": 4}', "\0\0"])
def test_a_resumed_run_replaces_lines_after_its_checkpoint(
    killed: Path, tmp_path: Path, torn: str
) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join(lines) + torn)
    logger = open_logger(tmp_path, 3)
    assert (tmp_path / "log.jsonl").read_text() == "".join(lines[:3])
    for step in range(4, 7):
        logger.record(step, loss=step + 0.5)
    logger.close()
    log = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], line["loss"]) for line in log] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4.5),
        (5, 5.5),
        (6, 6.5),
    ]
    assert read_scalars(tmp_path)["train/loss"] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4.5),
        (5, 5.5),
        (6, 6.5),
    ]


def test_time_is_summed_over_restarts(tmp_path: Path) -> None:
    line = {"step": 7, "kind": "train", "time": 5000.0, "loss": 1.0}
    (tmp_path / "log.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps({**line, "step": 8, "time": 9000.0}) + "\n"
    )
    logger = open_logger(tmp_path, 7)
    logger.record(8, loss=1.0)
    logger.close()
    assert 5000 <= read_log(tmp_path / "log.jsonl")[-1]["time"] < 5060


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        logger = open_logger(tmp_path)
        logger.record(0, "eval", loss=loss)
        logger.record(1, loss=loss)
        logger.close()
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path / "log.jsonl")] == [
        (0, 2),
        (1, 2),
    ]
    assert read_scalars(tmp_path) == {"eval/loss": [(0, 2)], "train/loss": [(1, 2)]}


@pytest.mark.parametrize("bad", ["{", '{"step": 1}', "3", "\0"])
def test_a_damaged_line_is_reported(tmp_path: Path, bad: str) -> None:
    good = json.dumps({"step": 1, "kind": "train", "time": 1.0})
    (tmp_path / "log.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
    with pytest.raises(ConfigError, match=r"^line 2 of .*log\.jsonl is not a log line; "):
        open_logger(tmp_path, 5)
    assert (tmp_path / "log.jsonl").read_text() == f"{good}\n{bad}\n{good}\n"


def test_a_silent_logger_does_nothing(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path / "run", 0, 10, progress=True, silent=True)
    logger.record(1, loss=1.0)
    logger.advance(loss=1.0, lr=0.1)
    logger.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's thread tells too
def test_a_full_disk_stops_the_log_but_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        logger = open_logger(disk / "run")
        logger.record(1, loss=1.0)
        (disk / "other").write_bytes(b"x" * 990_000)
        with caplog.at_level(logging.WARNING, "swag_models"):
            for step in range(2, 3000):
                logger.record(step, loss=1.0, note="x" * 100)
                logger.advance(loss=1.0, lr=0.1)
        logger.close()
        messages = [
            record.getMessage() for record in caplog.records if record.name == "swag_models"
        ]
        expected = (
            f"cannot write the log in {disk / 'run'}: No space left on device; "
            "training continues without it"
        )
        assert messages == [expected]
        content = (disk / "run" / "log.jsonl").read_bytes()
        assert content.endswith(b"\n"), "no line is torn"
        assert len(read_log(disk / "run" / "log.jsonl")) > 1
        assert not list((disk / "run").glob(".*")), "no half a drawing"


def show_bar(folder: Path, progress: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the bar writes to stderr."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        termios.tcsetwinsize(writer, (24, 120))
    with open(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        logger = MetricLogger(folder, 40, 100, progress=progress)
        for _ in range(10):
            time.sleep(0.1)
            logger.advance(loss=torch.tensor(1.25), lr=0.5)
        logger.close()
    monkeypatch.undo()
    os.set_blocking(reader, False)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal that is gone has nothing more
        while piece := os.read(reader, 65536):  # a terminal returns a few lines at a time
            shown += piece
    os.close(reader)
    return shown.decode()


def test_the_bar_is_shown_on_a_terminal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = show_bar(tmp_path, True, True, monkeypatch)
    assert " 40/100 " in shown
    assert " 50/100 " in shown
    assert "loss=1.25, lr=0.5" in shown
    assert "step/s" in shown
    assert show_bar(tmp_path, True, False, monkeypatch) == ""
    assert show_bar(tmp_path, False, True, monkeypatch) == ""


def test_without_a_bar_no_tensor_is_read(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path, 0, 10, progress=True)
    logger.advance(loss=torch.empty((), device="meta"), lr=0.1)  # it would raise if it were read
    logger.close()


def find_colours(path: Path) -> set[tuple[int, ...]]:
    """Colours of curves: neither grey nor white."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(
        pixels[np.ptp(pixels.astype(int), axis=1) > 60], axis=0, return_counts=True
    )
    return {tuple(colour) for colour in colours[counts > 100]}


def make_lines(**numbers: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "kind": kind, "time": 1.0, **numbers}
        for step in range(50)
        for kind in ("train", "eval")
    ]


def test_closing_draws_the_recorded_curves(tmp_path: Path) -> None:
    logger = open_logger(tmp_path)
    for step in range(1, 51):
        logger.record(step, loss=5 / step, lr=step / 100, images_per_second=100.0)
        if step % 10 == 0:
            logger.record(
                step, "eval", loss=6 / step, top1=float(step), top5=2.0 * step, data="held-out"
            )
    logger.close()
    assert len(find_colours(tmp_path / "curves.png")) >= 2, (
        "the lines of training and of two metrics"
    )
    with Image.open(tmp_path / "curves.png") as three:
        tall = three.height
    draw_curves(
        [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "train"],
        tmp_path / "train.png",
    )
    with Image.open(tmp_path / "train.png") as two:
        assert tall * 2 == pytest.approx(two.height * 3, abs=3), (
            "without evaluations there is no place for them"
        )


def test_without_measurements_no_curves_are_drawn(tmp_path: Path) -> None:
    open_logger(tmp_path).close()
    assert not (tmp_path / "curves.png").exists()
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_curves_leave_out_nan_and_infinity(tmp_path: Path) -> None:
    draw_curves(make_lines(loss="nan"), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    draw_curves(
        [*make_lines(loss=1.0), {"step": 50, "kind": "train", "time": 1.0, "loss": "inf"}],
        tmp_path / "some.png",
    )
    assert find_colours(tmp_path / "some.png")


def test_a_folder_that_is_deleted_stops_the_log_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also by TensorBoard, whose own writer has a thread that prints a traceback."""
    logger = open_logger(tmp_path / "run")
    for step in range(3):
        logger.record(step, loss=1.0)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    logger.close()
    (message,) = caplog.messages
    assert message.startswith(f"cannot write the log in {tmp_path / 'run'}: No such file")
    assert capfd.readouterr().err == ""
