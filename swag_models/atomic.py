"""Atomic file writes, locked and resumable work in a folder, and disk errors in one line.

    with WorkFolder(output.with_name(f"{output.name}.work"), job, output=output) as work:
        counts = run_once(work.path / "counts.json", key, [work.path / "rows.parquet"], make_rows)

Every file appears under its name complete or not at all. A process that was killed leaves at most one temporary file for each
name, which the next run overwrites.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swag_models.errors import ConfigError, OutputError, SwagModelsError


@contextmanager
def atomic_write(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` on success and is removed on an error.

    Args:
        path: the file to write.
        unique: use a new temporary name each time, for writers that hold no lock and may run at the same time. By default the
            temporary name is fixed, so that the next run overwrites what a killed process left.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex if unique else path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str, *, unique: bool = False) -> None:
    """Write `text` as UTF-8, atomically. Characters that UTF-8 cannot encode are written as backslash escapes."""
    with atomic_write(path, unique=unique) as temporary:
        temporary.write_text(text, "utf-8", "backslashreplace")


def write_json(path: Path, value: Any, *, indent: int | None = 2, unique: bool = False) -> None:
    """Write a JSON value as UTF-8 with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n", unique=unique)


@contextmanager
def disk_errors(path: Path, *, resumable: bool = False) -> Iterator[None]:
    """Turn an OSError of the `with` block into an OutputError of one line that names `path`.

    Args:
        path: the output that could not be written.
        resumable: whether rerunning the same command resumes the work; the message then says so.

    Raises:
        OutputError: the disk is full or read-only, a folder is missing, ...
    """
    try:
        yield
    except SwagModelsError:
        raise
    except OSError as error:
        hint = "; finished work is kept: rerun the same command to resume" if resumable else ""
        raise OutputError(f"{path} cannot be written: {error.strerror or error}{hint}") from None


class WorkFolder:
    """A folder of resumable work, used by one process at a time.

    The folder holds `.lock`, held while the work runs, and `record`, the description of the work. A later run resumes the work
    if its description is equal, and is refused otherwise.

    Args:
        path: the folder; created if missing.
        job: the description, JSON values. None: described later, by `claim`, or not at all.
        output: what messages name; by default `path`.
        record: file name of the description.
        wait: wait for another process instead of refusing to start.

    Raises:
        ConfigError: another process holds the folder, or it holds work of another description.
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

    def __enter__(self) -> WorkFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another process is writing {self.output}; wait for it, or choose another output"
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
        """Write the description of the work, or compare it with the one that is there.

        Args:
            job: JSON values.
            comparable: maps a description to the entries that must be equal; by default all of them.

        Raises:
            ConfigError: the folder holds other work; the message names the first entry that differs.
        """
        job = json.loads(json.dumps(job))  # tuples become lists, as they are when read again
        if self.record.exists():
            try:
                before = comparable(json.loads(self.record.read_text("utf-8")))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise ConfigError(
                    f"{self.record} is damaged; delete {self.path} or choose another output"
                ) from None
            after = comparable(job)
            for name in sorted(before.keys() | after.keys()):
                if before.get(name) != after.get(name):
                    raise ConfigError(
                        f"{self.output} holds other work, with {name} {_shorten(before.get(name))}, not "
                        f"{_shorten(after.get(name))}; delete {self.path} or choose another output"
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
    """The result of `make`, or of an earlier run that finished it with the same `key`.

    The result is taken from `record` if its key is equal and all `files` still have the sizes they had then.

    Args:
        record: JSON file of the key, the result and the sizes of the files.
        key: JSON values that the result depends on.
        files: what `make` writes.
        make: does the work; returns JSON values.
        default: as for `json.dumps`, converts other values in the result.

    Returns:
        The result as it is read from JSON: lists in place of tuples.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(record.read_text("utf-8"))
        if stored["key"] == digest and stored["sizes"] == list(map(_size, files)):
            return stored["result"]
    record.unlink(
        missing_ok=True
    )  # a killed run must not leave a record beside files that it has begun to replace
    text = json.dumps(make(), default=default)
    write_json(
        record,
        {"key": digest, "sizes": list(map(_size, files)), "result": json.loads(text)},
        indent=None,
    )
    return json.loads(text)


def _size(path: Path) -> int | None:
    """Bytes of a file; None for a folder, which an engine such as Spark writes."""
    return None if path.is_dir() else path.stat().st_size


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
