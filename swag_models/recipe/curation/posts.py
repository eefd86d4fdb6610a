"""Posts: their fields, the columns of a table with these fields, and reasons to reject a row."""

import json
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.errors import ConfigError
from swag_models.formatting import describe, list_names
from swag_models.recipe.curation.hashtag_text import drop_missing, split_text, strip_hashtags
from swag_models.recipe.hashtags import extract_hashtags

logger = logging.getLogger("swag_models")

# Reasons for rejecting a row, as they are written to rejects.jsonl and counted in the manifest.
NOT_JSON, NOT_AN_OBJECT = "not JSON", "not a JSON object"
NO_ID, BAD_ID = "no id", "id is not text or a whole number"
NO_HASHTAGS, BAD_HASHTAGS = "no hashtags and no caption", "hashtags are not a list of text"
BAD_CAPTION, BAD_URL, BAD_HASH = "caption is not text", "url is not text", "hash is not text"
BAD_LICENSE = "license is not text"
BAD_UTF8, BAD_ROW_LENGTH, BAD_CSV = "bad UTF-8", "wrong number of columns", "not CSV"
NOT_DOWNLOADED = "not downloaded"
FAILED_STATUS = "failed_to_"  # start of img2dataset's column `status` for such images
BAD_MARKER, VIDEO = "last column is neither 0 nor 1", "a video"
ROW_TOO_LARGE, TRUNCATED = "row too large", "unreadable from here on"

# What becomes the hashtags of a post.
SOURCES = ("hashtags", "captions", "both")
MAX_EXACT = 2.0**53  # from here on, floats are too coarse for integers: ids would be others
HEX_HASH = "[0-9A-Fa-f]+"  # may be in the other case, unlike base64
# Before a caption, which is stored among the hashtags of its post; no hashtag begins with this.
CAPTION_MARK = " "

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


class Post(NamedTuple):
    """One image and the hashtags that its author gave it.

    Attributes:
        id: unique name of the image.
        url: where the image can be downloaded.
        hashtags: hashtags as written, without "#".
        hash: hash of the image, by any function; compared with the hashes that the user excludes.
        license: license, as named by the data set.
    """

    id: str
    url: str | None
    hashtags: list[str]
    hash: str | None
    license: str | None = None


class Reject(NamedTuple):
    """A malformed row.

    Attributes:
        input: path of the file.
        row: number of its line, CSV record or archive member, from 1.
        reason: one of the constants above.
        text: beginning of the row.
        value: the value that is the reason, or the fields of a row that lacks one; may be None.
    """

    input: str
    row: int
    reason: str
    text: str
    value: str | None = None


class RejectedRowError(Exception):
    """A row is malformed.

    Args:
        reason: one of the reasons above; the message.
        value: see `Reject`.
    """

    def __init__(self, reason: str, value: str | None = None) -> None:
        super().__init__(reason)
        self.value = value


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

    An id must be text or a number, hashtags text or a list of text, all other columns text.

    Args:
        schema: the file's pyarrow schema.
        columns: names chosen by the user.
        path: the file, for error messages.

    Raises:
        ConfigError: a column is missing or has another type.
    """
    import pyarrow.types as kinds

    def is_text(kind: Any) -> bool:
        if kinds.is_dictionary(kind):  # a category of pandas
            kind = kind.value_type
        # pandas writes columns without any value without a type
        tests = kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_null
        return any(test(kind) for test in tests)

    resolved = find_columns(schema.names, columns, path)
    # DuckDB ignores the case of names and would read the first of them.
    lower = [name.lower() for name in schema.names]
    if repeated := [name for name in resolved[:-1] if name and lower.count(name.lower()) > 1]:
        raise ConfigError(
            f"{path} has columns that differ from {repeated[0]!r} only in case; rename all but one"
        )
    for role, name in zip(ROLES, resolved):
        if name is None:
            continue
        kind = schema.field(name).type
        is_list = kinds.is_list(kind) or kinds.is_large_list(kind)
        if not (
            is_text(kind)
            or (role in ("id", "hash") and kinds.is_integer(kind))
            or (role == "id" and kinds.is_floating(kind))
            or (role == "hashtags" and is_list and is_text(kind.value_type))
        ):
            raise ConfigError(
                f"{path} has type {kind} in column {name!r}, which is not allowed for {role}; "
                f"name another column with {role}="
            )
    return resolved


def make_post(
    identifier: Any,
    url: Any,
    hashtags: Any,
    caption: Any,
    digest: Any,
    license: Any,
    source: str = SOURCES[0],
) -> Post:
    """Make a post from the values of a row, and check their types.

    Args:
        identifier: text or a whole number.
        url: text or None.
        hashtags: a list of text, text to split (see `hashtag_text`), or None.
        caption: text or None; searched for hashtags if `hashtags` are missing.
        digest: hash of the image, text, a whole number or None.
        license: text or None.
        source: what becomes the hashtags of the post, one of `SOURCES`.

    Raises:
        RejectedRowError: a value is missing or has another type.
    """
    identifier, url, caption, digest, license = map(
        drop_missing, (identifier, url, caption, digest, license)
    )
    # pandas has NaN, which equals nothing, for a missing number
    if identifier is None or identifier != identifier:
        raise RejectedRowError(NO_ID)
    if type(identifier) is not str:  # `type`, since True would be an int for isinstance
        # pandas writes the integers of a column with missing values as floats
        is_whole = (
            type(identifier) is float and identifier.is_integer() and abs(identifier) < MAX_EXACT
        )
        if type(identifier) is not int and not is_whole:
            raise RejectedRowError(BAD_ID, describe(identifier))
        identifier = str(int(identifier))
    if not (url is None or type(url) is str):
        raise RejectedRowError(BAD_URL, describe(url))
    digest = str(digest) if type(digest) is int else digest  # LAION's
    if not (digest is None or type(digest) is str):
        raise RejectedRowError(BAD_HASH, describe(digest))
    digest = digest.lower() if digest and re.fullmatch(HEX_HASH, digest) else digest
    if not (license is None or type(license) is str):
        raise RejectedRowError(BAD_LICENSE, describe(license))
    hashtags = [] if source == "captions" else _split_hashtags(hashtags)
    is_read = hashtags is None or source != "hashtags"
    if is_read and not (caption is None or type(caption) is str):
        raise RejectedRowError(BAD_CAPTION, describe(caption))
    if hashtags is None:
        hashtags = extract_hashtags(caption) if caption else []
    if caption and source != "hashtags":
        hashtags.append(CAPTION_MARK + caption)
    return Post(identifier, url, hashtags, digest, license)


def check_downloaded(status: Any) -> None:
    """Raise RejectedRowError if this is img2dataset's status of an image without a file."""
    if type(status) is str and status.startswith(FAILED_STATUS):
        raise RejectedRowError(NOT_DOWNLOADED)


def warn_of_truncated(source: Path, rejects: Path) -> None:
    """Log that the rest of a file could not be read.

    Args:
        source: the file.
        rejects: JSON Lines of its rejected rows; the last one states where it ends.
    """
    with rejects.open("rb") as file:
        *_, line = file
    reject = json.loads(line)
    logger.warning(
        "%s is damaged or cut off after row %d (%s): the rest of it is left out; replace the file "
        "and run again",
        source,
        reject["row"] - 1,
        reject["text"],
    )


def _split_hashtags(cell: Any) -> list[str] | None:
    """Hashtags of a list or of text; None if they are missing."""
    hashtags = cell
    try:
        if type(cell) is str:
            hashtags = split_text(cell)
        elif type(cell) is list:  # pandas writes missing items as null
            hashtags = [tag for tag in cell if tag is not None]
        elif cell is not None:
            raise ValueError
        return None if hashtags is None else strip_hashtags(hashtags)
    except (ValueError, AttributeError):  # an item is not text
        raise RejectedRowError(BAD_HASHTAGS, describe(cell)) from None
