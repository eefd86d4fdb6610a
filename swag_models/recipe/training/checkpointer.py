"""Checkpointer of a training run, written while it goes on, whole or not at all, by all ranks together.

A folder of checkpoints holds
  step-00001000/      a complete one: the files of torch.distributed.checkpoint (DCP), and state.json, which was written last
  .step-00002000.tmp/ one in the making or in deletion; what a killed run left of it goes at the next start
  .step-00001000.old/ one whose place another of the same step takes

Saving runs in a thread, on a process group of its own, so that it never meets the collectives of training. That a save has
succeeded on rank 0 implies, within DCP, that every rank has written its part; so rank 0 alone gives it its name and deletes old
ones, whenever it comes to it. DistContext hear of each other's failures where they wait for each other anyway: at the next save.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.optim import Optimizer

from swag_models.errors import CheckpointError, OutputError, SwagModelsError

STATE = "state.json"
T = TypeVar("T")
log = logging.getLogger("swag_models")


@dataclass
class Save:
    """A save under way. `cause`: why it failed, or None; known to rank 0, once `settled`."""

    step: int
    state: dict[str, Any]
    future: Future[Any]
    settled: bool = False
    cause: str | None = None


class Writer(FileSystemWriter):
    """DCP's, but what the disk refuses is an OSError: torch's archives raise a RuntimeError over it, of what they expected."""

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


class Checkpointer:
    """The checkpoints in a folder: the last `keep` of them, and the best.

    torch.distributed is initialised. One run at a time has the folder: a lock is the caller's. Every method but `poll` is
    called by all ranks alike. `failed`: saves that failed, the same number on every rank.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int) -> None:
        """Clears what a killed run left; OutputError if the folder cannot be made."""
        assert keep > 0
        self.folder, self.keep, self.failed = Path(os.path.abspath(folder)), keep, 0
        self._leads = dist.get_rank() == 0
        self._group: Any = dist.new_group(backend="gloo")
        self._save: Save | None = None
        self._ask(self._clear)

    def save(
        self,
        step: int,
        tensors: dict[str, Any],
        facts: Mapping[str, Any],
        *,
        score: float | None = None,
        wait: bool = False,
    ) -> None:
        """Begin to save; first wait for the save before. What is given may change as soon as this returns.

        tensors: nested, as from `collect_tensors`. facts: for JSON; those of rank 0 are kept. score: higher is better; NaN is none.
        What the disk cannot take is cleaned away with a warning, and counted; with `wait`, it is an OutputError.
        """
        self.finish()
        state = {
            "step": step,
            "score": None if score is None or math.isnan(score) else score,
            "facts": facts,
        }
        state = json.loads(json.dumps(state))  # as it is now
        writer = Writer(_hide(self._find(step), "tmp"))  # stages too, in a copy
        future = async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        self._save = Save(step, state, future)
        if wait and (cause := self.finish()):
            raise OutputError(f"{self._find(step)} cannot be written: {cause}; is the disk full?")

    def poll(self) -> None:
        """Give a save that is written its name, and delete old ones; never waits. Only rank 0 has something to do."""
        if self._leads and self._save and not self._save.settled and self._save.future.done():
            self._settle(self._save)

    def finish(self) -> str | None:
        """Wait for the save under way; why it failed, or None."""
        if (save := self._save) is None:
            return None
        if self._leads and not save.settled:
            self._settle(save)
        elif not self._leads:
            _find_cause(save.future.exception())
        self._save = None
        cause = self._ask(lambda: save.cause)
        self.failed += cause is not None
        return cause

    def find_latest(self) -> Path | None:
        """The complete checkpoint of the last step."""
        self.finish()
        return self._ask(lambda: max(self._list(), default=None))

    def find_best(self) -> Path | None:
        """The one with the highest score, the later of equals."""
        self.finish()
        return self._ask(self._rate)

    def load(self, path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        """Read a checkpoint into `tensors`, in place, from whatever number of ranks wrote it; its facts.

        A part of what was saved will do. Values that are no tensors are replaced within their dicts. CheckpointError if files
        are missing or cut off, or something is not in them; then `tensors` may be read in part. Single bits are not checked.
        Metadata is a pickle, so load your own runs only.
        """
        self.finish()
        state = self._ask(lambda: _check(path))
        try:
            load(tensors, storage_reader=FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(_refuse(path, _name_cause(error))) from None
        return state["facts"]

    def _find(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _list(self) -> list[Path]:
        """Complete ones, by step."""
        return sorted(path.parent for path in self.folder.glob(f"step-*/{STATE}"))

    def _rate(self) -> Path | None:
        scores = {path: _read_score(path) for path in self._list()}
        return (
            max(scores, key=lambda path: (scores[path], path))
            if set(scores.values()) - {-math.inf}
            else None
        )

    def _ask(self, question: Callable[[], T]) -> T:
        """Rank 0's answer, on every rank; its error likewise."""
        answer: list[Any] = [None, None]
        if self._leads:
            try:
                answer[0] = question()
            except SwagModelsError as error:
                answer[1] = error
            except OSError as error:
                answer[1] = OutputError(
                    f"{self.folder}: {error.strerror or error}; check the folder and its disk"
                )
        dist.broadcast_object_list(answer, src=0, group=self._group)
        if answer[1]:
            raise answer[1]
        return answer[0]

    def _clear(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(".step-*.old"):
            path = old.with_name(old.stem[1:])
            if not path.exists():  # killed between two renames
                old.rename(path)
        for left in [*self.folder.glob(".step-*.old"), *self.folder.glob(".step-*.tmp")]:
            shutil.rmtree(left)

    def _settle(self, save: Save) -> None:
        """What rank 0 does when all have written."""
        path = self._find(save.step)
        temporary, old = _hide(path, "tmp"), _hide(path, "old")
        save.cause = _find_cause(save.future.exception())
        if save.cause is None:
            try:
                sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
                with open(temporary / STATE, "w", encoding="utf-8") as file:
                    json.dump({**save.state, "files": sizes}, file)
                    file.flush()
                    os.fsync(file.fileno())
                if path.exists():
                    path.rename(old)
                temporary.rename(path)
            except OSError as error:
                save.cause = error.strerror or str(error)
        save.settled = True
        if save.cause is not None:
            shutil.rmtree(temporary, ignore_errors=True)
            log.warning(
                "the checkpoint of step %d cannot be written: %s; training goes on without it",
                save.step,
                save.cause,
            )
            return
        try:
            if old.exists():
                shutil.rmtree(old)
            for each in set(self._list()[: -self.keep]) - {self._rate()}:
                # Renamed first, so that it never looks complete while it is not.
                shutil.rmtree(each.rename(_hide(each, "tmp")))
        except OSError as error:
            log.warning(
                "old checkpoints in %s cannot be deleted: %s", self.folder, error.strerror or error
            )


def collect_tensors(
    model: nn.Module, optimizer: Optimizer | None = None, average: nn.Module | None = None
) -> dict[str, Any]:
    """Weights and optimizer state by the names of parameters, alike for plain modules, DDP and FSDP2; tensors are not copied.

    A fresh optimizer gets its state, by a step that changes nothing, so that `load` has tensors to fill.
    """
    if optimizer is None:
        tensors: dict[str, Any] = {"model": get_model_state_dict(model)}
    else:
        weights, state = get_state_dict(model, optimizer)
        tensors = {"model": weights, "optimizer": state}
    return tensors if average is None else {**tensors, "average": get_model_state_dict(average)}


def restore_tensors(
    tensors: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer | None = None,
    average: nn.Module | None = None,
) -> None:
    """The inverse of `collect_tensors`, with the same modules."""
    if optimizer is None:
        set_model_state_dict(model, tensors["model"])
    else:
        set_state_dict(
            model,
            optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=tensors["optimizer"],
        )
    if average is not None:
        set_model_state_dict(average, tensors["average"])


def _hide(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _find_cause(error: BaseException | None) -> str | None:
    """Why a save failed, for all ranks alike, if the disk is at fault; other errors are raised."""
    if error is None:
        return None
    if not isinstance(error, CheckpointException) or not all(
        isinstance(each, OSError) for each, _ in error.failures.values()
    ):
        raise error
    return _name_cause(error)


def _name_cause(error: CheckpointException) -> str:
    """One line for the first rank that failed."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    text = (
        (cause.strerror if isinstance(cause, OSError) else None)
        or str(cause).strip()
        or type(cause).__name__
    )
    return f"{text.splitlines()[0]} (rank {rank})"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(_refuse(path, f"{STATE}: {error}")) from None
    if not isinstance(state, dict) or state.keys() != {"step", "score", "facts", "files"}:
        raise CheckpointError(_refuse(path, f"{STATE} is not of a checkpoint"))
    return state


def _read_score(path: Path) -> float:
    """-inf without one."""
    try:
        score = _read_state(path)["score"]
    except CheckpointError:  # whoever loads it is told
        score = None
    return -math.inf if score is None else score


def _check(path: Path) -> dict[str, Any]:
    """The state of a checkpoint whose files have the sizes they were written with."""
    state = _read_state(path)
    for name, size in state["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            raise CheckpointError(_refuse(path, f"{name} has {found} of its {size} bytes"))
    return state


def _refuse(path: Path, reason: str) -> str:
    return f"checkpoint {path} cannot be loaded: {reason}; if it is damaged, delete it, and the one before it serves"
