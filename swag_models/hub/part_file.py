"""The file of an unfinished download, which any later process can resume.

Bytes are only ever appended to a `.part` file, whose name contains the validator (ETag or date) of
the remote version. A process claims a part file by renaming it, not by a lock, because
file locks are unreliable on network disks. If two processes do write to the same part,
both write the same bytes at the same offsets.
"""

import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote

from swag_models.hub.progress import make_bar
from swag_models.spec import Progress

CHUNK_SIZE = 1 << 16  # bytes; the most that is read at once
MAX_VALIDATOR_LENGTH = 150  # characters; file names end at 255 bytes on most file systems


class PartFile:
    """A file that is being downloaded.

    Attributes:
        path: path of the file, which does not exist before `start`.
        size: bytes downloaded so far.
        digest: SHA-256 of these bytes.
        validator: ETag or date of the remote version that they belong to, "" if unknown.
        num_responses: number of responses that they are from. A part of an earlier process counts
            as two, since it may be of several, and may have been damaged on the disk.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self.reset()

    def claim(self) -> None:
        """Take over the longest earlier part that can be resumed, if there is one."""
        earlier_parts = sorted(self.folder.glob(f"{self.key}.*.*.part"), key=_size, reverse=True)
        for path in earlier_parts:
            validator = unquote(path.name.removesuffix(".part").split(".", 2)[2])
            if not validator or not _size(path):
                continue
            self.start(validator, create=False)
            try:
                os.rename(path, self.path)
                with self.path.open("rb") as file:
                    while chunk := file.read(CHUNK_SIZE):
                        self.digest.update(chunk)
                        self.size += len(chunk)
            except OSError:  # another process claimed it first, or Windows keeps open files
                self.reset()
                continue
            self.num_responses = 2
            break

    def start(self, validator: str, create: bool = True) -> None:
        """Choose the path of a new part of the remote version `validator` ("" if unknown)."""
        name = quote(validator, safe="")
        self.validator = validator if len(name) < MAX_VALIDATOR_LENGTH else ""
        suffix = name if self.validator else ""
        # A unique name, so that processes never share a file, even where locks do not work.
        self.path = self.folder / f"{self.key}.{uuid.uuid4().hex}.{suffix}.part"
        if create:
            self.path.touch(exist_ok=False)

    def reset(self) -> None:
        """Start over with no bytes; files on disk stay."""
        self.path = self.folder / f"{self.key}.none"
        self.validator = ""
        self.size = 0
        self.digest = hashlib.sha256()
        self.num_responses = 0

    def discard(self) -> None:
        """Start over with no bytes and delete the file."""
        self.path.unlink(missing_ok=True)
        self.reset()

    def extend(
        self, pieces: Iterable[bytes], total: int | None, label: str, progress: Progress
    ) -> None:
        """Append bytes to the file and flush it to disk.

        Args:
            pieces: the bytes, in order.
            total: size of the complete file in bytes, None if unknown.
            label: text of the progress bar.
            progress: whether to draw a bar, or the tqdm class to draw it with.
        """
        with (
            make_bar(
                progress, desc=label, total=total, initial=self.size, unit="B", unit_scale=True
            ) as bar,
            self.path.open("r+b") as file,
        ):
            file.seek(self.size)
            self.num_responses += 1
            for piece in pieces:
                file.write(piece)
                file.flush()  # a killed process loses at most one piece
                self.digest.update(piece)
                self.size += len(piece)
                if total is not None and self.size > total:
                    break
                bar.update(len(piece))
            os.fsync(file.fileno())


def remove_parts(folder: Path, key: str) -> None:
    """Delete the part files of `key`, once its file is complete."""
    for path in folder.glob(f"{key}.*.part"):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Size of a file in bytes; 0 if another process has removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
