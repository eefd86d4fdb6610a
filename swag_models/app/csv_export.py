"""Tables as CSV (RFC 4180) that spreadsheet programs open without running anything in them."""

import csv
import io
from collections.abc import Iterable, Sequence

# A cell that begins so may be a formula: https://owasp.org/www-community/attacks/CSV_Injection
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001  # full-width forms count too
BYTE_ORDER_MARK = "\ufeff"  # without it, Excel does not read UTF-8


def format_csv(header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> bytes:
    """Format a table as CSV in UTF-8.

    Args:
        header: names of the columns.
        rows: one value per column. A text that a spreadsheet could take for a formula gets an
            apostrophe in front; numbers are written as they are, and None as an empty cell.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([_make_cell(value) for value in row] for row in rows)
    return (BYTE_ORDER_MARK + text.getvalue()).encode("utf-8", "backslashreplace")


def _make_cell(value: str | float | None) -> str | float | None:
    # the first character after spaces, because some programs remove these
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA_STARTS):
        return f"'{value}"
    return value
