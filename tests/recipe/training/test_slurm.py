"""The SLURM script starts ranks that connect, and requeues a preempted job.

`srun` and `scontrol` are stand-ins that run two tasks on this machine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[3] / "examples" / "pretrain.slurm"
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" >> "$CALLS"; else echo localhost; fi
"""
SRUN = """#!/usr/bin/env bash
shift
for task in 0 1; do
  (
    export SLURM_PROCID=$task SLURM_LOCALID=$task
    echo $BASHPID > "$CALLS.$task"
    exec "$@"
  ) &
  children+=($!)
done
code=0
for child in "${children[@]}"; do wait "$child" || code=$?; done
exit $code
"""


@pytest.mark.slow
def test_a_preempted_job_is_requeued_with_a_checkpoint(tmp_path: Path) -> None:
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for number in range(16):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), number).convert("RGB").save(folder / f"{number}.png")
    command = [
        "bash",
        str(SCRIPT),
        "vit_nano_finetune",
        "images",
        "run",
        "--license",
        "mit",
        "--quiet",
    ]
    command += ["--set=steps=100000", "--set=init=none", "--set=batch_size=4", "--set=log_every=1"]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(
            [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "CALLS": str(tmp_path / "calls"),
        "OMP_NUM_THREADS": "1",
        "SLURM_JOB_ID": str(random.randrange(20_000)),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }

    job = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "log.jsonl"
    while job.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.05)
    for task in "01":
        os.kill(int((tmp_path / f"calls.{task}").read_text()), signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 75, errors
    assert (tmp_path / "calls").read_text() == f"{environment['SLURM_JOB_ID']}\n"
    assert "rerun the same command to resume" in errors
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) >= 3
