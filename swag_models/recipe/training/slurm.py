"""A SLURM script that trains a run: one torchrun per node, requeued until the run is finished."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from swag_models.errors import ConfigError, check_minimum
from swag_models.formatting import count_noun, describe, escape_unprintable
from swag_models.recipe.training.estimate import Plan

MAIN_CORES = 2  # per rank, for the training process and for its thread that collects batches
MAX_CORES = 14  # per rank, as in a DGX H100: a job that asks for more may never start
SIGNAL_SECONDS = 300  # before the time limit: the rest of a step, and a checkpoint
TIME_MARGIN = 1.2  # of the estimated time
MAX_HOURS = 24  # common limit of a queue; a longer run is requeued

# torchrun would pass SIGTERM on and kill its processes 30 seconds later, and does not pass SIGUSR1
# on at all. So it ignores both, and the shell above it signals the training processes, which write
# a checkpoint. torchrun ends with 1 whatever they end with, so the shell says by 75 that it was so.
NODE_SCRIPT = """\
stopped=0 torchrun=
stop() { stopped=1; [ -z "$torchrun" ] || pkill -USR1 -P "$torchrun"; }
trap stop USR1 TERM
(trap "" USR1 TERM; exec torchrun "$@") &
torchrun=$!
wait "$torchrun"; code=$?
while kill -0 "$torchrun" 2>/dev/null; do wait "$torchrun"; code=$?; done
if [ "$stopped" -eq 1 ] && [ "$code" -ne 0 ]; then code=75; fi
exit "$code"
"""
TEMPLATE = """\
#!/usr/bin/env bash
# Trains {preset}: {summary}.
# Written by `swag-models recipe plan`. Submit it with your Python environment activated, which
# SLURM passes on; options of your cluster precede the name of this file:
#
#   sbatch --partition=NAME --account=NAME train.slurm
#
# All nodes must share the disk of the run's folder. SLURM sends SIGUSR1 {seconds} seconds before
# the time limit, and SIGTERM on preemption: the run writes a checkpoint, and the job is requeued
# and resumes. After a crash, submit it again: it resumes from the last checkpoint.
#SBATCH --job-name={job}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus_per_node}
#SBATCH --cpus-per-task={cores}
#SBATCH --time={time}
#SBATCH --signal=USR1@{seconds}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
trap : USR1 TERM  # meant for the processes below; this shell stays to requeue the job

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# {cores_comment}
# shellcheck disable=SC2016  # the shell of each node expands the variables
srun --ntasks-per-node=1 --cpus-per-task={cores} --kill-on-bad-exit=0 bash -c {script} node \\
  --nnodes={nodes} --nproc-per-node={gpus_per_node} --rdzv-backend=c10d \\
  --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head_node:$((20000 + SLURM_JOB_ID % 20000))" \\
  -m swag_models recipe train {preset} \\
  {arguments}
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


@dataclass(frozen=True)
class SlurmJob:
    """What a script trains.

    Attributes:
        preset: name of the preset.
        data: as for `recipe train --data`.
        output: folder of the run.
        settings: of `--set`.
        options: other options of `recipe train`, ready to be quoted.
        gpus_per_node: number of GPUs of a node; by default all, at most 8.
        workers: `engine.workers` of the run.
        summary: estimate of the run in a few words.
    """

    preset: str
    data: str
    output: str
    settings: Sequence[str]
    options: Sequence[str]
    gpus_per_node: int | None
    workers: int
    summary: str


def write_script(plan: Plan, job: SlurmJob) -> str:
    """Write the script.

    Args:
        plan: the estimate of the run, with decode rates.
        job: what to train.

    Raises:
        ConfigError: the GPUs do not fill whole nodes, or an option has unprintable characters.
    """
    per_node = min(plan.gpus, 8) if job.gpus_per_node is None else job.gpus_per_node
    check_minimum(1, gpus_per_node=per_node)
    if plan.gpus % per_node:
        raise ConfigError(
            f"gpus is {plan.gpus}, which does not fill nodes of {count_noun(per_node, 'GPU')}; "
            "give a multiple, or another gpus_per_node="
        )
    name, needed = max(plan.cores_per_rank.items(), key=lambda item: item[1])
    settings = list(job.settings)
    workers = job.workers
    if not any(setting.partition("=")[0].strip() == "engine.workers" for setting in settings):
        workers = max(workers, min(needed, MAX_CORES - MAIN_CORES))
        settings.append(f"engine.workers={workers}")
    comment = (
        f"{count_noun(workers, 'process')} per GPU to read images; "
        f"{needed} would keep it busy, at the rate measured with {escape_unprintable(name)}"
    )
    if workers < needed:
        comment += (
            ": training will wait for data, unless a GPU is slower than assumed (--throughput)"
        )
    options = ["--data", job.data, "-o", job.output, *job.options, "--quiet"]
    options += [f"--set={setting}" for setting in settings]
    for option in options:
        if not option.isprintable():
            raise ConfigError(f"{describe(option)} cannot be written into a script; rename it")
    hours = min(MAX_HOURS, max(1, math.ceil(plan.days * 24 * TIME_MARGIN)))
    return TEMPLATE.format(
        preset=job.preset,
        summary=job.summary,
        seconds=SIGNAL_SECONDS,
        job=job.preset,
        nodes=plan.gpus // per_node,
        gpus_per_node=per_node,
        cores=per_node * (workers + MAIN_CORES),
        time=f"{hours}:00:00",
        cores_comment=comment,
        script=shlex.quote(NODE_SCRIPT),
        arguments=shlex.join(options),
    )
