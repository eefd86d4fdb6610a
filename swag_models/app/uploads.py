"""Uploaded files: each can be used only by the browser and the session that uploaded it."""

import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from swag_models.errors import ImageError
from swag_models.image_formats import IMAGE_SUFFIXES
from swag_models.paths import open_regular

MAX_FILES = 1000
MAX_UPLOAD_BYTES = 1 << 30  # of all files together


@dataclass
class UploadedFile:
    """An uploaded file.

    Attributes:
        size: in bytes.
        owner: who uploaded it, as identified by a cookie or a password; "" if unknown.
        session: the session of Gradio that used it first; "" until then.
    """

    size: int
    owner: str
    session: str = ""


class Uploads:
    """The files that requests may refer to. The oldest are deleted if there are too many.

    A request can contain any path. It is therefore looked up among the paths of stored
    uploads, which contain a random part; no other path is accessed on the disk.

    Args:
        folder: folder for the files.
        max_files: the largest number of files to keep.
        max_bytes: the largest total size to keep.
    """

    def __init__(
        self, folder: Path, max_files: int = MAX_FILES, max_bytes: int = MAX_UPLOAD_BYTES
    ) -> None:
        self.folder = folder.resolve()
        self.max_files = max_files
        self.max_bytes = max_bytes
        self.shared: set[str] = set()
        self.files: OrderedDict[str, UploadedFile] = OrderedDict()
        self.lock = Lock()

    def share(self, paths: Iterable[Path]) -> None:
        """Let every session use these files, which the page offers as examples."""
        self.shared |= {str(path) for path in paths}

    def add(self, file: BinaryIO, name: str, owner: str) -> str:
        """Store an uploaded file.

        Args:
            file: its content.
            name: its name on the user's machine, of which only the suffix is used.
            owner: who uploaded it.

        Returns:
            The path that requests refer to it by.

        Raises:
            OSError: it cannot be written.
        """
        suffix = Path(name).suffix.lower()
        directory = self.folder / secrets.token_hex(16)
        directory.mkdir(mode=0o700)
        path = directory / f"image{suffix if suffix in IMAGE_SUFFIXES else ''}"
        try:
            with path.open("xb") as target:
                shutil.copyfileobj(file, target)
                size = target.tell()
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        with self.lock:
            self.files[str(path)] = UploadedFile(size, owner)
            while len(self.files) > 1 and (
                len(self.files) > self.max_files
                or sum(upload.size for upload in self.files.values()) > self.max_bytes
            ):
                oldest, _ = self.files.popitem(last=False)
                shutil.rmtree(Path(oldest).parent, ignore_errors=True)
        return str(path)

    def may_view(self, path: str, owner: str) -> bool:
        """Whether a file may be sent to this owner."""
        with self.lock:
            upload = self.files.get(path)
        return path in self.shared or (upload is not None and upload.owner == owner)

    def open(self, value: Any, owner: str, session: str) -> tuple[BinaryIO, str]:
        """Open the uploaded file that a request refers to.

        Args:
            value: the value in the request: a dict with "path" and perhaps "orig_name".
            owner: who sent the request.
            session: the session of Gradio in the request. The first that uses a file keeps it.

        Returns:
            The open file, and its name on the user's machine.

        Raises:
            ImageError: the value is not an uploaded file of this session. The message does not
                reveal whether the file exists.
        """
        path = value.get("path") if isinstance(value, dict) else None
        rejected = ImageError(f"{path!r} is not an uploaded image: upload the file, then choose it")
        if not isinstance(path, str):
            raise rejected
        with self.lock:
            upload = self.files.get(path)
            if path not in self.shared:
                if upload is None or upload.owner != owner or upload.session not in ("", session):
                    raise rejected
                upload.session = session
        try:
            # another process may have replaced the file by a link, a named pipe or a device
            if os.path.realpath(path) != path:
                raise rejected
            file = open_regular(path)
        except (OSError, ValueError):
            raise rejected from None
        name = value.get("orig_name")
        return file, name if isinstance(name, str) and name else Path(path).name
