"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` at the end, or goes if something fails.

    `alone` is for those who hold a lock: the file then has the same name every time, so that a killed process leaves at most
    one behind, which the next takes over. By default each has its own.
    """
    temporary = path.with_name(f".{path.name if alone else uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
