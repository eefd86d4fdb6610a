"""The character that separates the columns of a CSV file."""

import csv
from collections.abc import Callable, Sequence

DELIMITERS = ",;\t|"


def find_delimiter(header: str, count_known: Callable[[Sequence[str]], int]) -> str:
    """Find the delimiter with which a header has most known names; then, with most names.

    Args:
        header: the first line.
        count_known: names -> how many of them are names of columns that the reader looks for.
    """

    def count_names(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return count_known(names), len(names)

    return max(DELIMITERS, key=count_names)
