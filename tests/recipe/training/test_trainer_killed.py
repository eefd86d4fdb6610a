"""Runs that are killed, stopped, or out of space go on as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from fetch_support import remount, small_disk, wait_until
from runs import (
    HARD,
    REGNET,
    ended,
    list_steps,
    make_digits,
    read_errors,
    read_lines,
    read_weights,
    run,
    spell,
    start,
)
from shards_support import make_shards

LONG = "steps=40"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 60)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 48, 4)


@pytest.mark.parametrize(
    ("kind", "settings", "kills"),
    [
        ("pictures", (), 2),
        pytest.param("pictures", (), 20, marks=pytest.mark.slow),
        pytest.param("pictures", REGNET, 5, marks=pytest.mark.slow),
        pytest.param(
            "pictures", ("engine.precision=bf16", "engine.micro_batch=4"), 5, marks=pytest.mark.slow
        ),
        pytest.param("packed", ("engine.workers=1", "engine.buffer=20"), 5, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_in_the_same_weights(
    kind: str, settings: tuple[str, ...], kills: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data, settings = request.getfixturevalue(kind), (LONG, *HARD, *settings)
    run(spell(data, tmp_path / "whole", *settings))
    output, draw, stood = tmp_path / "run", random.Random(0), []
    arguments = spell(data, output, *settings)
    for _ in range(kills):
        before = list_steps(output)[-1:]
        (process,) = start(arguments)
        with ended([process]):
            if draw.random() < 0.7:  # else at any moment, before the first step too
                wait_until(lambda before=before: list_steps(output)[-1:] != before)
            process.join(draw.uniform(0, 0.4))
            process.kill()
        stood += list_steps(output)[-1:]
    assert stood
    assert stood == sorted(stood)
    run(arguments)
    assert read_weights(output) == read_weights(tmp_path / "whole")
    assert [(line["step"], line["loss"]) for line in read_lines(output)] == [
        (line["step"], line["loss"]) for line in read_lines(tmp_path / "whole")
    ]


@pytest.mark.slow  # test_slurm has two ranks that are told to stop
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_a_run_after_a_checkpoint(
    ranks: int, number: int, pictures: Path, tmp_path: Path
) -> None:
    """All processes hear it, those that read pictures too."""
    settings = ("steps=20", *HARD, "engine.workers=1")
    arguments = spell(pictures, tmp_path / "run", *settings)
    processes = start(arguments, ranks)
    with ended(processes):
        wait_until(lambda: bool(list_steps(tmp_path / "run")), 60)
        for process in processes:
            for pid in (*find_children(process.pid), process.pid):
                os.kill(pid, number)
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [75] * ranks, read_errors(arguments)
    step = list_steps(tmp_path / "run")[-1]
    message = (
        f"swag-models: {tmp_path}/run: interrupted by a signal after step {step} of 20; "
        "rerun the same command to resume"
    )
    assert read_errors(arguments).splitlines() == ranks * [message]
    run(arguments, ranks)
    run(spell(pictures, tmp_path / "whole", *settings), ranks)
    assert read_weights(tmp_path / "run") == read_weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_is_heeded_before_the_evaluation_that_is_due(
    pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    arguments = spell(pictures, output, LONG, "eval_every=1", options=["--val", pictures])
    (process,) = start(arguments)
    with ended([process]):
        wait_until(lambda: bool(list_steps(output)), 60)
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == 75, read_errors(arguments)
    step = list_steps(output)[-1]
    assert read_lines(output)[-1]["step"] == step
    assert [line["step"] for line in read_lines(output, "eval")] == list(range(1, step))
    run(arguments)
    assert [line["step"] for line in read_lines(output, "eval")] == [
        each for each in range(1, 41) if each != step
    ]


def test_a_killed_reader_ends_a_run_in_a_line(pictures: Path, tmp_path: Path) -> None:
    arguments = spell(pictures, tmp_path / "run", LONG, "engine.workers=1")
    (process,) = start(arguments)
    with ended([process]):
        wait_until(lambda: bool(list_steps(tmp_path / "run")), 60)
        for pid in find_children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == 1
    (line,) = read_errors(arguments).splitlines()
    assert line.startswith(
        "swag-models: error: a worker process that reads images was killed, perhaps because memory or /dev/shm"
    )


def test_ctrl_c_ends_a_run_in_a_line(pictures: Path, tmp_path: Path) -> None:
    arguments = spell(pictures, tmp_path / "run", LONG, *HARD, "engine.workers=1")
    (process,) = start(arguments)
    with ended([process]):
        wait_until(lambda: bool(list_steps(tmp_path / "run")), 60)
        for pid in (*find_children(process.pid), process.pid):
            os.kill(pid, signal.SIGINT)
        process.join(30)
        assert process.exitcode == 130
    assert read_errors(arguments).splitlines() == ["swag-models: error: interrupted"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_and_with_space_the_run_goes_on(
    pictures: Path, tmp_path: Path
) -> None:
    settings = ("steps=24", "log_every=3")
    run(spell(pictures, tmp_path / "whole", *settings))
    size = (
        sum(file.stat().st_size for file in (tmp_path / "whole").rglob("*") if file.is_file())
        / 2**20
    )
    with small_disk(tmp_path / "disk", 0.6 * size) as disk:
        output = disk / "run"
        arguments = spell(pictures, output, *settings)
        (process,) = start(arguments)
        with ended([process]):
            process.join(60)
            assert process.exitcode == 1
        lines = read_errors(arguments).splitlines()
        assert "Traceback" not in read_errors(arguments)
        assert "is the disk full?" in lines[-1]
        assert lines[-1].startswith(
            f"swag-models: error: {output}/checkpoints/step-00000024 cannot be written: No space left"
        )
        left = list_steps(output)
        assert left
        (disk / "run.err").unlink()
        (process,) = start(arguments)
        with ended([process]):
            process.join(60)
            assert process.exitcode == 1, "still no space"
        assert "Traceback" not in read_errors(arguments)
        assert list_steps(output)[-1] >= left[-1]
        remount(disk, "size=100m")
        run(arguments)
        assert read_weights(output) == read_weights(tmp_path / "whole")


def find_children(pid: int | None) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("needs /proc")
    return list(map(int, path.read_text().split()))
