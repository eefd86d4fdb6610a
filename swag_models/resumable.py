"""Resumable work in a locked folder, steps that run once, and output folders.

    with WorkFolder(output.with_name(f"{output.name}.work"), job, output=output) as work:
        counts = run_once(work.path / "counts.json", key, [work.path / "rows.parquet"], make_rows)

Work that fails before it has stored anything leaves no folder behind.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swag_models.atomic import disk_errors, write_json
from swag_models.errors import ConfigError

logger = logging.getLogger("swag_models")

LOCK_FILE = ".lock"
MAX_SHOWN = 80  # characters of a value in an error message
TICK = 0.011  # seconds; Linux counts the times of files in steps of at most 10 ms


@contextmanager
def output_folder(folder: Path, name: Path | None = None) -> Iterator[None]:
    """Create a folder for the `with` block, and remove it again if the block stores nothing in it.

    Folders above that are missing are created and removed in the same way.

    Args:
        folder: the folder; it may exist.
        name: what messages call it; by default its path.

    Raises:
        ConfigError: it is a file.
        OutputError: it cannot be created.
    """
    with disk_errors(name or folder):
        output = name or folder
        # the output of `embed` is a file beside its work folder
        if output in (folder, *folder.parents) and output.is_file():
            raise ConfigError(f"output= must be a folder; {output} is a file")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            for path in missing:
                path.rmdir()
        raise


class WorkFolder:
    """A context manager for a folder of resumable work, used by one process at a time.

    The folder contains `.lock`, which is held while the work runs and which the system releases
    if the process is killed, and `record`, the description of the work. A later run with an equal
    description resumes the work; any other run is rejected.

    Args:
        path: the folder; created if missing.
        job: the description, JSON values. If None, call `claim` later.
        output: the path that messages name; by default `path`.
        record: file name of the description.
        wait: wait until no other process uses the folder, instead of raising.

    Raises:
        ConfigError: another process uses the folder, or it contains work with another description.
        OutputError: the folder cannot be created.
    """

    def __init__(
        self,
        path: Path,
        job: Mapping[str, Any] | None = None,
        *,
        output: Path | None = None,
        record: str = "job.json",
        wait: bool = False,
    ) -> None:
        self.path = path
        self.output = path if output is None else output
        self.record = path / record
        self._job = job
        self._wait = wait
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "WorkFolder":
        with contextlib.ExitStack() as stack:
            stack.enter_context(output_folder(self.path, self.output))
            lock = FileLock(self.path / LOCK_FILE, timeout=-1 if self._wait else 0)
            with disk_errors(self.output):
                try:
                    stack.enter_context(lock)
                except Timeout:
                    raise ConfigError(
                        f"another process is writing {self.output}; wait for it, or choose "
                        "another output"
                    ) from None
            stack.push(self._remove_lock)
            if self._job is not None:
                self.claim(self._job)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*(error or (None, None, None)))

    def _remove_lock(self, kind: object, *_: object) -> None:
        """Remove the lock file of work that failed and has stored nothing else."""
        # Another process may already wait for the lock of a folder that is shared.
        if kind is not None and not self._wait:
            with contextlib.suppress(OSError):
                if os.listdir(self.path) == [LOCK_FILE]:
                    (self.path / LOCK_FILE).unlink()

    def claim(
        self,
        job: Mapping[str, Any],
        comparable: Callable[[Any], Mapping[str, Any]] = dict,
        check: Callable[[Any], None] = lambda recorded: None,
    ) -> None:
        """Compare the description of the work with the recorded one, if any; then record it.

        Args:
            job: the description, JSON values.
            comparable: maps a description to the entries that must be equal; by default all.
            check: called with the recorded description if its entries are equal; it may raise
                ConfigError, and then the recorded description is kept.

        Raises:
            ConfigError: the recorded description differs or is damaged. The message names the
                first entry that differs.
        """
        job = json.loads(json.dumps(job))  # tuples become lists, as in the recorded description
        if self.record.exists():
            try:
                description = json.loads(self.record.read_text("utf-8"))
                recorded = comparable(description)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ConfigError(
                    f"{self.record} is damaged; delete {self.path} or choose another output"
                ) from None
            requested = comparable(job)
            if difference := _find_difference(recorded, requested):
                name, earlier, now = difference
                raise ConfigError(
                    f"{self.output} holds other work, with {name} {_shorten(earlier)}, "
                    f"not {_shorten(now)}; delete {self.path} or choose another output"
                )
            check(description)
        write_json(self.record, job)


def run_once(
    record: Path,
    key: Any,
    files: Sequence[Path],
    make: Callable[[], Any],
    *,
    default: Callable[[Any], Any] | None = None,
) -> Any:
    """Run `make`, or return the result of an earlier run that finished with the same `key`.

    The earlier result is used only if all `files` are as that run left them. No other process may
    run the same work at the same time: call it inside a `WorkFolder`.

    Args:
        record: JSON file for the key, the result and the states of the files.
        key: JSON values that the result depends on.
        files: the files and folders that `make` may write.
        make: does the work; returns JSON values.
        default: converts values in the result that are not JSON values, as for `json.dumps`.

    Returns:
        The result as JSON reads it back, with lists in place of tuples.
    """
    with contextlib.suppress(LookupError):
        return read_result(record, key, files)
    # If this run is killed, no record may remain beside files that it has begun to replace.
    record.unlink(missing_ok=True)
    result = json.loads(json.dumps(make(), default=default))
    write_result(record, key, files, result)
    return result


def write_result(record: Path, key: Any, files: Sequence[Path], result: Any) -> None:
    """Store the result of finished work; see `run_once`."""
    states = list(map(read_state, files))
    if states:
        time.sleep(TICK)  # whatever changes a file from now on changes its time as well
    values = {"key": _hash_key(key), "files": states, "result": result}
    write_json(record, values, indent=None)


def read_result(record: Path, key: Any, files: Sequence[Path]) -> Any:
    """Return the result that an earlier `run_once` stored for this key and these files.

    Args:
        record: JSON file that `run_once` wrote.
        key: JSON values that the result depends on.
        files: the files that the work wrote, which must be unchanged.

    Raises:
        LookupError: the work is not done, or was done with another key, or a file was changed.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        finished = json.loads(record.read_text("utf-8"))
        if finished["key"] == _hash_key(key) and finished["files"] == list(map(read_state, files)):
            return finished["result"]
    raise LookupError(f"{record} holds no result for this key")


def read_state(path: Path) -> Any:
    """Return JSON values that change if a file is replaced, damaged or deleted.

    Args:
        path: a file, or a folder, whose files count with their names.

    Returns:
        Size and modification time; for a folder, a hash of those of all files in it; None if
        nothing is there.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if not path.is_dir():
        return [status.st_size, status.st_mtime_ns]
    paths = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    states = sorted([str(file.relative_to(path)), read_state(file)] for file in paths)
    return _hash_key(states)


def report_done(output: Path) -> None:
    """Tell the user that an earlier run has written an output, so that nothing is left to do."""
    logger.warning("%s is already done", output)


def _hash_key(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _find_difference(recorded: Any, requested: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first entry that differs in two descriptions, by its dotted name: its two values."""
    if recorded == requested:
        return None
    if not all(part is None or isinstance(part, Mapping) for part in (recorded, requested)):
        return name, recorded, requested
    recorded, requested = recorded or {}, requested or {}  # None: all entries are missing
    for key in sorted(recorded.keys() | requested.keys()):
        dotted = f"{name}.{key}" if name else key
        if found := _find_difference(recorded.get(key), requested.get(key), dotted):
            return found
    return name, recorded, requested  # one of them has an entry that is None, the other lacks it


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
