"""Images listed in a table, which assigns each of them to a group."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import describe_error
from swag_models.paths import expand_path, open_regular
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.runtime import import_extra

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class GroupedImages(ImageDataset):
    """The images of a table's rows, in order; the class of an image is its group.

    Attributes:
        column: name of the table's column of groups.
        without_group: number of rows without a group, which are left out.
        without_path: number of other rows without a path, which are left out.
    """

    class_names: tuple[str, ...]
    column: str
    without_group: int
    without_path: int


def open_grouped_images(
    table: str | os.PathLike[str], group_column: str, path_column: str = "path"
) -> GroupedImages:
    """Read a table with a path and a group of each image.

    Rows with a missing or empty group or path are left out and counted.

    Args:
        table: a .csv, .jsonl or .parquet file.
        group_column: name of the column of groups: text, numbers or booleans.
        path_column: name of the column of paths, relative to the table's folder.

    Raises:
        ConfigError: the table cannot be read, or lacks a column.
    """
    path = expand_path(table, "table")
    if path.suffix not in TABLE_READERS:
        raise ConfigError(f"invalid table {path}: allowed: {' '.join(TABLE_READERS)}")
    rows, column_names = list[tuple[str, str]](), dict[str, None]()
    without_group = without_path = 0
    try:
        for number, row in enumerate(TABLE_READERS[path.suffix](path), 1):
            column_names |= dict.fromkeys(row)
            group, image_path = row.get(group_column), row.get(path_column)
            if isinstance(group, (list, dict)):  # .jsonl and .parquet can contain them
                raise ConfigError(
                    f"invalid group {group!r} in row {number} of {path}: allowed: text, a number, "
                    "true or false"
                )
            if group is None or group == "":
                without_group += 1
            elif image_path is None or image_path == "":
                without_path += 1
            else:
                rows.append((str(image_path), str(group)))
    except ConfigError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        # JSON, UTF-8 and pyarrow raise ValueErrors, whose message has several lines or none
        reason = describe_error(error)
        raise ConfigError(f"{path} cannot be read: {reason}") from None
    for name, option in ((group_column, "group"), (path_column, "path")):
        if name not in column_names:
            raise ConfigError(
                f"{path} has no column {name!r}; its columns: {', '.join(column_names) or 'none'}; "
                f"name one of them as --{option}-column"
            )
    # sorted, so that codes do not depend on the order of the rows
    groups = sorted({group for _, group in rows})
    codes = {group: code for code, group in enumerate(groups)}
    return GroupedImages.from_files(
        path.parent,
        [image_path for image_path, _ in rows],
        [(codes[group],) for _, group in rows],
        groups,
        kind="table",
        title=path.name,
        # hash of the rows, not of the files: missing images are counted when they are read
        sha256=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        column=group_column,
        without_group=without_group,
        without_path=without_path,
    )


def _read_csv(path: Path) -> Iterator[Row]:
    # utf-8-sig: the byte order mark that spreadsheets write is not part of a column's name
    with io.TextIOWrapper(open_regular(path), "utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            # DictReader puts cells beyond the header under the key None
            yield {name: cell for name, cell in row.items() if name is not None}


def _read_jsonl(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(open_regular(path), "utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise ConfigError(f"line {number} of {path} is not a JSON object")
                yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    parquet = import_extra("pyarrow.parquet")
    with open_regular(path) as raw, parquet.ParquetFile(raw) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


TABLE_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
