"""Paths that users pass, and regular files apart from devices and pipes. Imports no torch."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from swag_models.errors import ConfigError, argument_errors
from swag_models.formatting import count_noun, describe, describe_error

MAX_NAME = 255  # bytes of a file name on common file systems

# Files and folders that systems and tools write beside those of the user, case-folded; they contain
# thumbnails, copies and metadata. macOS also writes a file "._name" for each file "name".
SYSTEM_NAMES = frozenset(
    {
        # macOS
        *("__macosx", ".ds_store", ".appledouble", ".appledb", ".appledesktop", ".localized"),
        *(".spotlight-v100", ".fseventsd", ".trashes", ".temporaryitems"),
        *(".documentrevisions-v100", ".lsoverride", "network trash folder", "icon\r"),
        # Windows
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("$recycle.bin", "system volume information"),
        # network storage: Synology, QNAP, NetApp, and Linux
        *("@eadir", "#recycle", "#snapshot", "@tmp", ".@__thumb", "@recycle", ".@upload_cache"),
        *(".snapshot", ".snapshots", "~snapshot", ".trash", "lost+found", ".directory"),
        # tools
        *(".ipynb_checkpoints", "__pycache__", ".git", ".svn", ".hg", ".cache", ".thumbnails"),
        *(".picasa.ini", ".picasaoriginals", ".dropbox", ".dropbox.cache", ".stfolder", ".sync"),
    }
)

FILE_KINDS = {
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
    shown: object = path
    try:
        with argument_errors(option, path):
            text = os.fspath(path) if hasattr(type(path), "__fspath__") else path
        if not isinstance(text, str):
            raise TypeError
        shown = text = str.__str__(text)  # not a subclass
        # Raises for characters that no file name has, for example half of a surrogate pair.
        encoded = os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text, encoded = "", b""
    parts = encoded.split(os.fsencode(os.sep))
    is_long = max(map(len, parts)) > MAX_NAME
    if not text or b"\0" in encoded or is_long:
        limit = f", with names of at most {MAX_NAME} bytes" if is_long else ""
        raise ConfigError(
            f"invalid {option} {describe(shown)}: allowed: the path of a file or folder{limit}"
        )
    return Path(os.path.expanduser(text))


def is_system_name(name: str) -> bool:
    """Whether a file or folder is one of `SYSTEM_NAMES`, or a companion file of macOS."""
    return name.casefold() in SYSTEM_NAMES or name.startswith(("._", ".Trash-", ".nfs"))


def is_system_path(path: str) -> bool:
    """Whether a name in an archive is that of a system file, or is in a system folder."""
    return any(map(is_system_name, path.split("/")))


def walk_files(
    folder: Path, is_wanted: Callable[[str], bool], left_out: Counter[str]
) -> Iterator[Path]:
    """Find files in a folder, at any depth, and in the folders that links in it lead to.

    A folder is searched once, under its own name if that is in `folder`. A link to a folder above
    is not followed, because it would lead back. Files and folders of systems are left out; see
    `is_system_name`.

    Args:
        folder: the folder.
        is_wanted: file name -> whether to find it.
        left_out: increased for each file and link that is left out; the keys are their kinds.

    Yields:
        The files, folder by folder, each sorted by name.

    Raises:
        ConfigError: a folder cannot be searched.
    """

    def reject(error: OSError) -> NoReturn:
        raise ConfigError(f"{error.filename} cannot be searched: {error.strerror}")

    tops, searched = [folder], set[tuple[int, int]]()
    for top in tops:  # grows
        for root, folders, names in os.walk(top, onerror=reject):
            try:
                status = os.stat(root)
            except OSError as error:  # it was deleted after it was listed
                reject(error)
            identity = (status.st_dev, status.st_ino)
            # in place: os.walk continues with these
            own = sorted(name for name in folders if not is_system_name(name))
            if others := len(folders) - len(own):
                left_out["system folder"] += others
            folders[:] = own
            if identity in searched:
                left_out["link to a searched folder"] += 1
                folders.clear()
                continue
            searched.add(identity)
            for link in [name for name in folders if os.path.islink(os.path.join(root, name))]:
                target = os.path.realpath(os.path.join(root, link))
                above = (os.path.realpath(folder), os.path.realpath(root))
                if any(Path(path).is_relative_to(target) for path in above):
                    left_out["link to a folder above"] += 1
                else:
                    tops.append(Path(root, link))
            for name in sorted(names):
                if is_system_name(name):
                    left_out["system file"] += 1
                elif is_wanted(name):
                    yield Path(root, name)
                else:
                    left_out[os.path.splitext(name)[1].lower() or "without a suffix"] += 1


def describe_left_out(left_out: Counter[str]) -> str:
    """Return a list of what was left out, for example "3 .txt, 1 .heic", most frequent first."""
    kinds = (+left_out).most_common(8)  # counts above 0
    rest = left_out.total() - sum(count for _, count in kinds)
    text = ", ".join(f"{count} {kind}" for kind, count in kinds)
    return text + (f", {count_noun(rest, 'other')}" if rest else "")


def expand_location(source: str | os.PathLike[str], option: str = "data") -> str:
    """Return a path as `expand_path` does, or a URL or `pipe:` command unchanged, as text."""
    text = source if isinstance(source, str) else ""
    if "://" not in text and not text.startswith("pipe:"):
        expand_path(source, option)
        text = os.path.expanduser(os.fspath(source))
    return text


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


def read_regular(path: str | os.PathLike[str], size: int = -1) -> bytes:
    """Return the content of a regular file; raises as `open_regular`.

    Args:
        path: the file.
        size: the largest number of bytes to read; -1 for all. One byte more than is allowed shows
            that a file is too large.
    """
    with open_regular(path) as file:
        return file.read(size)


def split_lines(content: bytes) -> list[str]:
    """Return the lines of a text in UTF-8, with or without a byte order mark.

    Lines end with a line feed, a carriage return or both. Unlike with `str.splitlines`, Unicode's
    other separators are part of a line.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def read_lines(path: str | os.PathLike[str], fix: str, title: object = None) -> list[str]:
    """Return the lines of a text file that a user gives, see `split_lines`.

    Args:
        path: the file.
        fix: what to pass instead, for the message.
        title: what the message calls the file; by default its path.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return split_lines(read_regular(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = describe_error(error) if isinstance(error, OSError) else "it is not UTF-8"
        name = path if title is None else title
        raise ConfigError(f"{name} cannot be read: {reason}; pass {fix}") from None


def require_regular(path: Path) -> None:
    """Raise ConfigError if a path exists and is not a regular file, for libraries that open it."""
    try:
        check_regular(os.stat(path), path)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        pass  # the library explains these
    except OSError as error:
        raise ConfigError(f"{error}; give another one") from None


def check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise OSError if a status is not that of a regular file.

    Args:
        status: from `os.stat` or `os.fstat`.
        path: what messages call the file.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = FILE_KINDS.get(stat.S_IFMT(status.st_mode), "special")
        raise OSError(f"{os.fspath(path)} is {kind}, not a regular file")


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
