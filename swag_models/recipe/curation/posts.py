"""Posts: their fields, and reasons to reject a row."""

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.formatting import describe
from swag_models.recipe.curation.columns import SOURCES
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

MAX_REJECT_CHARS = 200  # of a rejected row, stored in the list of rejects
MAX_EXACT = 2.0**53  # from here on, floats are too coarse for integers: ids would be others
HEX_HASH = "[0-9A-Fa-f]+"  # may be in the other case, unlike base64
# Before a caption, which is stored among the hashtags of its post; no hashtag begins with this.
CAPTION_MARK = " "


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


def shorten_row(content: Any) -> str:
    """The beginning of a row: bytes, a CSV record, or key and content of an archive member."""
    if isinstance(content, tuple):
        content = content[1]
    if isinstance(content, list):
        content = ",".join(content)
    if not isinstance(content, bytes):
        content = str(content)[:MAX_REJECT_CHARS].encode("utf-8", "surrogateescape")
    # a character of UTF-8 has up to 4 bytes
    text = content[: 4 * MAX_REJECT_CHARS].decode("utf-8", "backslashreplace")
    return text.rstrip("\r\n")[:MAX_REJECT_CHARS]
