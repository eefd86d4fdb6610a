"""The folder of a training run: locked by one process, used for one run, shared by all ranks."""

import logging
import math
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from swag_models.atomic import disk_errors, write_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.hub.hf_format import CURVES_FILE
from swag_models.recipe.config import Run
from swag_models.recipe.data.file_times import check_times, read_times
from swag_models.recipe.training.checkpointer import (
    delete_checkpoint,
    list_checkpoints,
    locate_checkpoint,
)
from swag_models.recipe.training.distributed import DistContext
from swag_models.recipe.training.estimate import count_steps
from swag_models.recipe.training.logging import BOARD_FOLDER, LOG_FILE
from swag_models.recipe.training.optimizer import count_stable_steps
from swag_models.resumable import WorkFolder
from swag_models.runtime import find_versions

logger = logging.getLogger("swag_models")

RECORD_FILE = "run.json"
PUBLISHED_FILE = "published.json"  # settings of a published model, and SHA-256 of its files
PACKAGES = ("swag_models", "torch", "python")  # their versions are recorded: they decide numbers
# Fields that may change on resume: how the work is laid out, and what is reported and kept of it.
RESUME_FREE = {
    "engine",
    "checkpoint",
    "log_every",
    "eval_every",
    "on_nonfinite_loss",
    "loss_spike_factor",
}
LENGTH_FIELDS = {"steps", "epochs"}  # a run can be made longer


@contextmanager
def open_run_dir(output: Path, dist: DistContext) -> Iterator[WorkFolder]:
    """Lock the folder of a run for the `with` block; rank 0 holds the lock.

    Args:
        output: the folder; created if missing.
        dist: this process; all ranks call this alike.

    Raises:
        ConfigError: another process uses the folder, or a rank does not see it.
        OutputError: it cannot be written.
    """
    work = WorkFolder(output, record=RECORD_FILE)
    with ExitStack() as stack:

        def lock() -> None:
            with disk_errors(output):
                stack.enter_context(work)

        dist.run_on_main(lock)
        check_shared_folder(output, dist)
        yield work


def claim_run_dir(
    work: WorkFolder,
    run: Run,
    data: Mapping[str, Any],
    files: Iterable[tuple[str, str]],
    dist: DistContext,
    head: Mapping[str, Any] | None = None,
) -> None:
    """Write run.json, or compare with the one that is there.

    Args:
        work: from `open_run_dir`.
        run: the run that the folder is for. Its fields in RESUME_FREE may change on resume, and it
            may become longer: it then continues on the schedule of the new length, and with the
            schedule "wsd" from the end of its stable phase.
        data: description of the training data; only its name may change.
        files: name and path of each file of the training data; see `file_times`.
        dist: this process; all ranks call this alike.
        head: what `head_init` found for the head, which is recorded only.

    Raises:
        ConfigError: the folder holds another run, and the message names the first field that
            differs; or files of the data were changed.
    """

    def claim() -> None:
        times = read_times(files)
        record = {"run": run.to_dict(), "data": data, "versions": find_versions(*PACKAGES)}

        def check(recorded: Mapping[str, Any]) -> None:
            if earlier := recorded.get("times"):
                check_times(earlier, times, data["name"])
            _check_length(work.output, Run.from_dict(recorded["run"]), run, data["samples"])

        started = {} if head is None else {"head_init": head}
        work.claim({**record, **started, "times": times}, _select_fixed, check)

    dist.run_on_main(claim)


@contextmanager
def discard_unstarted(
    output: Path, dist: DistContext, has_started: Callable[[], bool]
) -> Iterator[None]:
    """Remove what a run has written if the data cannot be read and it took no step.

    Files of the user are kept.

    Args:
        output: the folder of the run.
        dist: this process.
        has_started: whether the run took a step, now or before.
    """
    try:
        yield
    except ConfigError:
        # Not `run_on_main`: other ranks may still wait for the first step.
        if dist.is_main and not has_started():
            for name in (RECORD_FILE, LOG_FILE, CURVES_FILE):
                (output / name).unlink(missing_ok=True)
            shutil.rmtree(output / BOARD_FOLDER, ignore_errors=True)
            with suppress(OSError):
                (output / "checkpoints").rmdir()
        raise


def _select_fixed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of run.json that must not change on resume."""
    data = {f"data.{name}": value for name, value in record["data"].items() if name != "name"}
    free = RESUME_FREE | LENGTH_FIELDS
    # decoded, so that a field which an earlier version did not have gets its default
    run = Run.from_dict(record["run"]).to_dict()
    run = {name: value for name, value in run.items() if name not in free}
    return {**data, **run}


def _check_length(output: Path, recorded: Run, run: Run, samples: int) -> None:
    """Let a run become longer, but not shorter than it was.

    A longer run is not published yet, so the record of a shorter one is removed. So are checkpoints
    in which the learning rate of the schedule "wsd" was falling, if one from before is left.

    Raises:
        ConfigError: the run is shorter, or no checkpoint is left from which it could continue.
    """
    earlier, steps = count_steps(recorded, samples), count_steps(run, samples)
    if steps == earlier:
        return
    name = "epochs" if run.steps is None else "steps"
    if steps < earlier:
        raise ConfigError(
            f"{output} holds a run of {count_noun(earlier, 'step')}, and {name} "
            f"{getattr(run, name):g} are {steps}; a run can be made longer but not shorter: choose "
            "another output"
        )
    if (output / PUBLISHED_FILE).exists() and not list_checkpoints(output / "checkpoints"):
        raise ConfigError(
            f"{output} holds a finished run of {count_noun(earlier, 'step')}, and no checkpoint is "
            f"left to continue to {steps}; choose another output, with init={output / 'model'}"
        )
    (output / PUBLISHED_FILE).unlink(missing_ok=True)
    effect = (
        "from now on, the learning rate follows the longer schedule, so the weights differ from "
        "those of a run that began with it"
    )
    folder, stable = output / "checkpoints", count_stable_steps(recorded, earlier)
    checkpoints = list_checkpoints(folder)
    if stable and (start := locate_checkpoint(folder, stable)) in checkpoints:
        for path in checkpoints[checkpoints.index(start) + 1 :]:
            delete_checkpoint(path)
        effect = f"it continues from step {stable}, before its learning rate fell"
    names = (output, count_noun(earlier, "step"), steps, effect)
    logger.warning("%s: the run of %s becomes one of %d; %s", *names)


def check_shared_folder(output: Path, dist: DistContext) -> None:
    """Check that every rank sees what rank 0 writes to a folder.

    Otherwise a checkpoint would lack the parts of the other ranks.

    Raises:
        ConfigError: one does not; raised on all ranks.
    """
    # A new name each time: network file systems remember for a while that a name did not exist.
    name = dist.run_on_main(lambda: f".{uuid.uuid4().hex}.tmp")
    dist.run_on_main((output / name).touch)
    visible = dist.gather((output / name).exists())
    dist.run_on_main((output / name).unlink)
    if not all(visible):
        raise ConfigError(
            f"rank {visible.index(False)} does not see {output}; "
            "choose a folder that all nodes share"
        )


def write_bad_loss(
    output: Path, run: Run, dist: DistContext, ids: Sequence[str], **numbers: float
) -> str:
    """Write bad_loss.json, the record of a step whose loss stopped the run.

    Args:
        output: the folder of the run.
        run: the run.
        dist: this process; all ranks call this alike.
        ids: the samples of the step.
        numbers: `step`, `loss`, `lr`, `grad_norm` of the step.

    Returns:
        The message of the error to raise.
    """
    path = output / "bad_loss.json"
    # JSON has no NaN and no infinity
    record = {
        name: value if math.isfinite(value) else str(value) for name, value in numbers.items()
    }
    dist.run_on_main(lambda: write_json(path, {**record, "ids": list(ids)}, indent=1))
    skip = (
        "set on_nonfinite_loss=skip and rerun to resume from the last checkpoint; or "
        if run.on_nonfinite_loss == "stop"
        else ""
    )
    return (
        f"step {record['step']} has loss {numbers['loss']:g} and gradient norm "
        f"{numbers['grad_norm']:g} at learning rate {numbers['lr']:.3g}; "
        f"its samples are in {path}; {skip}lower optimizer.lr or set optimizer.clip_norm, "
        "in a new folder"
    )
