"""Text for people: printable names and Markdown tables. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence


def printable(name: str | os.PathLike[str]) -> str:
    """A file name as text that every file and terminal can hold: bytes that are not UTF-8 become backslash escapes."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; `|` and line breaks in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escape, cells))} |" for cells in lines)


def _escape(cell: object) -> str:
    return " ".join(str(cell).replace("|", r"\|").split("\n"))
