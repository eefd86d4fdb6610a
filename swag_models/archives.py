"""Tar and zip files, which may be damaged or made to exhaust memory.

`tarfile` does not check what a header says. A damaged header can raise errors of many kinds, or end
the archive as if it were complete. A negative size makes it read the same member forever. A long
name or an extended header of a compressed archive can have any size.
"""

import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.paths import is_system_path, open_regular

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without liblzma
    LZMAError = OSError  # type: ignore[assignment, misc]

MAX_HEADER = 1 << 20  # bytes of a long name or an extended header; paths have at most 4,096
EXTENSIONS = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}
# What tarfile and the modules of compression raise for a damaged file.
TAR_ERRORS = (
    OSError,
    EOFError,
    ValueError,  # fields that are not numbers or not text
    TypeError,  # a stream of gzip that ends in its header
    OverflowError,  # sizes of more than 64 bits
    LookupError,
    MemoryError,
    RecursionError,  # thousands of extended headers without a member
    tarfile.TarError,
    zlib.error,
    LZMAError,
)
# What zipfile raises for a damaged archive, an encrypted one, and an unknown compression.
# NotImplementedError is a RuntimeError.
ZIP_ERRORS = (*TAR_ERRORS, RuntimeError, zipfile.BadZipFile, struct.error)


def is_zip(path: Path) -> bool:
    """Whether a file has the directory of a zip archive at its end.

    zipfile.is_zipfile raises BadZipFile for some damaged files.
    """
    try:
        return zipfile.is_zipfile(path)
    except ZIP_ERRORS:
        return False


class _Header(tarfile.TarInfo):
    """A header that is checked: intact, and with an extension small enough to read into memory."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the block of zeros that ends an archive
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("unexpected end of data") from None
        except tarfile.HeaderError as error:
            # tarfile would accept the members so far as the whole archive.
            raise tarfile.ReadError(str(error)) from None

    @classmethod
    def frombuf(cls, *arguments: Any) -> Any:
        return _bound_extension(super().frombuf(*arguments))

    @classmethod
    def _frombuf(cls, *arguments: Any, **options: Any) -> Any:
        # The releases of Python from 2026 on call this method instead of frombuf.
        return _bound_extension(super()._frombuf(*arguments, **options))  # type: ignore[misc]


def _bound_extension(header: tarfile.TarInfo) -> tarfile.TarInfo:
    if header.type in EXTENSIONS and not 0 <= header.size <= MAX_HEADER:
        raise tarfile.ReadError(f"a header of {header.size} bytes")
    return header


def open_tar(file: Any, mode: str) -> Any:
    """Open a tar file for `walk_members`.

    Args:
        file: a binary stream.
        mode: as for `tarfile.open`, for example "r:" or "r|*".

    Returns:
        The `tarfile.TarFile`; a context manager.
    """
    opener: Any = tarfile.open
    return opener(fileobj=file, mode=mode, tarinfo=_Header)


def walk_members(archive: Any, left_out: Counter[str] | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield every member of an archive from `open_tar`, in order, except those of systems.

    Args:
        archive: the open archive.
        left_out: increased for each member that `paths.is_system_path`, such as "._dog.jpg".

    Raises:
        tarfile.ReadError: a header is damaged, or the archive does not end with a block of zeros.
            Any other of TAR_ERRORS may be raised as well.
    """
    end = 0
    while member := archive.next():
        archive.members.clear()  # otherwise the list grows with every member of a long shard
        # The size in an extended header replaces that in the header itself.
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
        if member.issparse():  # its content is not stored in one piece
            raise tarfile.ReadError(f"{member.name!r} is a sparse file")
        end = archive.offset
        if not is_system_path(member.name):
            yield member
        elif left_out is not None:
            left_out["system file in a tar file"] += 1


def describe_member(member: tarfile.TarInfo) -> str:
    """Return the kind of a member that is not a file, for example "link"."""
    if member.issym() or member.islnk():
        return "link"
    return "named pipe" if member.isfifo() else "device"


def find_members(path: Path, left_out: Counter[str]) -> list[tuple[str, tuple[int, int]]]:
    """List the files in an uncompressed tar file.

    Args:
        path: the tar file.
        left_out: increased for each member without content of its own, such as a link, and for
            those of systems, see `paths.is_system_path`; the keys are their kinds.

    Returns:
        (name, (offset, size)) of each file, in bytes, in the order of the archive.

    Raises:
        ConfigError: the file cannot be read, is compressed, or is truncated.
    """
    try:
        with open_regular(path) as file, open_tar(file, "r:") as archive:
            members = []
            for member in walk_members(archive, left_out):
                if member.isfile():
                    members.append((member.name, (member.offset_data, member.size)))
                elif not member.isdir():
                    left_out[f"{describe_member(member)} in a tar file"] += 1
    except TAR_ERRORS as error:
        raise ConfigError(
            f"{path} cannot be read as an uncompressed tar file: {describe_error(error)}"
        ) from None
    return members
