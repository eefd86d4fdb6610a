"""Several ranks learn what one learns, and resume from each other's checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fetch_support import wait_until
from runs import (
    REGNET,
    STATEFUL,
    compare,
    find_port,
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

LANES = ("engine.lanes=2", "engine.buffer=20")
FSDP = "engine.parallel=fsdp"
NEWER = (
    *("optimizer.kind=muon", "schedule=wsd", "patch_drop_rate=0.5", "augment.sizes=16,32,48"),
    "engine.micro_batch=2",
)
MOVES = [("fsdp", "ddp"), ("ddp", "fsdp")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("digits") / "train", 60)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two ranks with batches of 6 the first has three of them, the second two."""
    return make_digits(tmp_path_factory.mktemp("digits") / "val", 25, first=60)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 48, 4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, images: Path, held_out: Path) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    run(
        make_arguments(images, output, "ema.decay=0.9", "eval_every=6", options=["--val", held_out])
    )
    return output


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_does(
    parallel: str, alone: Path, images: Path, held_out: Path, tmp_path: Path
) -> None:
    output, settings = (
        tmp_path / "run",
        ("ema.decay=0.9", "eval_every=6", f"engine.parallel={parallel}"),
    )
    run(make_arguments(images, output, *settings, options=["--val", held_out]), ranks=2)
    compare(output, alone)
    assert [(line["step"], line["top1"]) for line in read_lines(output, "eval")] == [
        (line["step"], line["top1"]) for line in read_lines(alone, "eval")
    ]
    assert list_steps(output) == list_steps(alone)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("ddp", "ddp"), *MOVES])
def test_a_run_moves_between_numbers_of_ranks(
    kinds: tuple[str, str], packed: Path, tmp_path: Path
) -> None:
    """From two ranks to one and back, killed each time."""
    run(make_arguments(packed, tmp_path / "whole", *LANES))
    output, (first, last) = tmp_path / "run", kinds
    for ranks, kind, steps in ((2, first, 4), (1, "ddp", 8)):
        processes = start(make_arguments(packed, output, *LANES, f"engine.parallel={kind}"), ranks)
        with killed_at_exit(processes):
            wait_until(lambda steps=steps: steps in list_steps(output), 60)  # type: ignore[misc]
            for process in processes:
                process.kill()
    run(make_arguments(packed, output, *LANES, f"engine.parallel={last}"), 2)
    compare(output, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [REGNET, (FSDP, *REGNET), NEWER, (FSDP, *NEWER)])
def test_two_ranks_that_were_killed_end_in_the_same_weights(
    settings: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    """Batch statistics too, of which each rank has its own on a CPU."""
    settings = (*settings, *STATEFUL)
    run(make_arguments(images, tmp_path / "whole", *settings), 2)
    arguments = make_arguments(images, tmp_path / "run", *settings)
    processes = start(arguments, 2)
    with killed_at_exit(processes):
        wait_until(lambda: bool(list_steps(tmp_path / "run")), 60)
        processes[1].kill()
        processes[0].join(30)
        assert processes[0].exitcode == 1
    (line,) = read_errors(arguments).splitlines()[-1:]
    assert (
        line
        == "swag-models: error: rank 0 lost contact with another rank; see that rank's log, then "
        "rerun to resume"
    )
    assert "Traceback" not in read_errors(arguments)
    run(arguments, 2)
    assert read_weights(tmp_path / "run") == read_weights(tmp_path / "whole")


@pytest.mark.slow
def test_torchrun_forwards_a_signal_and_the_run_resumes(images: Path, tmp_path: Path) -> None:
    """torchrun signals whole process groups, so workers receive the signal too."""
    output, settings = tmp_path / "run", ("engine.workers=1", "steps=60")
    arguments = make_arguments(images, output, *settings)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(find_port()),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    launched = subprocess.Popen(
        [*launch, "-m", "swag_models", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: bool(list_steps(output)), 60)
        launched.send_signal(signal.SIGTERM)
        _, errors = launched.communicate(timeout=60)
    finally:
        launched.kill()
    assert (
        f"{output}: interrupted by a signal after step {max(list_steps(output))} of 60;" in errors
    )
    assert "[rank" not in errors, errors
    run(arguments, 2)
    run(make_arguments(images, tmp_path / "whole", *settings), 2)
    assert read_weights(output) == read_weights(tmp_path / "whole")
