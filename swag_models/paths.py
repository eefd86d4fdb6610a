"""Paths that users pass, and regular files apart from devices and pipes. Imports no torch."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from swag_models.errors import ConfigError
from swag_models.formatting import describe

MAX_NAME = 255  # bytes of a file name on common file systems

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand_path(path: str | os.PathLike[str], option: str = "path") -> Path:
    """Return a path that a user passed, with `~` replaced by the home folder.

    Args:
        path: a text or a path object; `~` and `~user` are kept where no home folder is known.
        option: the name of the argument, for the message.

    Raises:
        ConfigError: it is of another type, or no file can have this name.
    """
    try:
        text = os.fspath(path)
        # Raises for characters that no file name has, for example half of a surrogate pair.
        encoded = os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text, encoded = "", b""
    parts = encoded.split(os.fsencode(os.sep))
    if not isinstance(text, str) or not text or b"\0" in encoded or max(map(len, parts)) > MAX_NAME:
        raise ConfigError(
            f"invalid {option} {describe(path)}: allowed: the path of a file or folder"
        )
    return Path(os.path.expanduser(text))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading if it is a regular file, or a link to one.

    Reading a named pipe would wait for a writer, perhaps forever; a device may have no end.

    Args:
        path: the file.

    Raises:
        OSError: it does not exist, cannot be read or is not a regular file; the message says what
            it is.
    """
    # Checked before opening, because opening a device can have effects, and again afterwards,
    # because another process may have replaced the file. O_NONBLOCK: a pipe opens at once.
    check_regular(os.stat(path), path)
    file = open(path, "rb", opener=_open_nonblocking)  # noqa: SIM115
    try:
        check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise OSError if a status is not that of a regular file.

    Args:
        status: from `os.stat` or `os.fstat`.
        path: what messages call the file.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "special")
        raise OSError(f"{os.fspath(path)} is {kind}, not a regular file")


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
