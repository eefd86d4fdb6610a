"""Runs that are killed, stopped or out of space resume and end in the same weights."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from fetch_support import remount, small_disk, wait_until
from runs import (
    REGNET,
    STATEFUL,
    killed_at_exit,
    list_steps,
    make_arguments,
    make_digits,
    read_errors,
    read_lines,
    read_weights,
    run,
    start,
)
from shards_support import make_shards

LONG = "steps=40"
NEWER = (
    ("optimizer.kind=muon",),
    (*REGNET, "optimizer.kind=muon", "optimizer.lr=0.002"),
    ("schedule=wsd", "patch_drop_rate=0.5", "augment.sizes=16,32,48", "engine.workers=2"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 60)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 48, 4)


@pytest.mark.parametrize(
    ("kind", "settings", "kills"),
    [
        ("images", (), 2),
        pytest.param("images", (), 20, marks=pytest.mark.slow),
        pytest.param("images", REGNET, 5, marks=pytest.mark.slow),
        pytest.param(
            "images", ("engine.precision=bf16", "engine.micro_batch=4"), 5, marks=pytest.mark.slow
        ),
        pytest.param("packed", ("engine.workers=1", "engine.buffer=20"), 5, marks=pytest.mark.slow),
        pytest.param("packed", ("objective.weighting=idf",), 2, marks=pytest.mark.slow),
        pytest.param("images", ("objective.kind=asymmetric",), 2, marks=pytest.mark.slow),
        *(pytest.param("images", each, 3, marks=pytest.mark.slow) for each in NEWER),
        pytest.param(
            "packed",
            ("augment.sizes=16,32,48", "engine.workers=2", "engine.buffer=20"),
            4,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_run_ends_in_the_same_weights(
    kind: str, settings: tuple[str, ...], kills: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data, settings = request.getfixturevalue(kind), (LONG, *STATEFUL, *settings)
    run(make_arguments(data, tmp_path / "whole", *settings))
    output, draw, stood = tmp_path / "run", random.Random(0), []
    arguments = make_arguments(data, output, *settings)
    for _ in range(kills):
        before = list_steps(output)[-1:]
        (process,) = start(arguments)
        with killed_at_exit([process]):
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
    ranks: int, number: int, images: Path, tmp_path: Path
) -> None:
    """All processes receive it, workers included."""
    settings = ("steps=20", *STATEFUL, "engine.workers=1")
    arguments = make_arguments(images, tmp_path / "run", *settings)
    processes = start(arguments, ranks)
    with killed_at_exit(processes):
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
    run(make_arguments(images, tmp_path / "whole", *settings), ranks)
    assert read_weights(tmp_path / "run") == read_weights(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_stops_a_run_before_an_evaluation(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = make_arguments(images, output, LONG, "eval_every=1", options=["--val", images])
    (process,) = start(arguments)
    with killed_at_exit([process]):
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


def test_a_killed_worker_ends_a_run_with_one_line(images: Path, tmp_path: Path) -> None:
    arguments = make_arguments(images, tmp_path / "run", LONG, "engine.workers=1")
    (process,) = start(arguments)
    with killed_at_exit([process]):
        wait_until(lambda: bool(list_steps(tmp_path / "run")), 60)
        for pid in find_children(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == 1
    (line,) = read_errors(arguments).splitlines()
    assert line.startswith(
        "swag-models: error: a worker process that reads images was killed, perhaps because memory"
    )


def test_ctrl_c_ends_a_run_with_one_line(images: Path, tmp_path: Path) -> None:
    arguments = make_arguments(images, tmp_path / "run", LONG, *STATEFUL, "engine.workers=1")
    (process,) = start(arguments)
    with killed_at_exit([process]):
        wait_until(lambda: bool(list_steps(tmp_path / "run")), 60)
        for pid in (*find_children(process.pid), process.pid):
            os.kill(pid, signal.SIGINT)
        process.join(30)
        assert process.exitcode == 130
    assert read_errors(arguments).splitlines() == ["swag-models: error: interrupted"]


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_resumes_with_space(
    images: Path, tmp_path: Path
) -> None:
    settings = ("steps=24", "log_every=3")
    run(make_arguments(images, tmp_path / "whole", *settings))
    size = (
        sum(file.stat().st_size for file in (tmp_path / "whole").rglob("*") if file.is_file())
        / 2**20
    )
    with small_disk(tmp_path / "disk", 0.6 * size) as disk:
        output = disk / "run"
        arguments = make_arguments(images, output, *settings)
        (process,) = start(arguments)
        with killed_at_exit([process]):
            process.join(60)
            assert process.exitcode == 1
        lines = read_errors(arguments).splitlines()
        assert "Traceback" not in read_errors(arguments)
        assert "is the disk full?" in lines[-1]
        assert lines[-1].startswith(
            f"swag-models: error: {output}/checkpoints/step-00000024 cannot be written: No space"
        )
        left = list_steps(output)
        assert left
        (disk / "run.err").unlink()
        (process,) = start(arguments)
        with killed_at_exit([process]):
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
