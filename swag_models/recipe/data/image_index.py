"""Where the images of given ids are: loose files, members of tar shards, or the files that a table names."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from swag_models.errors import ConfigError, ImageError
from swag_models.inference.image_sources import IMAGE_SUFFIXES, find_members
from swag_models.runtime import import_extra

TABLES = {
    ".parquet": "read_parquet(?)",
    ".csv": "read_csv(?, all_varchar=true)",
    ".jsonl": "read_json(?, format='newline_delimited', columns={id: 'VARCHAR', path: 'VARCHAR'})",
}
ROWS = 10_000  # of a table, fetched at a time


class Place(NamedTuple):
    """An image and where it is: a file, or `size` bytes at `offset` of a tar file."""

    id: str
    path: bytes
    offset: int | None
    size: int

    @property
    def name(self) -> str:
        """The path, with what is no UTF-8 spelled out."""
        return self.path.decode("utf-8", "backslashreplace")

    def read(self) -> bytes:
        """The image's file; ImageError says why it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                if self.offset is None:
                    return file.read()
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read: {error.strerror}") from None


def find_places(sources: Sequence[str | os.PathLike[str]]) -> Iterator[Place]:
    """Every image of these sources, in their order, those in a folder by name.

    A folder is searched to any depth for pictures, whose id is their stem, and for tar shards. In a tar shard the id is the
    `id` or `key` of the .json member beside the picture, or else the picture's stem. A table (.parquet, .csv, .jsonl) has
    columns `id` and `path`, relative to the table's folder; rows without a path, such as those that could not be downloaded,
    are passed over. ConfigError names what is none of these.
    """
    for source in map(Path, sources):
        if source.is_dir():
            for path in _walk(source):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    yield _place(path.stem, path)
                elif path.suffix == ".tar":
                    yield from _read_tar(path)
        elif source.suffix == ".tar":
            yield from _read_tar(source)
        elif source.suffix in TABLES:
            yield from _read_table(source)
        else:
            raise ConfigError(
                f"no images in {source}; give folders, .tar shards, or tables ({' '.join(TABLES)}) of ids and paths"
            )


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ConfigError(f"{error.filename} cannot be searched: {error.strerror}")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


def _place(identifier: str, path: Path) -> Place:
    """A loose file; that it is missing is found when it is read."""
    spelled = identifier.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return Place(spelled, os.fsencode(path), None, size)


def _read_tar(path: Path) -> Iterator[Place]:
    members, ids = find_members(path), dict[str, str]()
    with path.open("rb") as file:
        for name, (offset, size) in members:
            stem, suffix = os.path.splitext(name)
            if suffix == ".json":
                file.seek(offset)
                try:
                    record = json.loads(file.read(size))
                except ValueError as error:
                    raise ConfigError(f"{path}/{name} is not JSON: {error}") from None
                if isinstance(record, dict) and ("id" in record or "key" in record):
                    ids[stem] = str(record.get("id", record.get("key")))
    for name, (offset, size) in members:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES:
            yield Place(ids.get(stem, os.path.basename(stem)), os.fsencode(path), offset, size)


def _read_table(path: Path) -> Iterator[Place]:
    duckdb = import_extra("duckdb")
    query = f"SELECT id::VARCHAR, path::VARCHAR FROM {TABLES[path.suffix]} WHERE id IS NOT NULL AND path IS NOT NULL"
    with closing(duckdb.connect()) as database:
        try:
            rows = database.execute(query, [glob.escape(str(path))])
            while some := rows.fetchmany(ROWS):
                yield from (_place(identifier, path.parent / name) for identifier, name in some)
        except duckdb.Error as error:
            raise ConfigError(
                f"{path} is not a table with columns id and path: {str(error).splitlines()[0]}"
            ) from None
