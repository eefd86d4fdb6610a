"""Files that appear whole or not at all, and one line where they cannot."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swag_models.errors import OutputError, SwagModelsError


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


@contextmanager
def explain_writing(path: Path, *, kept: bool = False) -> Iterator[None]:
    """Turn what the disk refuses into an OutputError of one line; `kept` if the next run goes on with what is done."""
    try:
        yield
    except SwagModelsError:
        raise
    except OSError as error:
        more = "; what is done is kept, run again to go on" if kept else ""
        raise OutputError(f"{path} cannot be written: {error.strerror or error}{more}") from None
