"""Format text for users: file names, lists of names, Markdown tables. Imports no torch."""

import os
from collections.abc import Iterable, Sequence


def printable(name: str | os.PathLike[str]) -> str:
    """Return a file name as text that any file and terminal accepts.

    Args:
        name: a name as the operating system returns it; bytes that are not UTF-8 become backslash
            escapes.
    """
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def list_names(names: Sequence[str], limit: int = 8) -> str:
    """Join names with commas; after the first `limit`, give only the number of the rest."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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
