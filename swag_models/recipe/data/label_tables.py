"""The labels that `recipe curate` writes, as a data set without images."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swag_models.errors import ConfigError
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.paths import expand_location
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.data.shards import Shards, read_vocabulary
from swag_models.recipe.data.tables import table_errors
from swag_models.recipe.data.unlabelled import refuse_image
from swag_models.runtime import import_extra

LABELS_FILE = "labels.parquet"


def find_labels(data: Shards | ImageDataset) -> Path | None:
    """Return the path of labels.parquet, given itself or its folder; None for other data."""
    if isinstance(data, (str, os.PathLike)):
        given = Path(expand_location(data))
        for path in (given, given / LABELS_FILE):
            if path.name == LABELS_FILE and path.exists():
                return path
    return None


def open_labels(path: Path) -> ImageDataset:
    """Open a table of labels with its vocabulary.

    Args:
        path: labels.parquet, a file or a folder of files, beside vocabulary.parquet.

    Returns:
        A data set whose images have the ids as names, but cannot be read, and whose epochs follow
        the repeat factors.

    Raises:
        ConfigError: the table or the vocabulary is missing or damaged.
    """
    vocabulary = path.with_name(VOCABULARY_FILE)
    if not vocabulary.is_file():
        raise ConfigError(f"{vocabulary} does not exist; recipe curate writes it beside {path}")
    hashtags = [row["hashtag"] for row in read_vocabulary(vocabulary)]
    parquet = import_extra("pyarrow.parquet")
    with table_errors(path):
        columns = ["id", "classes", "repeat"]
        rows = parquet.read_table(path, columns=columns).to_pylist()
    digest = hashlib.sha256()
    for row in rows:
        _check_row(path, row, len(hashtags))
        digest.update(f"{row['id']!r} {row['classes']} {row['repeat']}\n".encode())
    if not any(row["repeat"] for row in rows):
        raise ConfigError(f"{path} has no image that is in an epoch; curate again")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return ImageDataset(
        kind="labels",
        root=path.parent,
        title=path.parent.resolve().name,
        names=[row["id"] for row in rows],
        labels=[tuple(row["classes"]) for row in rows],
        class_names=tuple(hashtags),
        num_classes=len(hashtags),
        sha256=digest.hexdigest(),
        files=[str(file.relative_to(path.parent)) for file in files],
        reader=refuse_image,
        repeats=[float(row["repeat"]) for row in rows],
    )


def _check_row(path: Path, row: Mapping[str, Any], num_classes: int) -> None:
    classes, repeat = row["classes"], row["repeat"]
    if not (
        isinstance(row["id"], str)
        and isinstance(classes, list)
        and all(type(number) is int and 0 <= number < num_classes for number in classes)
        and isinstance(repeat, (int, float))
        and math.isfinite(repeat)
        and repeat >= 0
    ):
        raise ConfigError(
            f"{path} has the row {row}; allowed: id (text), classes (numbers below {num_classes}) "
            "and repeat (0 or more): curate again"
        )
