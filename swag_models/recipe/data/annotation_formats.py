"""Labels of images in the formats that data sets are published in.

CSV, JSON Lines and Parquet   a row for each image: a column with its file name, and either a
                              column of labels or a column with 0 or 1 for each class
JSON                          a list of such rows, an object of file names and labels, or COCO's
                              images, annotations and categories

An invalid entry is an error, because leaving it out would change the data.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe, list_names
from swag_models.paths import read_regular
from swag_models.recipe.data.tables import BEYOND_HEADER, ROW_READERS, Row, read_rows, table_errors

ANNOTATION_SUFFIXES = (*ROW_READERS, ".json")
# Names of columns in order of preference, in lower case and with underscores
FILE_COLUMNS = (
    *("file_name", "filename", "file", "image_path", "path", "image", "image_name", "img"),
    *("image_index", "image_id", "imageid", "id"),
)
LABEL_COLUMNS = (
    *("labels", "label", "label_names", "finding_labels", "tags", "classes", "class"),
    *("categories", "category", "targets", "target"),
)
LABEL_SEPARATORS = "|;,"  # of labels in a cell of a CSV file; a space if no cell has any of these
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
COCO_KEYS = ("images", "annotations", "categories")
MAX_JSON_SIZE = 1 << 32  # bytes; COCO's largest file has half a GB


class Entry(NamedTuple):
    """An image and the names of its labels, which may be none."""

    name: str
    labels: tuple[str, ...]


class Annotations(NamedTuple):
    """The content of an annotation file.

    Attributes:
        entries: images and labels, in order; the file name of an image may occur several times.
        classes: names of all classes, in order of their numbers.
        remarks: what the reader assumed or left out, for the user.
    """

    entries: Sequence[Entry]
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()


class _InvalidError(Exception):
    """An entry is invalid; the message says why."""


def read_annotations(path: Path) -> Annotations:
    """Read an annotation file of any format.

    Args:
        path: a file with one of ANNOTATION_SUFFIXES.

    Raises:
        ConfigError: the file cannot be read, is of another format, or has invalid entries, whose
            number the message states.
    """
    if path.suffix not in ANNOTATION_SUFFIXES:
        raise ConfigError(f"invalid annotations {path}: allowed: {' '.join(ANNOTATION_SUFFIXES)}")
    with table_errors(path):
        if path.suffix != ".json":
            return _read_rows(path, list(read_rows(path)))
        content = read_regular(path, MAX_JSON_SIZE + 1)
        if len(content) > MAX_JSON_SIZE:
            raise ConfigError(f"{path} has more than {MAX_JSON_SIZE:,} bytes; split it")
        data = parse_json(content, unique_keys=True)
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        return _read_coco(path, data)
    if isinstance(data, dict):
        entries = _check_entries(path, data.items(), _read_pair)
        return Annotations(entries, _sort_classes(path, entries))
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return _read_rows(path, data)
    raise ConfigError(
        f"{path} is not a list of annotations; allowed: a list of objects with file_name and "
        'labels, an object such as {"a.jpg": ["cat", "dog"]}, or COCO annotations'
    )


def _check_entries(
    path: Path, items: Iterable[Any], read: Callable[[Any], Entry], noun: str = "row"
) -> list[Entry]:
    """Read all entries; raise one ConfigError for all that are invalid.

    Args:
        path: the file.
        items: what `read` converts to an entry; it raises _InvalidError.
        read: converts an item.
        noun: what messages call an item.
    """
    entries, first, count = list[Entry](), "", 0
    for number, item in enumerate(items, 1):
        try:
            entries.append(read(item))
        except _InvalidError as error:
            first, count = first or f"{noun} {number} {error}", count + 1
    if count:
        more = f"; {count - 1:,} more invalid" if count > 1 else ""
        raise ConfigError(f"{path}: {first}{more}")
    return entries


def _sort_classes(path: Path, entries: Iterable[Entry]) -> tuple[str, ...]:
    """Names of all labels, sorted as numbers if all are numbers, otherwise as text."""
    names = {label for entry in entries for label in entry.labels}
    if not names:
        raise ConfigError(f"{path} has no label; give at least one image a label")
    if all(re.fullmatch(r"[0-9]{1,18}", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _read_rows(path: Path, rows: Sequence[Row]) -> Annotations:
    """Read rows, whose labels are in one column or in a column for each class."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name.strip()))
    by_name = {re.sub(r"[ -]", "_", name.strip().lower()): name for name in reversed(columns)}
    file_column = next((by_name[name] for name in FILE_COLUMNS if name in by_name), None)
    if file_column is None:
        raise ConfigError(
            f"{path} has no column of file names; its columns: {list_names(columns) or 'none'}; "
            "name it file_name"
        )
    others = [name for name in columns if name != file_column]
    label_column = next((by_name[name] for name in LABEL_COLUMNS if by_name.get(name)), None)
    if label_column == file_column or not others:
        raise ConfigError(
            f"{path} has no column of labels; name it labels, or give a column with 0 or 1 for "
            "each class"
        )
    if label_column is None:
        entries = _check_entries(path, rows, partial(_read_flags, file_column, others))
        return Annotations(entries, tuple(name.strip() for name in others))
    separator, remarks, is_csv = None, list[str](), path.suffix == ".csv"
    if is_csv:
        separator = _find_separator(row.get(label_column) for row in rows)
    if separator == " ":
        remarks.append(
            f"labels in column {label_column} are separated by spaces (if names have spaces, "
            "separate labels by |)"
        )
    if unused := [name for name in others if name != label_column]:
        remarks.append(f"columns that are not read: {list_names(unused)}")
    read = partial(_read_cell, file_column, label_column, separator, is_csv)
    entries = _check_entries(path, rows, read)
    return Annotations(entries, _sort_classes(path, entries), tuple(remarks))


def _find_separator(cells: Iterable[Any]) -> str | None:
    """The separator of labels in the cells of a CSV file; None if every cell is one label."""
    used = {character for cell in cells if isinstance(cell, str) for character in cell.strip()}
    return next((separator for separator in f"{LABEL_SEPARATORS} " if separator in used), None)


def _read_name(row: Row, column: str) -> str:
    if isinstance(row.get(BEYOND_HEADER), list):
        raise _InvalidError("has more cells than the header; quote cells that contain commas")
    return _check_text(row.get(column), f"file name in column {column}")


def _read_flags(file_column: str, columns: Sequence[str], row: Row) -> Entry:
    """Read a row with a column for each class."""
    name, labels = _read_name(row, file_column), list[str]()
    for column in columns:
        flag = FLAGS.get(str(row.get(column)).strip().lower())
        if flag is None:
            raise _InvalidError(
                f"has {describe(row.get(column))} in column {column}; allowed: 0 or 1, in every "
                "column but that of file names, or a column named labels"
            )
        labels += [column.strip()] if flag else []
    return Entry(name, tuple(labels))


def _read_cell(
    file_column: str, label_column: str, separator: str | None, is_csv: bool, row: Row
) -> Entry:
    """Read a row with a column of labels, which are text in a CSV file, and otherwise a list."""
    name, cell = _read_name(row, file_column), row.get(label_column)
    if is_csv and cell is None:
        raise _InvalidError(f"ends before column {label_column}; leave the cell of no label empty")
    if separator is not None and isinstance(cell, str):
        cell = [part for part in cell.split(separator) if part.strip()]
    return Entry(name, _read_labels(cell))


def _read_pair(pair: tuple[str, Any]) -> Entry:
    """Read a file name with its labels."""
    return Entry(pair[0], _read_labels(pair[1]))


def _read_labels(value: Any) -> tuple[str, ...]:
    """Names of labels in a list, or a single one; None and empty text are no label."""
    if value is None or value == "":
        return ()
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(_check_text(item, "label") for item in values))


def _check_text(value: Any, what: str) -> str:
    """Text or a whole number as text; raise _InvalidError for anything else."""
    text = str(value) if type(value) is int else value
    # "nan" is how missing values of data frames are printed
    if not isinstance(text, str) or not text.strip() or text.strip().lower() == "nan":
        raise _InvalidError(f"has {what} {describe(value)}; allowed: text, whole numbers")
    return text.strip()


def _read_coco(path: Path, data: Mapping[str, Any]) -> Annotations:
    """Read COCO's instances; an image has the categories of its annotations, also of crowds."""
    for key in COCO_KEYS:
        values = data.get(key)
        if not (isinstance(values, list) and all(isinstance(item, dict) for item in values)):
            raise ConfigError(f"{path} has no list of objects {key!r}, as COCO annotations have")
    categories = _index_by_id(path, data["categories"], "name", "category")
    if not categories:
        raise ConfigError(f"{path} has no category; give at least one")
    images = _index_by_id(path, data["images"], "file_name", "image")
    if repeated := [name for name, count in Counter(categories.values()).items() if count > 1]:
        raise ConfigError(
            f"{path} has more than one category {describe(repeated[0])}; rename all but one"
        )
    labels: dict[Any, dict[str, None]] = {identifier: {} for identifier in images}
    strays = 0

    def read(annotation: Row) -> Entry:
        nonlocal strays
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not (_is_id(category) and category in categories):
            raise _InvalidError(
                f"has category_id {describe(category)}, which is not the id of a category"
            )
        if not _is_id(image):
            raise _InvalidError(f"has image_id {describe(image)}; allowed: the id of an image")
        if image in labels:
            labels[image][categories[category]] = None
        else:
            strays += 1
        return Entry("", ())

    _check_entries(path, data["annotations"], read, "annotation")
    entries = [Entry(name, tuple(labels[identifier])) for identifier, name in images.items()]
    remarks = (
        (f"{count_noun(strays, 'annotation')} of images that are not listed",) if strays else ()
    )
    return Annotations(entries, tuple(categories.values()), remarks)


def _index_by_id(path: Path, items: Sequence[Row], field: str, noun: str) -> dict[Any, str]:
    """The text in a field of each object by its id; raises ConfigError for invalid objects."""
    texts: dict[Any, str] = {}

    def read(item: Row) -> Entry:
        identifier = item.get("id")
        if not _is_id(identifier):
            raise _InvalidError(f"has id {describe(identifier)}; allowed: a whole number or text")
        if identifier in texts:
            raise _InvalidError(f"has the id {describe(identifier)} of an earlier one")
        texts[identifier] = _check_text(item.get(field), field)
        return Entry("", ())

    _check_entries(path, items, read, noun)
    return texts


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)
