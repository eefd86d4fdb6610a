"""Checkpoints of a training run: written in the background, atomically, by all ranks together.

A folder of checkpoints holds
  step-00001000/      a complete one: the files of torch.distributed.checkpoint (DCP), and
                      state.json, which is written last
  .step-00002000.tmp/ one that is being written or deleted; the next start removes what a killed
                      run left
  .step-00001000.old/ one that is being replaced by another of the same step

A thread saves, on a process group of its own, so that it never meets the collectives of training.
DCP reports success to rank 0 only when every rank has written its part. Rank 0 alone therefore
renames the folder and deletes old checkpoints, whenever it notices the success. The other ranks
learn of a failure where ranks wait for each other anyway: at the next save.
"""

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
import torch.distributed as torch_dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult

from swag_models.decoding import parse_json
from swag_models.errors import CheckpointError, OutputError
from swag_models.recipe.training.distributed import run_on_main

STATE_FILE = "state.json"
SCORE_TYPES = (int, float, type(None))
T = TypeVar("T")
log = logging.getLogger("swag_models")


@dataclass
class PendingSave:
    """A save in the background.

    Attributes:
        step: of the checkpoint.
        state: the content of state.json, without file sizes.
        future: of DCP.
        settled: whether rank 0 has renamed or removed the folder.
        cause: why it failed, or None; known to rank 0 once it is settled.
    """

    step: int
    state: dict[str, Any]
    future: Future[Any]
    settled: bool = False
    cause: str | None = None


class DiskErrorWriter(FileSystemWriter):
    """DCP's writer, but with an OSError where the disk fails.

    torch's archive writer raises a RuntimeError on top of it, about a size that it expected.
    """

    def write_data(
        self, plan: SavePlan, planner: SavePlanner
    ) -> torch.futures.Future[list[WriteResult]]:
        """Write the parts of this rank."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


class Checkpointer:
    """The checkpoints in a folder: the last `keep`, the best, and that of one step.

    Every method but `poll` is called by all ranks alike. Requires torch.distributed.

    Args:
        folder: used by one run at a time, which the caller ensures; created if missing. What a
            killed run left is removed.
        keep: number of most recent checkpoints to keep.
        always: step whose checkpoint is kept as well.

    Attributes:
        failed: number of saves that failed, the same on every rank.

    Raises:
        OutputError: the folder cannot be created.
    """

    def __init__(
        self, folder: str | os.PathLike[str], keep: int, *, always: int | None = None
    ) -> None:
        assert keep > 0
        self.folder, self.keep, self.failed = Path(os.path.abspath(folder)), keep, 0
        self.always = always
        self._is_main = torch_dist.get_rank() == 0
        # The saving thread must not share a group with training, whose collectives it would mix up.
        self._group: Any = torch_dist.new_group(backend="gloo")
        self._pending: PendingSave | None = None
        self._run_on_main(self._clean)

    def save(
        self,
        step: int,
        tensors: dict[str, Any],
        facts: Mapping[str, Any],
        *,
        score: float | None = None,
        wait: bool = False,
    ) -> None:
        """Start to save, after the save before is finished.

        The arguments are copied before this returns. A save that the disk cannot take is removed
        with a warning, and counted in `failed`.

        Args:
            step: of the checkpoint.
            tensors: nested, as from `train_state.collect_tensors`.
            facts: JSON values; those of rank 0 are stored.
            score: of the weights, higher is better; NaN counts as none.
            wait: wait until it is finished.

        Raises:
            OutputError: with `wait`, the disk cannot take it.
        """
        self.finish()
        score = None if score is None or math.isnan(score) else score
        # through JSON, because the facts may change as soon as this returns
        state = json.loads(json.dumps({"step": step, "score": score, "facts": facts}))
        # async_save copies the tensors before it returns; training may then change them
        writer = DiskErrorWriter(_hide(locate_checkpoint(self.folder, step), "tmp"))
        future = async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        self._pending = PendingSave(step, state, future)
        if wait and (cause := self.finish()):
            name = locate_checkpoint(self.folder, step)
            raise OutputError(f"{name} cannot be written: {cause}; is the disk full?")

    def poll(self) -> None:
        """Complete a finished save and delete old checkpoints, without waiting; on rank 0 only."""
        pending = self._pending
        if self._is_main and pending and not pending.settled and pending.future.done():
            self._settle(pending)

    def finish(self) -> str | None:
        """Wait for the pending save, if there is one.

        Returns:
            Why it failed, or None.
        """
        if (pending := self._pending) is None:
            return None
        if self._is_main and not pending.settled:
            self._settle(pending)
        elif not self._is_main:
            _find_cause(pending.future.exception())  # raises what is not a disk error
        self._pending = None
        cause = self._run_on_main(lambda: pending.cause)
        self.failed += cause is not None  # all ranks count alike, since the cause is rank 0's
        return cause

    def find_latest(self) -> Path | None:
        """Find the complete checkpoint of the last step."""
        self.finish()
        return self._run_on_main(lambda: max(list_checkpoints(self.folder), default=None))

    def find_best(self) -> Path | None:
        """Find the checkpoint with the highest score, the later of equals."""
        self.finish()
        return self._run_on_main(self._find_best)

    def load(self, path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
        """Read a checkpoint into `tensors`, in place. Any number of ranks may have written it.

        The metadata is a pickle, which can run code: load only runs that you trust.

        Args:
            path: of the checkpoint.
            tensors: nested, as they were saved, or a part of it. Values that are not tensors are
                replaced in their dicts.

        Returns:
            The facts that were saved with it.

        Raises:
            CheckpointError: a file is missing or truncated, or lacks a tensor; `tensors` may have
                been read in part. Flipped bits are not detected.
        """
        self.finish()
        state = self._run_on_main(lambda: _check_files(path))
        try:
            load(tensors, storage_reader=FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:
            raise CheckpointError(_describe_damage(path, _name_cause(error))) from None
        return state["facts"]

    def _find_best(self) -> Path | None:
        scores = {path: _read_score(path) for path in list_checkpoints(self.folder)}
        if not set(scores.values()) - {-math.inf}:
            return None
        return max(scores, key=lambda path: (scores[path], path))

    def _run_on_main(self, work: Callable[[], T]) -> T:
        return run_on_main(work, self._group, self.folder)

    def _clean(self) -> None:
        """Remove or restore what a killed run left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.glob(".step-*.old"):
            path = old.with_name(old.stem[1:])
            if not path.exists():  # killed between the two renames of `_rename`
                old.rename(path)
        for folder in [*self.folder.glob(".step-*.old"), *self.folder.glob(".step-*.tmp")]:
            shutil.rmtree(folder)

    def _settle(self, pending: PendingSave) -> None:
        """Complete or remove a save, on rank 0, when all ranks have written."""
        path = locate_checkpoint(self.folder, pending.step)
        pending.cause = _find_cause(pending.future.exception())
        if pending.cause is None:
            try:
                self._rename(path, pending.state)
            except OSError as error:
                pending.cause = error.strerror or str(error)
        pending.settled = True  # even if it failed: `poll` must not try again
        if pending.cause is not None:
            # a full disk needs the space of the failed save
            shutil.rmtree(_hide(path, "tmp"), ignore_errors=True)
            log.warning(
                "the checkpoint of step %d cannot be written: %s; training continues without it",
                pending.step,
                pending.cause,
            )
            return
        try:
            self._delete_old(path)
        except OSError as error:
            reason = error.strerror or error
            log.warning("old checkpoints in %s cannot be deleted: %s", self.folder, reason)

    def _rename(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write state.json and give the temporary folder its name."""
        temporary = _hide(path, "tmp")
        # `load` compares the sizes, to find truncated files before it reads any
        sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
        with open(temporary / STATE_FILE, "w", encoding="utf-8") as file:
            json.dump({**state, "files": sizes}, file)
            file.flush()
            os.fsync(file.fileno())  # the rename must not reach the disk before the content
        if path.exists():
            path.rename(_hide(path, "old"))
        temporary.rename(path)

    def _delete_old(self, path: Path) -> None:
        """Delete what `path` replaced, and checkpoints that need not be kept."""
        if (old := _hide(path, "old")).exists():
            shutil.rmtree(old)
        always = None if self.always is None else locate_checkpoint(self.folder, self.always)
        kept = {self._find_best(), always}
        for outdated in set(list_checkpoints(self.folder)[: -self.keep]) - kept:
            delete_checkpoint(outdated)


def locate_checkpoint(folder: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in a folder, by step."""
    return sorted(path.parent for path in folder.glob(f"step-*/{STATE_FILE}"))


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint."""
    # Renamed first: a partly deleted folder must not look like a complete checkpoint.
    shutil.rmtree(hidden := _hide(path, "tmp"), ignore_errors=True)  # a killed run may leave one
    shutil.rmtree(path.rename(hidden))


def _hide(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _find_cause(error: BaseException | None) -> str | None:
    """Why a save failed on some rank's disk; None if it did not. Other errors are raised."""
    if error is None:
        return None
    if not isinstance(error, CheckpointException) or not all(
        isinstance(failure, OSError) for failure, _ in error.failures.values()
    ):
        raise error
    return _name_cause(error)


def _name_cause(error: CheckpointException) -> str:
    """One line for the first rank that failed."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause).strip()
    return f"{(text or type(cause).__name__).splitlines()[0]} (rank {rank})"


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = parse_json((path / STATE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(_describe_damage(path, f"{STATE_FILE}: {error}")) from None
    valid = isinstance(state, dict) and state.keys() == {"step", "score", "facts", "files"}
    valid = valid and isinstance(state["files"], dict) and type(state["score"]) in SCORE_TYPES
    if not valid or any(name != os.path.basename(name) for name in state["files"]):
        raise CheckpointError(_describe_damage(path, f"{STATE_FILE} is not that of a checkpoint"))
    return state


def _read_score(path: Path) -> float:
    """The score of a checkpoint; -inf if it has none."""
    try:
        score = _read_state(path)["score"]
    except CheckpointError:  # raised again if somebody loads it
        score = None
    return -math.inf if score is None else score


def _check_files(path: Path) -> dict[str, Any]:
    """Read the state of a checkpoint, and check the sizes of its files."""
    state = _read_state(path)
    for name, size in state["files"].items():
        actual = os.path.getsize(path / name) if os.path.isfile(path / name) else 0
        if actual != size:
            raise CheckpointError(_describe_damage(path, f"{name} has {actual} of {size} bytes"))
    return state


def _describe_damage(path: Path, reason: str) -> str:
    return (
        f"checkpoint {path} cannot be loaded: {reason}; "
        "if it is corrupted, delete it to resume from the previous one"
    )
