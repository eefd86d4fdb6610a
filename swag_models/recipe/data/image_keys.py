"""Keys of images: what an image is called in the record beside it, and which label is its own.

img2dataset names images by their place in a shard (000000000.jpg), and writes a record beside each:
a .json file with the same stem, and one .parquet file per shard. A record has the `url`, and the
columns that img2dataset was told to keep, such as `id`.
"""

import glob
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import describe, printable
from swag_models.paths import open_regular
from swag_models.recipe.data.tables import table_errors
from swag_models.runtime import import_extra

STEM = "__key__"  # WebDataset's name for the stem of a file
URLS_FILE = "urls.parquet"  # written by the curation: id and url
MAX_IMAGE_RECORD_BYTES = 1 << 20
Record = Mapping[str, Any]


class Key(NamedTuple):
    """What an image is called.

    Attributes:
        id: the id; None if it has only a URL.
        kind: where the id comes from: "id", "key" or another field of the record, or "file name".
        url: where it was downloaded; None if unknown.
    """

    id: str | None
    kind: str
    url: str | None = None


def find_key(stem: str, record: Record | None, key_column: str | None) -> Key | None:
    """Find the key of an image.

    Args:
        stem: of the file, without folders.
        record: beside the image; None if there is none.
        key_column: the field to take; by default `id`, otherwise `key`, otherwise the stem.

    Returns:
        None if the record lacks the `key_column`.
    """
    values = {name: text for name, value in (record or {}).items() if (text := _to_text(value))}
    if key_column == "url":
        return Key(None, "url", values["url"]) if "url" in values else None
    if key_column not in (None, STEM):
        return Key(values[key_column], key_column) if key_column in values else None
    if key_column is None:
        for name in ("id", "key"):
            if name in values:
                return Key(values[name], name, values.get("url"))
        return Key(printable(stem), "file name", values.get("url"))
    return Key(printable(stem), "file name")


def _to_text(value: Any) -> str | None:
    """A key as text; None for a value that is no key."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes the integers of a column with missing values as floats
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return printable(str(value))


def read_json_record(content: bytes, name: str) -> Record | None:
    """Read the record of an image; None if it is not an object.

    Raises:
        ConfigError: it is not JSON.
    """
    try:
        record = parse_json(content)
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from None
    return record if isinstance(record, dict) else None


def read_loose_record(image: Path, left_out: Counter[str]) -> Record | None:
    """Read the .json file with the same stem as an image; None if there is none.

    Args:
        image: path of the image.
        left_out: increased for a file that is not JSON, which need not belong to the image.
    """
    try:
        with open_regular(image.with_suffix(".json")) as file:
            return read_json_record(file.read(MAX_IMAGE_RECORD_BYTES), image.name)
    except (OSError, ValueError):  # no such file; a ConfigError is a ValueError too
        if image.with_suffix(".json").exists():
            left_out["unreadable .json beside an image"] += 1
        return None


def read_table_records(
    path: Path, stems: Collection[str] | None, key_column: str | None
) -> dict[str, Record]:
    """Read the records of a shard from the table that img2dataset writes beside it.

    Args:
        path: the Parquet file; need not exist.
        stems: stems of the images to read; None for all.
        key_column: as for `find_key`.

    Returns:
        Records by `key`, which is the stem of the image; empty if it is not such a table.

    Raises:
        ConfigError: the table cannot be read.
    """
    if not path.is_file():
        return {}
    parquet = import_extra("pyarrow.parquet")
    records = dict[str, Record]()
    with table_errors(path), open_regular(path) as raw, parquet.ParquetFile(raw) as file:
        names = [name for name in file.schema_arrow.names if name in {"id", "url", key_column}]
        if "key" not in file.schema_arrow.names or not names:
            return {}
        for batch in file.iter_batches(columns=list({"key", *names})):
            for row in batch.to_pylist():
                if stems is None or row["key"] in stems:
                    records[str(row["key"])] = row
    return records


def join_labels(database: Any, urls: Path, locations: str, key_column: str | None) -> None:
    """Create the table `keyed`: the locations with the id of their label, and how it was found.

    An image is joined by the first of these that it has and that matches any label at all: the id
    in its record, its URL, its key or file name. Never by a later one if an earlier one fails: a
    nine-digit key of img2dataset can be another image's id.

    Args:
        database: a connection to DuckDB with the view `labels`.
        urls: the table of ids and URLs; need not exist.
        locations: SQL that reads the locations.
        key_column: as for `find_key`.

    Raises:
        ConfigError: images can be joined by URL only, and there is no table of URLs.
    """
    database.execute(f"CREATE VIEW found AS SELECT * FROM {locations}")  # nosec B608
    by_id, by_url = database.execute("""
        SELECT (SELECT count(*) FROM found SEMI JOIN labels USING (id) WHERE kind = 'id'),
               (SELECT count(url) FROM found)
    """).fetchone()
    if by_url and urls.exists():
        # Spark writes a folder of files; a view cannot have bound values
        pattern = glob.escape(str(urls)) + ("/*.parquet" if urls.is_dir() else "")
        quoted = "'" + pattern.replace("'", "''") + "'"
        # one id per URL, as in the curation
        database.execute(f"""
            CREATE VIEW urls AS SELECT url, min(id::VARCHAR) AS id
            FROM read_parquet({quoted}) SEMI JOIN labels USING (id) GROUP BY url
        """)  # nosec B608
        by_url = database.execute("SELECT count(*) FROM found SEMI JOIN urls USING (url)")
        by_url = by_url.fetchone()[0]
    elif key_column == "url":
        raise ConfigError(f"{urls} does not exist; give the labels beside it, as curate wrote them")
    else:
        by_url = 0
    if not by_url or by_id == database.execute("SELECT count(*) FROM found").fetchone()[0]:
        database.execute("CREATE VIEW keyed AS SELECT * FROM found")
        return
    # DuckDB spills a temporary table that is larger than memory
    database.execute(
        """
        CREATE TEMP TABLE keyed AS
        SELECT found.* REPLACE (
            CASE WHEN found.by_record THEN found.id ELSE urls.id END AS id,
            CASE WHEN found.by_record THEN found.kind ELSE 'url' END AS kind
        ) FROM (
            SELECT *, url IS NULL OR (kind = 'id' AND ?) AS by_record FROM found
        ) AS found LEFT JOIN urls USING (url)
    """,
        [by_id > 0],
    )


def describe_keys(database: Any) -> str:
    """Return an example of the ids of the images and of the labels, for a message."""
    label = database.execute("SELECT min(id) FROM labels").fetchone()[0]
    rows = database.execute("""
        SELECT kind, min(coalesce(id, url)) FROM found GROUP BY kind ORDER BY kind LIMIT 3
    """).fetchall()
    examples = ", ".join(f"{describe(example)} ({kind})" for kind, example in rows)
    return f"ids of images: {examples or 'none'}; of labels: {describe(label)}"
