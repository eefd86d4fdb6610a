"""Find the columns of posts among the columns of a table, or the fields of an object of JSON."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from swag_models.errors import ConfigError
from swag_models.formatting import list_names

logger = logging.getLogger("swag_models")

# What becomes the hashtags of a post.
SOURCES = ("hashtags", "captions", "both")

# Usual names of the columns, including those of img2dataset and YFCC100M; the first one that a
# table has is used, whatever the case of its letters and the spaces around it.
URLS = ("url", "image_url", "download_url", "downloadurl")
COLUMN_NAMES = {
    # uid is DataComp's; URLs are ids of tables without any, such as LAION's, then file names
    "id": (
        *("id", "key", "photo_id", "photoid", "image_id", "imageid", "uid", "sample_id", *URLS),
        *("file_name", "filename", "file", "image_path", "path", "image", "image_name", "img"),
    ),
    "url": URLS,
    "hashtags": ("hashtags", "tags", "user_tags", "usertags", "keywords", "labels"),
    "caption": ("caption", "text", "description"),
    "hash": ("hash", "sha256", "md5", "phash"),
    "license": ("license", "licence", "license_name", "licensename"),
}


class Columns(NamedTuple):
    """Names of the columns or fields of a post; None tries the names in `COLUMN_NAMES`.

    The last field is not a column: it names the source of the hashtags, one of `SOURCES`.
    """

    id: str | None = None
    url: str | None = None
    hashtags: str | None = None
    caption: str | None = None
    hash: str | None = None
    license: str | None = None
    source: str = SOURCES[0]


ROLES = Columns._fields[:-1]
DEFAULT_COLUMNS = Columns()


@lru_cache(maxsize=1024)  # rows of JSON are resolved one by one, but most have the same fields
def resolve_columns(columns: Columns, names: tuple[str, ...]) -> Columns:
    """Find the columns of a post among the names of a table.

    Args:
        columns: names chosen by the user.
        names: names that the table has.

    Returns:
        One of `names` for each column, or None if the table has no such column.
    """
    resolved: list[Any] = []
    for role, chosen_name in zip(ROLES, columns):
        candidates = (chosen_name,) if chosen_name else COLUMN_NAMES[role]
        if role == "hashtags" and columns.source == "captions":
            candidates = ()
        resolved.append(_find_name(candidates, names))
    return Columns(**dict(zip(ROLES, resolved)), source=columns.source)


def resolve_fields(columns: Columns, row: dict[str, Any]) -> Columns:
    """Find the fields of an object of JSON; numbers, as of classes, are no hashtags."""
    names = resolve_columns(columns, tuple(row))
    if not columns.hashtags and names.hashtags and _are_numbers(row[names.hashtags]):
        texts = tuple(name for name, value in row.items() if not _are_numbers(value))
        others = names._replace(hashtags=resolve_columns(columns, texts).hashtags)
        return others if others.hashtags or others.caption else names
    return names


def _are_numbers(value: Any) -> bool:
    items = value if type(value) is list and value else [value]
    return all(type(item) in (int, float) for item in items)


def _find_name(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    """The first candidate among the names, as written there; the same spelling comes first."""
    if not names:
        return None
    folded = {name.strip().lower(): name for name in reversed(names)}
    found = (name if name in names else folded.get(name.strip().lower()) for name in candidates)
    return next((name for name in found if name is not None), None)


def find_columns(names: list[str], columns: Columns, path: object) -> Columns:
    """Find the columns of a post among the names of a table, and check that they suffice.

    Args:
        names: names that the table has.
        columns: names chosen by the user.
        path: the file, for error messages.

    Raises:
        ConfigError: a named column is missing, or the id, or both hashtags and caption.
    """
    resolved = resolve_columns(columns, tuple(names))
    hint = f"its columns: {list_names(names)}" if names else "the file is empty"
    for role, chosen_name, name in zip(ROLES, columns, resolved):
        if chosen_name and not name:
            raise ConfigError(
                f"{path} has no column {chosen_name!r} for {role}; {hint}; name one of them"
            )
    if repeated := [name for name in resolved[:-1] if name and names.count(name) > 1]:
        raise ConfigError(
            f"{path} has more than one column {repeated[0]!r}; {hint}; rename all but one"
        )
    missing = [] if resolved.id else [("ids", "id=")]
    if not resolved.hashtags and not resolved.caption:
        is_captions = columns.source == "captions"
        hashtags = ("hashtags or captions", "hashtags= or caption=")
        missing.append(("captions", "caption=") if is_captions else hashtags)
    if missing:
        kinds, options = (" and none of ".join(words) for words in zip(*missing))
        options = options.replace(" and none of ", " and ")
        each = "each" if len(missing) > 1 else "one"
        raise ConfigError(f"{path} has no column of {kinds}; {hint}; name {each} with {options}")
    return resolved


def find_parquet_columns(
    schema: Any, columns: Columns = DEFAULT_COLUMNS, path: object = "the Parquet file"
) -> Columns:
    """Find the columns of a post in a Parquet file, and check their types.

    An id must be text or a number, hashtags text or a list of text, all other columns text. A
    column that was found by a usual name, but has another type, such as `labels` with numbers of
    classes, is passed over with a warning if another one is there.

    Args:
        schema: the file's pyarrow schema.
        columns: names chosen by the user.
        path: the file, for error messages.

    Raises:
        ConfigError: a column is missing or has another type.
    """
    resolved = find_columns(schema.names, columns, path)
    # DuckDB ignores the case of names and would read the first of them.
    lower = [name.lower() for name in schema.names]
    if repeated := [name for name in resolved[:-1] if name and lower.count(name.lower()) > 1]:
        raise ConfigError(
            f"{path} has columns that differ from {repeated[0]!r} only in case; rename all but one"
        )
    for role, name in zip(ROLES, resolved):
        if name is None or _has_type(role, kind := schema.field(name).type):
            continue
        others = resolve_columns(columns, tuple(other for other in schema.names if other != name))
        other = getattr(others, role) or (others.caption if role == "hashtags" else None)
        if other and not getattr(columns, role):
            logger.warning(
                "column %r of %s has type %s, which is not allowed for %s; %r is used instead",
                *(name, path, kind, role, other),
            )
            return find_parquet_columns(schema.remove(schema.names.index(name)), columns, path)
        raise ConfigError(
            f"{path} has type {kind} in column {name!r}, which is not allowed for {role}; "
            f"name another column with {role}="
        )
    return resolved


def _has_type(role: str, kind: Any) -> bool:
    """Whether a column of a Parquet file can be read for a field of posts."""
    import pyarrow.types as kinds

    def is_text(kind: Any) -> bool:
        if kinds.is_dictionary(kind):  # a category of pandas
            kind = kind.value_type
        # pandas writes columns without any value without a type
        tests = kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null
        return any(test(kind) for test in tests)

    is_list = kinds.is_list(kind) or kinds.is_large_list(kind)
    return (
        is_text(kind)
        or (role in ("id", "hash") and kinds.is_integer(kind))
        or (role == "id" and kinds.is_floating(kind))
        or (role == "hashtags" and is_list and is_text(kind.value_type))
    )
