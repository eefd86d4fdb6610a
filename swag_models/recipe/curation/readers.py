"""Posts as people have them -> rows of id, URL, hashtags and hash; what is malformed becomes a reject with its reason.

Formats, each also as .gz or .bz2:
  json   one object in a line: .jsonl .ndjson .json
  csv    with a line of names: .csv
  yfcc   YFCC100M's table, tab-separated and percent-encoded, 23 to 25 columns: .tsv, yfcc100m_dataset
  tar    .json members of WebDataset shards, as img2dataset writes them: .tar
Parquet is for the engine to read; `parquet_columns` says which columns are what.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import unquote

from swag_models.errors import ConfigError
from swag_models.recipe.curation.columns import UNNAMED, Columns, find_columns, resolve_columns
from swag_models.recipe.hashtags import HASH, extract

SUFFIXES = dict.fromkeys((".jsonl", ".ndjson", ".json"), "json")
SUFFIXES |= {".csv": "csv", ".tsv": "yfcc", ".tar": "tar", ".tgz": "tar", ".parquet": "parquet"}
OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
}
DECODER = json.JSONDecoder()
LARGEST = 2**20  # bytes of a row
SHOWN = 200  # characters of a reject
EDGES = f"{HASH} \t\r\n"  # what may surround a hashtag in a list

# Reasons for a reject.
NO_JSON, NO_OBJECT = "not JSON", "not a JSON object"
NO_ID, ODD_ID = "no id", "id is not text or a whole number"
NO_HASHTAGS, ODD_HASHTAGS = "no hashtags and no caption", "hashtags are not a list of text"
ODD_CAPTION, ODD_URL, ODD_HASH = "caption is not text", "url is not text", "hash is not text"
ODD_LICENSE = "license is not text"
NO_UTF8, NO_ROW, NO_CSV = "bad UTF-8", "wrong number of columns", "not CSV"
NOT_DOWNLOADED = "not downloaded"
NO_MARKER, VIDEO = "last column is neither 0 nor 1", "a video"
TOO_LARGE, CUT = "row too large", "unreadable from here on"


class Post(NamedTuple):
    """A picture's post. hashtags: as written, without #. hash: of the picture, whatever the user knows it by."""

    id: str
    url: str | None
    hashtags: list[str]
    hash: str | None
    license: str | None = None


class Reject(NamedTuple):
    """A row that is no post. row: its line, record or member, from 1; text: its beginning."""

    input: str
    row: int
    reason: str
    text: str


class _UnfitError(Exception):
    """A row is no post; the message is one of the reasons."""


def find_format(path: Path) -> str:
    """The format that a file's name tells, "parquet" among them; ConfigError if it tells none."""
    stem = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    if found := SUFFIXES.get(Path(stem).suffix):
        return found
    if stem.startswith("yfcc100m"):
        return "yfcc"
    raise ConfigError(
        f"{path} is of no known format; name it {' '.join(SUFFIXES)} (or those with .gz or .bz2), or say which it is: "
        f"{', '.join(dict.fromkeys(SUFFIXES.values()))}"
    )


def read_posts(
    path: Path,
    columns: Columns = UNNAMED,
    format: str | None = None,
    seen: Callable[[int], object] | None = None,
) -> Iterator[Post | Reject]:
    """Every row of a file, as a post or a reject, in order; `seen` is told now and then how many of its bytes are read.

    ConfigError if the file is missing, or has a line of names and none can be that of an id, or of hashtags or a caption.
    """
    format = format or find_format(path)
    if format not in READERS:
        raise ConfigError(
            f"{path} of format {format!r} is not read row by row; formats: {', '.join(READERS)}"
        )
    row = 0
    try:
        with path.open("rb") as raw:
            opener = OPENERS.get(path.suffix.lower())
            rows, parse = READERS[format](opener(raw) if opener else raw, columns, path)
            for row, content in enumerate(rows, 1):
                try:
                    post = parse(content)
                except _UnfitError as error:
                    yield Reject(_spell(path), row, str(error), _show(content))
                else:
                    if post:
                        yield post
                if seen and row % 1000 == 0:
                    seen(raw.tell())
    except (EOFError, zlib.error, tarfile.TarError) as error:
        yield Reject(_spell(path), row + 1, CUT, str(error))
    except OSError as error:
        if error.errno is not None:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        yield Reject(
            _spell(path), row + 1, CUT, str(error)
        )  # bz2 and gzip have no error of their own


Rows = tuple[Iterable[Any], Callable[[Any], Post | None]]


def _read_json(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    return _list_lines(file), partial(_parse_json, columns)


def _read_tar(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    return _list_members(file), lambda member: _parse_json(columns, member[1], member[0])


def _read_yfcc(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    return _list_lines(file), _parse_yfcc


def _read_csv(file: IO[bytes], columns: Columns, path: Path) -> Rows:
    reader = csv.reader(line.decode("utf-8", "surrogateescape") for line in _list_lines(file))
    header = next(reader, None)
    if header is None:
        return (), _parse_yfcc
    found = find_columns(header, columns, path)
    return _list_records(reader), partial(
        _parse_record, len(header), [None if name is None else header.index(name) for name in found]
    )


READERS = {"json": _read_json, "csv": _read_csv, "yfcc": _read_yfcc, "tar": _read_tar}


def _list_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines; of one that is too large, as much as shows it."""
    line = file.readline(LARGEST).removeprefix(codecs.BOM_UTF8)
    while line:
        yield line
        while len(line) == LARGEST and not line.endswith(b"\n"):
            line = file.readline(LARGEST)
        line = file.readline(LARGEST)


def _list_records(reader: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _list_members(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """The .json members of a tar file: their names without extensions, as WebDataset has it, and what they hold."""
    plain = isinstance(file, io.BufferedReader)
    with cast(Any, tarfile.open(fileobj=file, mode="r:" if plain else "r|")) as archive:
        while member := archive.next():
            archive.members.clear()  # which it would keep all
            folder, _, name = member.name.rpartition("/")
            if member.isfile() and name.endswith(".json"):
                yield (
                    f"{folder}/{name.partition('.')[0]}".lstrip("/"),
                    archive.extractfile(member).read(LARGEST),
                )
        if plain:
            file.seek(archive.offset)
            if (
                file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE
            ):  # tarfile takes a cut before a member for the end
                raise tarfile.ReadError("unexpected end of data")


def _parse_json(columns: Columns, content: bytes, key: str | None = None) -> Post | None:
    text = _decode(content).strip(" \t\r\n")
    if not text:
        return None
    try:
        row, end = DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise _UnfitError(NO_JSON) from None
    if end != len(text):
        raise _UnfitError(NO_JSON)
    if type(row) is not dict:
        raise _UnfitError(NO_OBJECT)
    names = resolve_columns(columns, tuple(row))
    if names.hashtags is None and names.caption is None:
        raise _UnfitError(NO_HASHTAGS)
    identifier, *rest = map(row.get, names)
    post = _make_post(key if names.id is None and columns.id is None else identifier, *rest)
    if "\\u" in text:
        _check_text([post.id, post.url or "", post.hash or "", post.license or "", *post.hashtags])
    return post


def _parse_yfcc(content: bytes) -> Post | None:
    """Columns, counted from the end: 15 user tags, 9 download URL, 8 license, 1 marker, 0 for photos and 1 for videos.

    From the start: the photo's id, before which there may be the number of the line. Source: the data set's README, and files
    with 23 columns (2014) and 25 (with the number and a hash).
    """
    fields = _decode(content).rstrip("\r\n").split("\t")
    if fields == [""]:
        return None
    if not 23 <= len(fields) <= 25:
        raise _UnfitError(NO_ROW)
    if fields[-1] not in ("0", "1"):
        raise _UnfitError(NO_MARKER)
    if fields[-1] == "1":
        raise _UnfitError(VIDEO)
    tags = fields[-15].replace("+", " ").split(",")
    if "%" in fields[-15]:
        try:
            tags = [unquote(tag, errors="strict") for tag in tags]
        except UnicodeDecodeError:
            raise _UnfitError(NO_UTF8) from None
    return _make_post(
        fields[len(fields) > 23 and fields[1].isdecimal()],
        fields[-9] or None,
        tags,
        None,
        None,
        unquote(fields[-8].replace("+", " ")) or None,
    )


def _parse_record(
    width: int, places: list[int | None], record: list[str] | csv.Error
) -> Post | None:
    if isinstance(record, csv.Error):
        raise _UnfitError(NO_CSV)
    if not record:
        return None
    if len(record) != width:
        raise _UnfitError(NO_ROW)
    _check_text(record)
    return _make_post(*[None if place is None else record[place] or None for place in places])


def _make_post(
    identifier: Any, url: Any, hashtags: Any, caption: Any, digest: Any, license: Any
) -> Post:
    if identifier is None or identifier == "":
        raise _UnfitError(NO_ID)
    if type(identifier) is not str:
        if type(identifier) is not int and not (
            type(identifier) is float and identifier.is_integer()
        ):
            raise _UnfitError(ODD_ID)
        identifier = str(int(identifier))
    if not (url is None or type(url) is str):
        raise _UnfitError(ODD_URL)
    if not (digest is None or type(digest) is str):
        raise _UnfitError(ODD_HASH)
    if not (license is None or type(license) is str):
        raise _UnfitError(ODD_LICENSE)
    if hashtags is not None:
        return Post(identifier, url, _list_hashtags(hashtags), digest, license)
    if not (caption is None or type(caption) is str):
        raise _UnfitError(ODD_CAPTION)
    return Post(identifier, url, extract(caption) if caption else [], digest, license)


def _list_hashtags(cell: Any) -> list[str]:
    """Of a list, a JSON list, or text where # or else commas or else spaces tell them apart."""
    if type(cell) is str:
        if cell.startswith("["):
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError):
                raise _UnfitError(ODD_HASHTAGS) from None
        elif any(sign in cell for sign in HASH):
            return extract(cell)
        else:
            cell = cell.split("," if "," in cell else None)
    if type(cell) is not list:
        raise _UnfitError(ODD_HASHTAGS)
    try:
        return [bare for tag in cell if (bare := tag.strip(EDGES))]
    except AttributeError:
        raise _UnfitError(ODD_HASHTAGS) from None


def _decode(content: bytes) -> str:
    if len(content) >= LARGEST:
        raise _UnfitError(TOO_LARGE)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise _UnfitError(NO_UTF8) from None


def _check_text(texts: list[str]) -> None:
    """Halves of surrogate pairs are no text: JSON can spell them, and bytes that are no UTF-8 come as such."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise _UnfitError(NO_UTF8) from None


def _show(content: Any) -> str:
    """The beginning of a row."""
    if isinstance(content, tuple):
        content = content[1]
    if isinstance(content, list):
        content = ",".join(content)
    if not isinstance(content, bytes):
        content = str(content)[:SHOWN].encode("utf-8", "surrogateescape")
    return content[: 4 * SHOWN].decode("utf-8", "backslashreplace").rstrip("\r\n")[:SHOWN]


def _spell(path: Path) -> str:
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
