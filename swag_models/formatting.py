"""Format text for users: file names, lists of names, Markdown tables. Imports no torch."""

import os
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import LogRecord

ELLIPSIS = " ... "  # what replaces the middle of a text that is too long
MAX_RECORD = 499  # characters of a log message
MAX_VALUE, MAX_SHOWN_ITEMS = 100, 10  # characters of a value in a message, items of a list


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file name as text that any file and terminal accepts.

    Args:
        name: a name as the operating system or JSON returns it; bytes that are not UTF-8 become
            backslash escapes.
    """
    text = os.fspath(name)
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that JSON allows, and that stand for no byte
        content = text.encode("utf-8", "surrogatepass")
    return content.decode("utf-8", "backslashreplace")


def escape_unprintable(text: str, limit: int | None = None) -> str:
    r"""Return text as one line that cannot control a terminal.

    Text that comes from a file or a server can contain line breaks, escape sequences that move the
    cursor, and characters that reverse the direction of writing.

    Args:
        text: any text. Characters that are not printable (`str.isprintable`) become backslash
            escapes, for example `\n` and `\x1b`.
        limit: the largest number of characters to return; a longer text loses its middle, because
            the end of a message says how to solve the problem. None for no limit.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escape_character(c) for c in text)
    if limit is not None and len(text) > limit:
        end = (limit - len(ELLIPSIS)) // 2
        text = text[: limit - len(ELLIPSIS) - end] + ELLIPSIS + text[-end:]
    return text


def escape_record(record: "LogRecord") -> bool:
    """Escape and shorten the message of a log record, in place; a filter for loggers.

    Args:
        record: its arguments are names from files, servers and callers.

    Returns:
        True, to keep the record.
    """
    record.msg, record.args = escape_unprintable(record.getMessage(), MAX_RECORD), ()
    return True


def describe(value: object) -> str:
    """Return what a message calls a value of any type: a short literal, or the name of its type.

    Args:
        value: anything, also a number with more digits than Python converts to text.
    """
    kind = f"of type {escape_unprintable(type(value).__name__, MAX_VALUE)}"
    try:
        is_short = isinstance(value, (list, tuple)) and len(value) <= MAX_SHOWN_ITEMS
        if not (is_short or isinstance(value, (str, int, float, complex, bytes, NoneType))):
            return kind
        return escape_unprintable(repr(value), MAX_VALUE)
    except ValueError:
        # an int of more than 4300 digits, or a method of an object as below
        return "with thousands of digits" if type(value) is int else kind
    except Exception:  # whatever a method of an object of the user raises
        return kind


def describe_error(error: BaseException) -> str:
    """Return the reason in an error, in one line: without the number and file of an OSError."""
    try:
        text = str(getattr(error, "strerror", None) or error)
    except Exception:  # whatever a method of an exception of the user raises
        text = ""
    return next(iter(text.splitlines()), type(error).__name__)


def _escape_character(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def list_names(names: Sequence[str], limit: int = 8) -> str:
    """Join names with commas; after the first `limit`, give only the number of the rest."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def count_noun(number: float | None, singular: str, plural: str = "") -> str:
    """Return a number and its noun: "1 image", "2 images", "no images".

    Args:
        number: at least 0; None for none.
        singular: the noun for 1; words after it ("image is") need their own plural.
        plural: for all other numbers; by default the singular with s, or es after an s.
    """
    regular = f"{singular}es" if singular.endswith("s") else f"{singular}s"
    count = "no" if number is None else f"{number:,.15g}"
    return f"{count} {singular if number == 1 else plural or regular}"


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table, without a final newline.

    Args:
        header: one title per column.
        rows: one value per column. `|` and line breaks in a cell are escaped, because either would
            end the cell.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escape_cell, cells))} |" for cells in lines)


def _escape_cell(cell: object) -> str:
    return str(cell).replace("|", r"\|").replace("\n", " ")


def spell_license(identifier: str) -> str:
    """An SPDX identifier in its usual spelling; other texts as they are."""
    is_upper = identifier.startswith("cc-") or identifier in ("mit", "cc0-1.0")
    return {"apache-2.0": "Apache-2.0"}.get(
        identifier, identifier.upper() if is_upper else identifier
    )
