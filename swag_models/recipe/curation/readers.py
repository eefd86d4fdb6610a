"""Readers of posts: rows of text files become posts, and malformed rows become rejects.

Formats, each also compressed as .gz or .bz2:
  json   JSON Lines, or one array of objects: .jsonl .ndjson .json
  csv    with a header line, separated by commas, semicolons, tabs or vertical bars: .csv .tab
  tsv    yfcc if a row looks like it, otherwise csv: .tsv
  yfcc   YFCC100M's table, tab-separated and percent-encoded, 23 to 25 columns: yfcc100m_dataset
  tar    .json members of WebDataset shards, as img2dataset writes them: .tar
Parquet is read by the backend; `posts.find_parquet_columns` finds its columns.
"""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from swag_models.archives import TAR_ERRORS, open_tar, walk_members
from swag_models.errors import ConfigError
from swag_models.formatting import describe_error, list_names, printable
from swag_models.paths import open_regular
from swag_models.recipe.curation import posts as reasons
from swag_models.recipe.curation.columns import (
    DEFAULT_COLUMNS,
    Columns,
    find_columns,
    resolve_columns,
    resolve_fields,
)
from swag_models.recipe.curation.json_array import is_array, list_elements
from swag_models.recipe.curation.post_files import find_format
from swag_models.recipe.curation.posts import (
    Post,
    Reject,
    RejectedRowError,
    check_downloaded,
    make_post,
    shorten_row,
)
from swag_models.recipe.delimiters import find_delimiter

OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
}
YFCC_HASH_CHARS = 32  # an MD5
JSON_DECODER = json.JSONDecoder()
MAX_ROW_BYTES = 2**20  # limits the memory used for a file without line breaks
SNIFFED_ROWS = 100  # of a .tsv, to recognise YFCC100M's


def read_posts(
    path: Path,
    columns: Columns = DEFAULT_COLUMNS,
    format: str | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Iterator[Post | Reject]:
    """Yield every row of a file, in order, as a post or a reject.

    Args:
        path: a text file in one of the formats above.
        columns: names of its columns or fields.
        format: its format; by default recognised from its name.
        on_progress: called every 1000 rows with the number of bytes of the file read so far.

    Raises:
        ConfigError: the file cannot be read, or has no column of ids, or none of hashtags or
            captions.
    """
    format = format or find_format(path)
    if format not in READERS:
        raise ConfigError(f"invalid format {format!r} for {path}: allowed: {', '.join(READERS)}")
    row = 0
    try:
        file = open_regular(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {describe_error(error)}") from None
    try:
        with file as raw:
            opener = OPENERS.get(path.suffix.lower())
            content: Any = opener(raw) if opener else raw
            if content.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise ConfigError(f"{path} is UTF-16; save it as UTF-8")
            rows, parse = READERS[format](content, columns, path)
            for row, values in enumerate(rows, 1):
                try:
                    post = parse(values)
                except RejectedRowError as error:
                    yield Reject(printable(path), row, str(error), shorten_row(values), error.value)
                else:
                    if post:
                        yield post
                if on_progress and row % 1000 == 0:
                    on_progress(raw.tell())
    except ConfigError:
        raise
    except TAR_ERRORS as error:
        # bz2 and gzip report damaged data as an OSError without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        yield Reject(printable(path), row + 1, reasons.TRUNCATED, describe_error(error))


# The rows of an open file, and the function that parses a row (None for an empty one).
Rows = tuple[Iterable[Any], Callable[[Any], Post | None]]


def _read_json(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    rows = list_elements(file) if is_array(file) else _list_lines(file)
    return rows, partial(_parse_json, columns)


def _read_tar(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    return _list_members(file), lambda member: _parse_json(columns, member[1], member[0])


def _read_yfcc(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    return _list_lines(file), partial(_parse_yfcc, columns.source)


def _read_tsv(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    lines = _list_lines(file)
    first = list(itertools.islice(lines, SNIFFED_ROWS))
    rest = itertools.chain(first, lines)
    rows = [line.decode("utf-8", "replace").rstrip("\r\n").split("\t") for line in first]
    # Some editions of YFCC100M's table have a header; their text is percent-encoded too.
    if any(map(_is_yfcc, rows)) and not (
        _has_columns(rows[0], columns) and rows[0][-1] != "marker"
    ):
        return rest, partial(_parse_yfcc, columns.source)
    return _read_table(rest, columns, path)


def _has_columns(names: Sequence[str], columns: Columns) -> bool:
    resolved = resolve_columns(columns, tuple(names))
    return bool(resolved.id and (resolved.hashtags or resolved.caption))


def _read_csv(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    return _read_table(_list_lines(file), columns, path)


def _read_table(lines: Iterator[bytes], columns: Columns, path: Path) -> Rows:
    text = (line.decode("utf-8", "surrogateescape") for line in lines)
    first = next(text, None)
    if first is None:
        return (), partial(_parse_yfcc, "")  # an empty file: the parser is never called
    if first.startswith("sep="):  # of Excel
        first = next(text, "")
    if header := _name_conceptual_captions(first):
        reader = csv.reader(itertools.chain([first], text), delimiter="\t", quoting=csv.QUOTE_NONE)
        names = find_columns(header, columns, path)
        indices = [None if name is None else header.index(name) for name in names[:-1]]
        return _list_records(reader), partial(_parse_record, names.source, 2, indices, None)
    delimiter = find_delimiter(
        first, lambda names: sum(map(bool, resolve_columns(columns, tuple(names))))
    )
    reader = csv.reader(itertools.chain([first], text), delimiter=delimiter)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise ConfigError(
            f"the first line of {path} does not contain the names of columns: {error}; lines "
            "must end with a line feed, and a name has at most 131,072 characters"
        ) from None
    names = find_columns(header, columns, path)
    indices = [None if name is None else header.index(name) for name in names[:-1]]
    status = header.index("status") if "status" in header else None
    return _list_records(reader), partial(_parse_record, names.source, len(header), indices, status)


def _name_conceptual_captions(line: str) -> list[str] | None:
    """Names of the two columns of CC3M (caption, url) and CC12M (url, caption), without header."""
    cells = line.rstrip("\r\n").split("\t")
    are_urls = [cell.startswith(("http://", "https://")) for cell in cells]
    if len(cells) == 2 and sum(are_urls) == 1:
        return ["url" if is_url else "caption" for is_url in are_urls]
    return None


READERS = {
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "yfcc": _read_yfcc,
    "tar": _read_tar,
}


def _list_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield lines; a line that is too large is cut to MAX_ROW_BYTES."""
    line = file.readline(MAX_ROW_BYTES).removeprefix(codecs.BOM_UTF8)
    while line:
        yield line
        while len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_ROW_BYTES)
        line = file.readline(MAX_ROW_BYTES)


def _list_records(reader: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """Yield the records of a CSV file, with an error in place of each invalid one."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _list_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield key (the name without extensions, as in WebDataset) and content of .json members."""
    # compressed files are read as a stream, since seeking back would decompress them again
    plain = isinstance(file, io.BufferedReader)
    with open_tar(file, "r:" if plain else "r|") as archive:
        for member in walk_members(archive):
            folder, _, name = member.name.rpartition("/")
            if name.endswith(".json") and not member.isdir():
                # A link or a pipe has no content of its own, and is rejected as not JSON.
                is_file = member.isfile()
                content = archive.extractfile(member).read(MAX_ROW_BYTES) if is_file else b"\0"
                yield f"{folder}/{name.partition('.')[0]}".lstrip("/"), content


def _parse_json(columns: Columns, content: bytes, key: str | None = None) -> Post | None:
    text = _decode(content).strip(" \t\r\n")
    if not text:
        return None
    try:
        row, end = JSON_DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise RejectedRowError(reasons.NOT_JSON) from None
    if end != len(text):
        raise RejectedRowError(reasons.NOT_JSON)
    if type(row) is not dict:
        raise RejectedRowError(reasons.NOT_AN_OBJECT)
    names = resolve_fields(columns, row)
    if names.hashtags is None and names.caption is None:
        raise RejectedRowError(reasons.NO_HASHTAGS, f"its fields: {list_names(tuple(row))}")
    if "status" in row:
        check_downloaded(row["status"])
    identifier, *fields = map(row.get, names[:-1])
    values: list[Any] = [*fields, names.source]
    if names.id is None and (columns.id or key is None):
        raise RejectedRowError(reasons.NO_ID, f"its fields: {list_names(tuple(row))}")
    post = make_post(identifier if names.id else key, *values)
    # only escapes can produce lone surrogates, since the text itself is valid UTF-8
    if "\\u" in text:
        _check_text([post.id, post.url or "", post.hash or "", post.license or "", *post.hashtags])
    return post


def _is_yfcc(fields: Sequence[str]) -> bool:
    return 23 <= len(fields) <= 25 and fields[-1] in ("0", "1")


def _parse_yfcc(source: str, content: bytes) -> Post | None:
    """Parse a row of YFCC100M.

    The first column is the photo's id, in some editions after the line number, and in some before
    the photo's hash. Counted from the end: 17 title, 16 description, 15 user tags, 9 download URL,
    8 license, 1 marker (0 for photos, 1 for videos). Source: the data set's README, and its
    editions with 23 columns (2014) and 25 (with line number and hash).
    """
    fields = _decode(content).rstrip("\r\n").split("\t")
    if fields == [""]:
        return None
    if not 23 <= len(fields) <= 25:
        raise RejectedRowError(reasons.BAD_ROW_LENGTH)
    if not _is_yfcc(fields):
        raise RejectedRowError(reasons.BAD_MARKER)
    if fields[-1] == "1":
        raise RejectedRowError(reasons.VIDEO)
    tags = fields[-15].replace("+", " ").split(",")
    if "%" in fields[-15]:
        try:
            tags = [unquote(tag, errors="strict") for tag in tags]
        except UnicodeDecodeError:
            raise RejectedRowError(reasons.BAD_UTF8) from None
    caption = None
    if source in ("captions", "both"):
        caption = unquote(". ".join(filter(None, fields[-17:-15])).replace("+", " ")) or None
    # the id is the second field if the first is a line number; a hash may consist of digits
    number = len(fields) == 25 or (
        len(fields) == 24 and fields[1].isdecimal() and len(fields[1]) < YFCC_HASH_CHARS
    )
    return make_post(
        fields[number],
        fields[-9] or None,
        tags,
        caption,
        fields[number + 1] or None if len(fields) - number == 24 else None,
        unquote(fields[-8].replace("+", " ")) or None,
        source,
    )


def _parse_record(
    source: str,
    width: int,
    indices: list[int | None],
    status: int | None,
    record: list[str] | csv.Error,
) -> Post | None:
    if isinstance(record, csv.Error):
        raise RejectedRowError(reasons.BAD_CSV)
    if not record:
        return None
    if len(record) != width:
        raise RejectedRowError(reasons.BAD_ROW_LENGTH)
    _check_text(record)
    if status is not None:
        check_downloaded(record[status])
    values: list[Any] = [None if index is None else record[index] or None for index in indices]
    return make_post(*[*values, source])


def _decode(content: bytes) -> str:
    if len(content) >= MAX_ROW_BYTES:
        raise RejectedRowError(reasons.ROW_TOO_LARGE)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise RejectedRowError(reasons.BAD_UTF8) from None


def _check_text(texts: list[str]) -> None:
    """Reject lone surrogates, which come from JSON escapes or from bytes that are not UTF-8."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise RejectedRowError(reasons.BAD_UTF8) from None
