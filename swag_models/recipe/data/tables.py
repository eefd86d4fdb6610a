"""Rows of tables that list images: CSV, JSON Lines and Parquet."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import describe, describe_error
from swag_models.paths import open_regular
from swag_models.runtime import import_extra

Row = dict[str, Any]

# JSON, UTF-8 and pyarrow raise ValueErrors, whose message has several lines or none; pyarrow also
# what Python's dates and time zones raise for values that they cannot hold
READ_ERRORS = (OSError, ValueError, ArithmeticError, LookupError, NotImplementedError)
BEYOND_HEADER = ""  # key of the cells of a CSV row that is longer than the header, as a list


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Turn what reading a table raises in the `with` block into a ConfigError of one line."""
    try:
        yield
    except ConfigError:
        raise
    except (*READ_ERRORS, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read: {describe_error(error)}") from None


def _read_csv(path: Path) -> Iterator[Row]:
    # utf-8-sig: the byte order mark that spreadsheets write is not part of a column's name
    with io.TextIOWrapper(open_regular(path), "utf-8-sig", newline="") as file:
        # strict: a quote that is never closed would take all rows after it into one cell
        reader = csv.DictReader(file, restkey=BEYOND_HEADER, strict=True)
        # Index columns of spreadsheets have no name.
        _check_columns(path, [name for name in reader.fieldnames or () if name])
        yield from reader


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Raise ConfigError for a repeated name, whose last column a dict would keep."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(
            f"{path} has more than one column {describe(repeated[0])}; rename or remove all but one"
        )


def _read_jsonl(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(open_regular(path), "utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = parse_json(line, unique_keys=True)
                if not isinstance(row, dict):
                    raise ConfigError(f"line {number} of {path} is not a JSON object")
                yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    parquet = import_extra("pyarrow.parquet")
    with open_regular(path) as raw, parquet.ParquetFile(raw) as file:
        _check_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches():
            yield from batch.to_pylist()


ROW_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
