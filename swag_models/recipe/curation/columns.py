"""Which column of a table, or field of an object, is what: as the user says, or by the names that are common."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from swag_models.errors import ConfigError

KNOWN = {  # names of columns, looked for in this order: those of img2dataset and of YFCC100M are among them
    "id": ("id", "key", "photo_id", "photoid", "image_id"),
    "url": ("url", "URL", "image_url", "download_url", "downloadurl"),
    "hashtags": ("hashtags", "tags", "user_tags", "usertags"),
    "caption": ("caption", "text", "TEXT", "description"),
    "hash": ("hash", "sha256", "md5", "phash"),
    "license": ("license", "licence", "license_name", "licensename"),
}


class Columns(NamedTuple):
    """Names of the columns or fields of a post; those not given are looked for among the `KNOWN`."""

    id: str | None = None
    url: str | None = None
    hashtags: str | None = None
    caption: str | None = None
    hash: str | None = None
    license: str | None = None


UNNAMED = Columns()


@lru_cache(maxsize=1024)
def resolve_columns(columns: Columns, names: tuple[str, ...]) -> Columns:
    """Which of `names` are meant, None for what is not among them."""
    wanted = [(given,) if given else KNOWN[field] for field, given in columns._asdict().items()]
    return Columns(
        *[next((name for name in candidates if name in names), None) for candidates in wanted]
    )


def find_columns(names: list[str], columns: Columns, path: object) -> Columns:
    """Which of the names of a table are meant; ConfigError if it cannot be read so."""
    found = resolve_columns(columns, tuple(names))
    there = f"it has: {', '.join(names)}"
    for field, given, name in zip(Columns._fields, columns, found):
        if given and not name:
            raise ConfigError(f"{path} has no column {given!r} for {field}; {there}")
    if not found.id:
        raise ConfigError(f"{path} has no column that is known to be an id; {there}; say which")
    if not found.hashtags and not found.caption:
        raise ConfigError(
            f"{path} has no column that is known to be hashtags or a caption; {there}; say which"
        )
    return found


def parquet_columns(
    schema: Any, columns: Columns = UNNAMED, path: object = "the Parquet file"
) -> Columns:
    """What the columns of a Parquet file are, by its pyarrow schema; ConfigError names those it has if that will not do.

    An id is text or a whole number, hashtags are text or a list of it, all else is text.
    """
    import pyarrow.types as kinds

    def is_text(kind: Any) -> bool:
        return bool(
            kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
        )

    found = find_columns(schema.names, columns, path)
    for field, name in zip(Columns._fields, found):
        if name is None:
            continue
        kind = schema.field(name).type
        is_list = kinds.is_list(kind) or kinds.is_large_list(kind)
        if not (
            is_text(kind)
            or (field == "id" and kinds.is_integer(kind))
            or (field == "hashtags" and is_list and is_text(kind.value_type))
        ):
            raise ConfigError(
                f"{path} has {kind} in column {name!r}, which cannot be {field}; name another column for it"
            )
    return found
