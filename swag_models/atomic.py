"""Atomic file writes, and disk errors in one line.

A file appears under its name complete or not at all. A process that is killed leaves at most one
temporary file per name, which the next run that writes the same name overwrites or removes.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swag_models.errors import OutputError, SwagModelsError
from swag_models.formatting import describe_error

# Of a temporary file of another machine, whose processes cannot be seen from here. In seconds.
MAX_AGE = 24 * 60 * 60
MAX_NAME_PART = 40  # characters of the final name in a temporary name; file systems allow 255 bytes


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
    return path.with_name(f".{path.name[:MAX_NAME_PART]}.{owner}-{secrets.randbelow(2**32)}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders for `path` whose processes have ended."""
    pattern = re.compile(re.escape(f".{path.name[:MAX_NAME_PART]}.") + r"(\w{8})-(\d+)-\d+\.tmp")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            with contextlib.suppress(OSError):  # another process may have removed this one
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


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write each row as a line of JSON, as UTF-8 and atomically.

    Args:
        path: the file to write.
        rows: what `json.dumps` accepts.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with atomic_write(path) as temporary:
        # bytes, so that lines end alike on every system
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


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
