"""What the command prints: data on stdout, messages on stderr, on any kind of terminal."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from swag_models.errors import MAX_MESSAGE, OutputError
from swag_models.formatting import escape_unprintable
from swag_models.runtime import read_environment

PROGRAM = "swag-models: "  # begins every message


class _Messages(io.TextIOWrapper):
    """A stderr that drops what cannot be written, for example on a full disk.

    A message or a progress bar that cannot be shown must not stop the work.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Make stdout and stderr of this process accept any text, and open those that are closed."""
    with contextlib.suppress(OSError):
        # Otherwise a file that is opened later would get the number of a closed one, and with it
        # what other libraries print.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Not a stream that another program put in its place, for example a notebook.
    stderr = sys.__stderr__
    if stderr is not None and stderr is sys.stderr:
        file = open(2, "wb", closefd=False)  # noqa: SIM115
        sys.stderr = _Messages(file, stderr.encoding, "backslashreplace", line_buffering=True)


def print_message(message: object) -> None:
    """Print a message to the user, as one line of at most MAX_MESSAGE characters on stderr."""
    text = escape_unprintable(str(message), MAX_MESSAGE - len(PROGRAM))
    with contextlib.suppress(OSError):
        print(PROGRAM + text, file=sys.stderr)


def print_line(*cells: object) -> None:
    """Print one line of data on stdout, with tabs between cells and unprintable text escaped."""
    print_data("\t".join(escape_unprintable(str(cell)) for cell in cells))


def print_line_once(*cells: object) -> None:
    """Print a line of data in the first process of torchrun only, where every process calls it."""
    if read_environment("RANK", 0) == 0:
        print_line(*cells)


def print_text(text: str) -> None:
    """Print several lines of data on stdout; what is not printable in them is escaped."""
    print_data("\n".join(map(escape_unprintable, text.split("\n"))))


def print_data(text: str) -> None:
    """Print data on stdout exactly as they are, for example JSON.

    Raises:
        OutputError: stdout cannot be written, for example because its disk is full.
    """
    with _stdout_errors():
        print(text, flush=True)


def flush_data() -> None:
    """Write what is still buffered for stdout; raises as `print_data`."""
    if sys.stdout is not None:
        with _stdout_errors():
            sys.stdout.flush()


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    """Raise OutputError for an error of writing to stdout in the `with` block."""
    try:
        yield
    except BrokenPipeError:  # the program that reads stdout, for example `head`, has ended
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}") from None


def discard_data() -> None:
    """Drop what is buffered for stdout: Python flushes it at exit, which would fail again."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
