"""Images listed in a table, which assigns each of them to a group."""

import hashlib
import json
import os
from dataclasses import dataclass

from swag_models.errors import ConfigError
from swag_models.paths import expand_path
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.tables import (
    BEYOND_HEADER,
    ROW_READERS,
    find_table_suffix,
    read_rows,
    table_errors,
)


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
    if not find_table_suffix(path):
        raise ConfigError(f"invalid table {path}: allowed: {' '.join(ROW_READERS)}")
    rows, column_names = list[tuple[str, str]](), dict[str, None]()
    without_group = without_path = 0
    with table_errors(path):
        for number, row in enumerate(read_rows(path), 1):
            row.pop(BEYOND_HEADER, None)
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
    for name, option in ((group_column, "group"), (path_column, "path")):
        if name not in column_names:
            raise ConfigError(
                f"{path} has no column {name!r}; its columns: {', '.join(column_names) or 'none'}; "
                f"name one of them as {option}_column="
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
