"""Tasks of a study: each trains networks on one CPU, is done once, and stores its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from swag_models.hub.progress import make_bar
from swag_models.recipe.config import Run
from swag_models.recipe.worker_pool import open_pool


class Task(Protocol):
    """A part of a study that can run beside others."""

    @property
    def name(self) -> str:
        """A unique file name."""


T = TypeVar("T", bound=Task)


def run_tasks(
    folder: Path, tasks: Sequence[T], do: Callable[[T], str], processes: int, progress: bool
) -> None:
    """Do the tasks that have no results, in parallel.

    Args:
        folder: of the study.
        tasks: all tasks, the slowest first, so that no CPU is idle at the end.
        do: does a task, writes its record, and returns its name. It is sent to other processes.
        processes: number of parallel tasks.
        progress: whether to show a progress bar.
    """
    waiting = [task for task in tasks if not find_record(folder, task).exists()]
    with make_bar(
        progress, total=len(tasks), initial=len(tasks) - len(waiting), unit="task"
    ) as bar:
        if waiting:
            with open_pool(min(processes, len(waiting)), _use_one_cpu) as pool:
                futures = [pool.submit(do, task) for task in waiting]
                for future in as_completed(futures):
                    bar.set_postfix_str(future.result())
                    bar.update()


def find_record(folder: Path, task: Task) -> Path:
    """Return the path of the file of a task's results; its folder is created.

    Args:
        folder: of the study.
        task: the task.
    """
    path = folder / "results" / f"{task.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def scale_run(run: Run, length: float, seed: int) -> Run:
    """Return the run with this seed, and another length.

    Args:
        run: is not changed.
        length: factor for the number of steps or epochs.
        seed: random seed.
    """
    if run.steps:
        return replace(run, seed=seed, steps=max(1, round(run.steps * length)))
    assert run.epochs
    return replace(run, seed=seed, epochs=run.epochs * length)


def _use_one_cpu() -> None:
    torch.set_num_threads(1)
