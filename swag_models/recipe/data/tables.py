"""Rows of tables that list images: CSV, JSON Lines and Parquet."""

import bz2
import csv
import gzip
import io
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import describe, describe_error
from swag_models.paths import open_regular
from swag_models.recipe.delimiters import find_delimiter
from swag_models.runtime import import_extra

Row = dict[str, Any]

# JSON, UTF-8 and pyarrow raise ValueErrors, whose message has several lines or none; pyarrow also
# what Python's dates and time zones raise for values that they cannot hold. gzip and bz2 raise the
# last two for damaged files.
READ_ERRORS = (
    *(OSError, ValueError, ArithmeticError, LookupError, NotImplementedError),
    *(EOFError, zlib.error),
)
BEYOND_HEADER = ""  # key of the cells of a CSV row that is longer than the header, as a list
TABLE_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open}
MAX_ARRAY_SIZE = 1 << 30  # bytes of a JSON file that is one array, which is read at once
# Usual names of columns, by which the delimiter of a CSV file is found
USUAL_COLUMNS = {"id", "key", "url", "path", "file", "file_name", "filename", "label", "labels"}


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Turn what reading a table raises in the `with` block into a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (*READ_ERRORS, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {describe_error(error)}") from None


def find_table_suffix(path: Path) -> str | None:
    """The key of `ROW_READERS` for a table, which may be compressed; None for another file."""
    name = path.name.removesuffix(".gz").removesuffix(".bz2")
    suffix = Path(name).suffix
    return suffix if suffix in ROW_READERS and (name == path.name or suffix != ".parquet") else None


def read_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a table.

    Args:
        path: a file for which `find_table_suffix` is not None.
        columns: names of columns; a Parquet file yields only these, which saves time, and the names
            of others with None.

    Raises:
        ConfigError: a row or a name of a column is invalid.
        OSError, ValueError: as `table_errors` turns into a ConfigError.
    """
    suffix = find_table_suffix(path)
    assert suffix
    yield from ROW_READERS[suffix](path, columns)


@contextmanager
def _open_text(path: Path, **options: Any) -> Iterator[io.TextIOWrapper]:
    with open_regular(path) as raw:  # a reader of compressed files does not close it
        opener = TABLE_OPENERS.get(path.suffix)
        # utf-8-sig: the byte order mark that spreadsheets write is not part of a column's name
        with io.TextIOWrapper(opener(raw) if opener else raw, "utf-8-sig", **options) as file:
            yield file


def _read_csv(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    known = USUAL_COLUMNS | set(columns or ())
    with _open_text(path, newline="") as file:
        first = file.readline()
        if first.startswith("sep="):  # of Excel
            first = file.readline()
        delimiter = find_delimiter(first, lambda names: len(known.intersection(names)))
        # strict: a quote that is never closed would take all rows after it into one cell
        reader = csv.DictReader(
            itertools.chain([first], file), restkey=BEYOND_HEADER, strict=True, delimiter=delimiter
        )
        # Index columns of spreadsheets have no name.
        _check_columns(path, [name for name in reader.fieldnames or () if name])
        yield from reader


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise ConfigError for a repeated name, whose last column a dict would keep."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"{path} has more than one column {describe(repeated[0])}; rename or remove all but one"
        )


def _read_json(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    with _open_text(path) as file:
        start = file.readline()
        if start.lstrip().startswith("["):
            content = start + file.read(MAX_ARRAY_SIZE)
            if len(content) >= MAX_ARRAY_SIZE:
                raise ConfigError(f"{path} is one array; store one object in each line")
            yield from _check_rows(path, "element", parse_json(content, unique_keys=True))
        else:
            lines = filter(str.strip, itertools.chain([start], file))
            rows = (parse_json(line, unique_keys=True) for line in lines)
            yield from _check_rows(path, "line", rows)


def _check_rows(path: Path, noun: str, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ConfigError(f"{noun} {number} of {path} is not a JSON object")
        yield row


def _read_parquet(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    parquet = import_extra("pyarrow.parquet")
    with open_regular(path) as raw, parquet.ParquetFile(raw) as file:
        names = file.schema_arrow.names
        _check_columns(path, names)
        others = dict.fromkeys(names if columns is not None else ())
        read = None if columns is None else [name for name in names if name in columns]
        for batch in file.iter_batches(columns=read):
            for row in batch.to_pylist():
                yield {**others, **row}


ROW_READERS: dict[str, Callable[[Path, Collection[str] | None], Iterator[Row]]] = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), _read_csv),
    **dict.fromkeys((".jsonl", ".ndjson"), _read_json),
    ".parquet": _read_parquet,
}
