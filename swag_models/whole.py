"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: Path, name: str | None = None) -> Iterator[Path]:
    """A file beside `path` to write to; it takes the place of `path` at the end, or goes if something fails.

    `name` is what to call it meanwhile: a fixed one leaves at most one behind if the process is killed, and is for those who
    write alone. By default each has its own.
    """
    temporary = path.with_name(name or f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
