"""Atomic file writes, locked and resumable work in a folder, and disk errors in one line.

    with WorkFolder(output.with_name(f"{output.name}.work"), job, output=output) as work:
        counts = run_once(work.path / "counts.json", key, [work.path / "rows.parquet"], make_rows)

A file appears under its name complete or not at all. A process that is killed leaves at most one
temporary file per name, which the next run that writes the same name overwrites or removes.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swag_models.errors import ConfigError, OutputError, SwagModelsError
from swag_models.formatting import describe_error

logger = logging.getLogger("swag_models")

MAX_SHOWN = 80  # characters of a value in an error message
# Of a temporary file of another machine, whose processes cannot be seen from here. In seconds.
MAX_AGE = 24 * 60 * 60
MAX_NAME = 40  # characters of the final name in a temporary name; file systems allow 255 bytes


@contextmanager
def atomic_write(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on an error.

    Args:
        path: the file to write.
        unique: use a new temporary name each time, for writers that hold no lock and may run at
            the same time; remove the temporary files of killed processes. By default the temporary
            name is fixed, so that the next run overwrites what a killed process left behind.
    """
    # In the same folder, because a rename is atomic only within one file system.
    temporary = _name_temporary(path) if unique else path.with_name(f".{path.name}.tmp")
    if unique:
        _remove_leftovers(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, and remove it at the end.

    Folders that killed processes made for the same `path` are removed first.

    Args:
        path: the file or folder that is made from the content of the temporary folder.
    """
    _remove_leftovers(path)
    folder = _name_temporary(path)
    folder.mkdir(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name_temporary(path: Path) -> Path:
    """A new name beside `path` with the id of this process: `.NAME.HOST-PID-NUMBER.tmp`."""
    owner = f"{_identify_host()}-{os.getpid()}"
    return path.with_name(f".{path.name[:MAX_NAME]}.{owner}-{secrets.randbelow(2**32)}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders for `path` whose processes have ended."""
    pattern = re.compile(re.escape(f".{path.name[:MAX_NAME]}.") + r"(\w{8})-(\d+)-\d+\.tmp")
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            match = pattern.fullmatch(entry.name)
            if match and not _is_in_use(match[1], int(match[2]), entry.stat().st_mtime):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)


def _is_in_use(host: str, pid: int, changed: float) -> bool:
    """Whether the process that made a temporary file may still be running."""
    # os.kill(pid, 0) asks on POSIX, but ends the process on Windows.
    if host != _identify_host() or os.name != "posix":
        return time.time() - changed < MAX_AGE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


def _identify_host() -> str:
    """8 characters, equal for processes that can see each other's process ids."""
    parts = [os.uname().nodename if hasattr(os, "uname") else ""]
    with contextlib.suppress(OSError):  # containers can share a name and a file system
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]


def report_done(output: Path) -> None:
    """Tell the user that an earlier run has written an output, so that nothing is left to do."""
    logger.warning("%s is already done", output)


def write_text(path: Path, text: str, *, unique: bool = False) -> None:
    """Write text as UTF-8, atomically.

    Args:
        path: the file to write.
        text: characters that UTF-8 cannot encode are written as backslash escapes.
        unique: as for `atomic_write`.
    """
    with atomic_write(path, unique=unique) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files into a folder, each atomically; the folder is created if missing.

    Args:
        folder: where to write.
        texts: content of each file, by file name.

    Raises:
        OutputError: they cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)


def write_json(path: Path, value: Any, *, indent: int | None = 2, unique: bool = False) -> None:
    """Write a JSON value as UTF-8 with a final newline, atomically.

    Args:
        path: the file to write.
        value: what `json.dumps` accepts.
        indent: spaces per level; None writes a single line.
        unique: as for `atomic_write`.
    """
    # A file name with bytes that are not UTF-8 survives: `write_text` writes each such byte as
    # \udcXX, which is also JSON's escape for it.
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", unique=unique)


@contextmanager
def disk_errors(path: Path, *, resumable: bool = False) -> Iterator[None]:
    """Turn an OSError in the `with` block into a one-line OutputError that names `path`.

    Args:
        path: the output being written.
        resumable: whether rerunning the same command resumes the work; the message then says so.

    Raises:
        OutputError: the disk is full or read-only, a folder is missing, and the like.
    """
    try:
        yield
    except SwagModelsError:  # some are OSErrors too, and their messages are complete
        raise
    except OSError as error:
        hint = "; finished work is kept: rerun the same command to resume" if resumable else ""
        raise OutputError(f"{path} cannot be written: {describe_error(error)}{hint}") from None


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
        self._lock = FileLock(path / ".lock", timeout=-1 if wait else 0)

    def __enter__(self) -> "WorkFolder":
        with disk_errors(self.output):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise ConfigError(
                    f"another process is writing {self.output}; wait for it, or choose another "
                    "output"
                ) from None
        try:
            if self._job is not None:
                self.claim(self._job)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def claim(
        self, job: Mapping[str, Any], comparable: Callable[[Any], Mapping[str, Any]] = dict
    ) -> None:
        """Compare the description of the work with the recorded one, if any; then record it.

        Args:
            job: the description, JSON values.
            comparable: maps a description to the entries that must be equal; by default all.

        Raises:
            ConfigError: the recorded description differs or is damaged. The message names the
                first entry that differs.
        """
        job = json.loads(json.dumps(job))  # tuples become lists, as in the recorded description
        if self.record.exists():
            try:
                recorded = comparable(json.loads(self.record.read_text("utf-8")))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ConfigError(
                    f"{self.record} is damaged; delete {self.path} or choose another output"
                ) from None
            requested = comparable(job)
            for name in sorted(recorded.keys() | requested.keys()):
                if recorded.get(name) != requested.get(name):
                    raise ConfigError(
                        f"{self.output} holds other work, with {name} "
                        f"{_shorten(recorded.get(name))}, not {_shorten(requested.get(name))}; "
                        f"delete {self.path} or choose another output"
                    )
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

    The earlier result is used only if all `files` still exist and have the same sizes. No other
    process may run the same work at the same time: call it inside a `WorkFolder`.

    Args:
        record: JSON file for the key, the result and the sizes of the files.
        key: JSON values that the result depends on.
        files: the files and folders that `make` writes.
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
    sizes = list(map(_read_size, files))
    write_json(record, {"key": _hash_key(key), "sizes": sizes, "result": result}, indent=None)
    return result


def read_result(record: Path, key: Any, files: Sequence[Path]) -> Any:
    """Return the result that an earlier `run_once` stored for this key and these files.

    Args:
        record: JSON file that `run_once` wrote.
        key: JSON values that the result depends on.
        files: the files that the work wrote; their sizes must be unchanged.

    Raises:
        LookupError: the work is not done, or was done with another key.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        finished = json.loads(record.read_text("utf-8"))
        if finished["key"] == _hash_key(key) and finished["sizes"] == list(map(_read_size, files)):
            return finished["result"]
    raise LookupError(f"{record} holds no result for this key")


def _hash_key(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _read_size(path: Path) -> int | None:
    """Return the size of a file in bytes; None for a folder, as engines such as Spark write."""
    return None if path.is_dir() else path.stat().st_size


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
