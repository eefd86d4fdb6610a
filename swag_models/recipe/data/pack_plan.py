"""Decide which image is packed into which shard, before any image is read.

Samples are sorted by a hash of seed and id, so that each shard is a random sample of the whole
data, and are split into shards of equal length. A shard then depends only on its own samples: an
unfinished one can be rewritten alone, and any number of processes writes the same bytes.
"""

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from swag_models.atomic import atomic_write, write_text
from swag_models.errors import ConfigError
from swag_models.formatting import describe, list_names, printable
from swag_models.image_formats import is_image_name
from swag_models.recipe.data.annotation_formats import read_annotations
from swag_models.recipe.data.image_index import ImageLocation, find_locations
from swag_models.recipe.data.image_keys import URLS_FILE, describe_keys, join_labels
from swag_models.recipe.data.manifest import MAX_CLASSES, MAX_REPEAT
from swag_models.recipe.database import duckdb_errors
from swag_models.runtime import import_extra

PLAN_FILE = "plan.parquet"
COUNT_STEPS = 2**16  # repeat factors are counted in steps of 1 / COUNT_STEPS
ANNOTATION_FILES = (".csv", ".json", ".jsonl")  # of labels by name; a Parquet file is a table
LOCATIONS_FILE = "locations.parquet"
REJECTS_FILE = "rejects.jsonl"
# Types of DuckDB; one that is empty in all rows has the type NULL or INTEGER.
COLUMN_TYPES = {
    "id": (r"VARCHAR|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?", "text or whole numbers"),
    "classes": (r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?\[\]", "lists of whole numbers"),
    "repeat": (r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL.*", "numbers"),
}
WRITTEN_ROWS = 100_000  # rows of a table written at a time


def make_plan(labels: Path, work: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write the plan, and the list of labels and images that it leaves out, into the work folder.

    Args:
        labels: as for `pack`.
        work: the work folder, with the result of `write_locations`.
        parameters: the parameters of packing.

    Returns:
        Numbers: `count` of samples, `num_classes`, and `unlabelled` images; `joined`: the number
        of samples by where their id was found; `class_names`, None for a table; and `digests`: of
        each shard, a hash that changes with its samples, and with the states of their files.

    Raises:
        ConfigError: the labels cannot be read, or no image has one.
    """
    duckdb, class_names, urls = import_extra("duckdb"), None, labels.with_name(URLS_FILE)
    if labels.suffix in ANNOTATION_FILES and labels.is_file():
        labels, class_names = _convert_labels(labels, work / "labels.parquet")
    with (
        duckdb_errors(f"the images of {labels} cannot be planned"),
        closing(duckdb.connect()) as database,
    ):
        # DuckDB spills data that are larger than memory to the disk of the output.
        database.execute(f"SET temp_directory = {_quote(work / 'duckdb')}")
        num_classes = _open_labels(database, labels)
        found = f"read_parquet({_quote(glob.escape(str(work / LOCATIONS_FILE)))})"
        join_labels(database, urls, found, parameters.get("key_column"))
        count, digests = _plan_shards(database, labels, work, parameters)
        rejects = _list_rejects(database)
        unlabelled = database.execute(
            "SELECT count(*) FROM locations ANTI JOIN labels USING (id)"
        ).fetchone()[0]
        joined = database.execute(
            "SELECT kind, count(*) FROM locations SEMI JOIN labels USING (id) "
            "WHERE rank = 1 GROUP BY kind ORDER BY kind"
        ).fetchall()
    write_text(work / REJECTS_FILE, to_json_lines(rejects))
    return {
        "count": count,
        "digests": digests,
        "num_classes": len(class_names) if class_names else num_classes,
        "class_names": class_names,
        "unlabelled": unlabelled,
        "joined": dict(joined),
    }


def _convert_labels(labels: Path, path: Path) -> tuple[Path, list[str]]:
    """Write the table of labels of an annotation file.

    Returns:
        The path of the table, and the names of the classes.

    Raises:
        ConfigError: the file is invalid, or two images have the same id.
    """
    annotations = read_annotations(labels)
    numbers = {name: number for number, name in enumerate(annotations.classes)}
    names, classes = dict[str, str](), dict[str, dict[int, None]]()
    for name, image_labels in annotations.entries:
        identifier = printable(PurePosixPath(name).stem if is_image_name(name) else name)
        if (other := names.setdefault(identifier, name)) != name:
            raise ConfigError(
                f"{labels} has {describe(other)} and {describe(name)}, which have the same id "
                f"{identifier!r}; rename one of the images"
            )
        found = classes.setdefault(identifier, {})
        found.update(dict.fromkeys(numbers[label] for label in image_labels))
    pa, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    table = pa.table(
        {
            "id": pa.array(list(classes), pa.string()),
            "classes": pa.array([list(row) for row in classes.values()], pa.list_(pa.int64())),
            "repeat": pa.array([1.0] * len(classes), pa.float64()),
        }
    )
    with atomic_write(path) as temporary:
        parquet.write_table(table, temporary)
    return path, list(annotations.classes)


def to_json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Format each row as one line of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_locations(images: Sequence[str], work: Path, **columns: Any) -> str:
    """Write the locations of all images into the work folder; return their hash.

    Args:
        images: as for `find_locations`.
        work: the work folder.
        columns: as for `find_locations`.

    Raises:
        ConfigError: the images cannot be read.
    """
    pa, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    # Paths are binary, because they need not be UTF-8.
    schema = pa.schema(
        [
            ("number", pa.int64()),
            ("id", pa.string()),
            ("path", pa.binary()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("time", pa.int64()),
            ("kind", pa.dictionary(pa.int32(), pa.string())),
            ("url", pa.string()),
        ]
    )
    rows, digest = list[dict[str, Any]](), hashlib.sha256()
    with (
        atomic_write(work / LOCATIONS_FILE) as temporary,
        parquet.ParquetWriter(temporary, schema) as writer,
    ):
        for number, location in enumerate(find_locations(images, **columns)):
            rows.append({"number": number, **location._asdict()})
            _add_location(digest, location)
            if len(rows) == WRITTEN_ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return digest.hexdigest()


def hash_locations(images: Sequence[str], **columns: Any) -> str:
    """Return the hash that `write_locations` returns."""
    digest = hashlib.sha256()
    for location in find_locations(images, **columns):
        _add_location(digest, location)
    return digest.hexdigest()


def _add_location(digest: Any, location: ImageLocation) -> None:
    digest.update(repr(tuple(location)).encode())


def _open_labels(database: Any, labels: Path) -> int:
    """Create the view `labels`; return the number of classes."""
    # Spark writes a folder of files.
    pattern = glob.escape(str(labels)) + ("/*.parquet" if labels.is_dir() else "")
    with duckdb_errors(f"{labels} is not a table with columns id, classes and repeat"):
        _check_columns(database, pattern, labels)
        # A view cannot have bound values, so the paths in this module are quoted.
        database.execute(
            "CREATE VIEW labels AS SELECT id::VARCHAR AS id, classes AS classes, "
            f"repeat::DOUBLE AS repeat FROM read_parquet({_quote(pattern)})"  # nosec B608
        )
        query = """
            SELECT any_value(id) FROM labels GROUP BY id
            HAVING count(*) > 1 OR bool_or(
                id IS NULL OR classes IS NULL
                OR NOT coalesce(isfinite(repeat) AND repeat BETWEEN 0 AND ?, false)
                OR NOT coalesce(list_min(classes) >= 0 OR len(classes) = 0, false)
            )
            ORDER BY id LIMIT 1
        """
        invalid_row = database.execute(query, [MAX_REPEAT]).fetchone()
        num_classes: int = database.execute(
            "SELECT coalesce(max(list_max(classes)), -1) + 1 FROM labels"
        ).fetchone()[0]
    if invalid_row:
        raise ConfigError(
            f"in {labels} id {invalid_row[0]!r} is missing, repeated or invalid: "
            "give exactly one row per id, with classes and repeat >= 0"
        )
    if num_classes > MAX_CLASSES:
        raise ConfigError(f"{labels} has class {num_classes - 1}; allowed: below {MAX_CLASSES:,}")
    return num_classes


def _check_columns(database: Any, pattern: str, labels: Path) -> None:
    """Raise ConfigError for a column that is missing, of another type, or occurs twice."""
    rows = database.execute("DESCRIBE SELECT * FROM read_parquet(?)", [pattern]).fetchall()
    types = {row[0].lower(): row[1] for row in rows}
    for name, (kind, allowed) in COLUMN_TYPES.items():
        if name not in types:
            raise ConfigError(
                f"{labels} has no column {name!r}; its columns: {list_names(list(types))}; give "
                "labels.parquet, as curate wrote it"
            )
        if f"{name}_1" in types:  # DuckDB would read the first of two; it ignores case
            raise ConfigError(
                f"{labels} has more than one column {name!r}; rename or remove all but one"
            )
        # DuckDB would convert or could not compare other types
        if not re.fullmatch(kind, types[name]):
            raise ConfigError(f"column {name} of {labels} is {types[name]}; give {allowed}")


def _plan_shards(
    database: Any, labels: Path, work: Path, parameters: dict[str, Any]
) -> tuple[int, list[str]]:
    """Write the plan; return the number of samples, and the hash of each shard's samples."""
    # Rank 1 is the first image with an id; other images with the same id are rejected.
    database.execute(f"""
        CREATE VIEW locations AS
        SELECT *, row_number() OVER (PARTITION BY id ORDER BY number) AS rank FROM keyed;
        CREATE VIEW packed AS
        SELECT labels.*, path, "offset", size, time, md5('{parameters["seed"]}/' || id) AS key
        FROM labels JOIN locations USING (id) WHERE rank = 1
    """)  # nosec B608
    count, size = database.execute(
        "SELECT count(*), coalesce(sum(size), 0)::BIGINT FROM packed"
    ).fetchone()
    if not count:
        raise ConfigError(
            f"no image has a label in {labels}; {describe_keys(database)}: use the same ids in "
            "both, or name the field beside the images that has them with key_column="
        )
    shards = max(-(-count // parameters["shard_size"]), -(-size // parameters["max_bytes"]))
    shards = min(shards, count)  # so that no shard is empty
    with atomic_write(work / PLAN_FILE) as temporary:
        # Row groups of 16,384 rows: writing a shard reads only the groups that contain its rows.
        database.execute(f"""
            COPY (
                SELECT (row_number() OVER (ORDER BY key) - 1) * {shards} // {count} AS shard, *
                FROM packed ORDER BY key
            ) TO {_quote(temporary)} (FORMAT parquet, ROW_GROUP_SIZE 16384)
        """)  # nosec B608
    # The key stands for the id.
    rows = database.execute(f"""
        SELECT md5(string_agg(md5(concat_ws(
            '/', key, classes::VARCHAR, repeat::VARCHAR,
            hex(path), coalesce("offset", -1), size, time
        )), '' ORDER BY key))
        FROM read_parquet({_quote(glob.escape(str(work / PLAN_FILE)))})
        GROUP BY shard ORDER BY shard
    """)  # nosec B608
    return count, [row[0] for row in rows.fetchall()]


def count_class_samples(work: Path, left_out: Sequence[str], num_classes: int) -> list[float]:
    """Count the samples of an epoch that have each class, in the plan of `make_plan`.

    Args:
        work: the work folder.
        left_out: ids in the plan whose images were not packed.
        num_classes: number of classes.

    Returns:
        Expected numbers of samples: sums of repeat factors, each rounded to 1 / COUNT_STEPS.
    """
    duckdb, pa = import_extra("duckdb"), import_extra("pyarrow")
    counts = [0.0] * num_classes
    with (
        duckdb_errors(f"the samples of each class in {work} cannot be counted"),
        closing(duckdb.connect()) as database,
    ):
        database.execute(f"SET temp_directory = {_quote(work / 'duckdb')}")
        database.register("left_out", pa.table({"id": pa.array(left_out, pa.string())}))
        # whole numbers, whose sum does not depend on the order
        rows = database.execute(
            f"""
            SELECT class, sum(steps) FROM (
                SELECT unnest(list_distinct(classes)) AS class, round(repeat * ?)::BIGINT AS steps
                FROM read_parquet({_quote(glob.escape(str(work / PLAN_FILE)))})
                ANTI JOIN left_out USING (id)
            ) GROUP BY class
            """,  # nosec B608
            [COUNT_STEPS],
        )
        for index, steps in rows.fetchall():
            counts[index] = int(steps) / COUNT_STEPS
    return counts


def _list_rejects(database: Any) -> list[dict[str, str]]:
    missing = database.execute("SELECT id FROM labels ANTI JOIN locations USING (id) ORDER BY id")
    rejects = [{"id": row[0], "reason": "no image"} for row in missing.fetchall()]
    repeated = database.execute(
        "SELECT id, path FROM locations SEMI JOIN labels USING (id) WHERE rank > 1 ORDER BY number"
    )
    for identifier, path in repeated.fetchall():
        name = ImageLocation(identifier, path, None, 0, 0).name
        rejects.append({"id": identifier, "path": name, "reason": "another image has its id"})
    return rejects


def _quote(value: object) -> str:
    """Quote a string for SQL."""
    return "'" + str(value).replace("'", "''") + "'"
