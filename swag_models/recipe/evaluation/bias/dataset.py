"""Pictures that a table names, each with the group that the table's maker put it in."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from swag_models.errors import ConfigError
from swag_models.inference.image_sources import ImageRef
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.runtime import import_extra

Row = dict[str, Any]


class GroupedImages(ImageDataset):
    """The pictures of a table's rows, in order; the class of each is its group.

    column: the groups' name in the table. ungrouped, unplaced: rows without a group, and of the others those without a path.
    """

    kind = "table"

    def __init__(
        self, table: Path, column: str, rows: list[tuple[str, str]], ungrouped: int, unplaced: int
    ) -> None:
        self.root, self.title, self.column = table.parent, table.name, column
        self.class_names: tuple[str, ...] = tuple(sorted({group for _, group in rows}))
        self.num_classes = len(self.class_names)
        self.ungrouped, self.unplaced = ungrouped, unplaced
        self.sha256 = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        places = {name: place for place, name in enumerate(self.class_names)}
        self._rows = [(path, places[group]) for path, group in rows]

    def __len__(self) -> int:
        return len(self._rows)

    def files(self) -> list[Path]:
        return [self.root / path for path, _ in self._rows]

    def name(self, index: int) -> str:
        return self._rows[index][0]

    def classes(self, index: int) -> tuple[int, ...]:
        return (self._rows[index][1],)

    def read(self, index: int) -> Image.Image:
        path = self.root / self.name(index)
        image = ImageRef(str(path), path).read()
        assert isinstance(image, Image.Image)
        return image


def open_grouped_images(
    table: str | os.PathLike[str], group_column: str, path_column: str = "path"
) -> GroupedImages:
    """A table (.csv .jsonl .parquet) with a column of pictures' paths, relative to its folder, and one of their groups.

    A group is text, a number or true or false; rows where it is missing or empty are left out and counted. ConfigError names a
    column that is not there, and a table that cannot be read.
    """
    path = Path(table)
    if path.suffix not in READERS:
        raise ConfigError(
            f"groups {path} is no table that can be read; allowed: {' '.join(READERS)}"
        )
    rows, names = list[tuple[str, str]](), dict[str, None]()
    ungrouped = unplaced = 0
    try:
        for number, row in enumerate(READERS[path.suffix](path), 1):
            names |= dict.fromkeys(row)
            group, place = row.get(group_column), row.get(path_column)
            if isinstance(group, (list, dict)):
                raise ConfigError(
                    f"row {number} of {path} has group {group!r}; allowed: text, a number, true or false"
                )
            if group is None or group == "":
                ungrouped += 1
            elif place is None or place == "":
                unplaced += 1
            else:
                rows.append((str(place), str(group)))
    except (
        OSError,
        ValueError,
        csv.Error,
    ) as error:  # those of JSON, UTF-8 and pyarrow are ValueErrors
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or str(error).splitlines()[0]}"
        ) from None
    for name, option in ((group_column, "group"), (path_column, "path")):
        if name not in names:
            raise ConfigError(
                f"{path} has no column {name!r}, but {', '.join(names) or 'no rows'}; name its {option} column"
            )
    return GroupedImages(path, group_column, rows, ungrouped, unplaced)


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            yield {
                name: cell for name, cell in row.items() if name is not None
            }  # None has what is beyond the names


def _read_json(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ConfigError(f"line {number} of {path} is not a JSON object")
                yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    parquet = import_extra("pyarrow.parquet")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
