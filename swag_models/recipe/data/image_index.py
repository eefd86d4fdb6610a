"""Find images by id: loose files, members of tar shards, or rows of tables."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from swag_models.archives import find_members
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe, list_names, printable
from swag_models.image_formats import check_file_size, image_errors, is_image_name
from swag_models.inference.image_sources import LABEL_SUFFIXES, log_left_out
from swag_models.paths import expand_path, open_regular, walk_files
from swag_models.recipe.data.image_keys import (
    STEM,
    Key,
    Record,
    find_key,
    read_json_record,
    read_loose_record,
    read_table_records,
)
from swag_models.recipe.data.step_folders import explain_folder
from swag_models.recipe.data.tables import (
    BEYOND_HEADER,
    ROW_READERS,
    find_table_suffix,
    read_rows,
    table_errors,
)


class ImageLocation(NamedTuple):
    """Where an image is stored.

    Attributes:
        id: id of the image; None if it has a URL only.
        path: path of the file as bytes, which need not be UTF-8.
        offset: start of the image within a tar file, in bytes; None if `path` is the image file.
        size: size of the image in bytes; 0 for a missing file.
        time: modification time of the file in nanoseconds; 0 for a missing file.
        kind: where the id comes from; see `Key`.
        url: where the image was downloaded; None if unknown.
    """

    id: str | None
    path: bytes
    offset: int | None
    size: int
    time: int
    kind: str = "id"
    url: str | None = None

    @property
    def name(self) -> str:
        """Path as printable text."""
        return printable(os.fsdecode(self.path))

    def read(self) -> bytes:
        """Return the content of the image file; raise ImageError if it cannot be read."""
        with image_errors(self.name), open_regular(os.fsdecode(self.path)) as file:
            size = file.seek(0, os.SEEK_END) if self.offset is None else self.size
            check_file_size(size)
            file.seek(self.offset or 0)
            return file.read(size)


def find_locations(
    sources: Sequence[str | os.PathLike[str]],
    key_column: str | None = None,
    path_column: str = "path",
) -> Iterator[ImageLocation]:
    """Find every image of the sources, in their order; images of a folder are sorted by name.

    Args:
        sources: each is one of these:

            - a folder, searched to any depth for tar shards and for image files;
            - a tar shard;
            - a table with columns of ids and paths, relative to the table's folder; see
              `tables.read_rows`. Rows without a path, such as failed downloads, are left out and
              counted.
        key_column: field of the record of an image that is its id, or column of a table; see
            `find_key`. The record is the .json beside the image, in a folder or a tar, or its row
            in the Parquet file beside the tar or the folder. In a table, "id" by default.
        path_column: column of a table that has the paths.

    Raises:
        ConfigError: a source is of another kind, or cannot be read, or no image of it has the key.
    """
    left_out, count, paths = Counter[str](), 0, list[Path]()
    for source in (expand_path(source, "images") for source in sources):
        paths.append(source)
        for location in _read_source(source, left_out, key_column, path_column):
            count += 1
            yield location
    missing = left_out[f"image without {key_column}"]
    if missing and not count:
        raise ConfigError(
            f"none of {count_noun(missing, 'image')} has {describe(key_column)} in the .json or "
            f".parquet file beside it; give another key_column=, or {STEM} for the file name"
        )
    if not count:
        explained = [text for path in paths if path.is_dir() and (text := explain_folder(path))]
        found = ", ".join(f"{number:,} {kind}" for kind, number in left_out.items())
        raise ConfigError(
            explained[0]
            if explained
            else f"{list_names(list(map(str, paths)))} {'have' if paths[1:] else 'has'} no images"
            + (f"; left out: {found}" if found else "")
            + "; give folders, .tar shards or tables of images"
        )
    log_left_out(left_out)


def _read_source(
    source: Path, left_out: Counter[str], key_column: str | None, path_column: str
) -> Iterator[ImageLocation]:
    if not source.exists():
        raise ConfigError(f"{source} does not exist; give folders, .tar shards or tables of images")
    if source.is_dir():
        tables = dict[Path, dict[str, Record]]()  # of the folder that is being read
        for path in walk_files(source, _is_image_or_tar, left_out):
            if path.suffix == ".tar":
                yield from _read_tar(path, left_out, key_column)
                continue
            record = None if key_column == STEM else read_loose_record(path, left_out)
            if record is None and key_column != STEM:
                if path.parent not in tables:
                    table = path.parent.with_name(f"{path.parent.name}.parquet")
                    tables = {path.parent: read_table_records(table, None, key_column)}
                record = tables[path.parent].get(path.stem)
            if key := _find_key(path.stem, record, left_out, key_column):
                yield _locate_file(key, path)
    elif source.suffix == ".tar":
        yield from _read_tar(source, left_out, key_column)
    elif find_table_suffix(source):
        yield from _read_table(source, left_out, key_column or "id", path_column)
    else:
        raise ConfigError(
            f"no images in {source}; give folders, .tar shards, or tables "
            f"({' '.join(ROW_READERS)}) of ids and paths"
        )


def _is_image_or_tar(name: str) -> bool:
    return is_image_name(name) or name.endswith(".tar")


def _find_key(
    stem: str, record: Record | None, left_out: Counter[str], key_column: str | None
) -> Key | None:
    key = find_key(stem, record, key_column)
    if key is None:
        left_out[f"image without {key_column}"] += 1
    return key


def _locate_file(key: Key, path: Path) -> ImageLocation:
    try:
        status = path.stat()
        size, time = status.st_size, status.st_mtime_ns
    except (OSError, ValueError):  # reported when the image is read
        size, time = 0, 0
    return ImageLocation(key.id, os.fsencode(path), None, size, time, key.kind, key.url)


def _read_tar(
    path: Path, left_out: Counter[str], key_column: str | None
) -> Iterator[ImageLocation]:
    members, records = find_members(path, left_out), dict[str, Record | None]()
    images = {os.path.splitext(name)[0] for name, _ in members if is_image_name(name)}
    # All records first, because a .json may follow its image.
    with path.open("rb") as file:
        time = os.fstat(file.fileno()).st_mtime_ns
        for name, (offset, size) in members:
            stem, suffix = os.path.splitext(name)
            if suffix == ".json" and key_column != STEM:
                file.seek(offset)
                records[stem] = read_json_record(file.read(size), f"{path}/{name}")
    if key_column != STEM and not images <= records.keys():
        stems = {os.path.basename(stem): stem for stem in images}
        table = read_table_records(path.with_suffix(".parquet"), stems, key_column)
        for stem, record in table.items():
            records.setdefault(stems[stem], record)
    for name, (offset, size) in members:
        stem, suffix = os.path.splitext(name)
        if is_image_name(name):
            base = os.path.basename(stem)
            if key := _find_key(base, records.get(stem), left_out, key_column):
                yield ImageLocation(
                    key.id, os.fsencode(path), offset, size, time, key.kind, key.url
                )
        elif suffix not in LABEL_SUFFIXES:
            left_out[suffix.lower() or "without a suffix"] += 1


def _read_table(
    path: Path, left_out: Counter[str], key_column: str, path_column: str
) -> Iterator[ImageLocation]:
    columns = dict[str, None]()
    with table_errors(path):
        for row in read_rows(path, {key_column, path_column, "url"}):
            columns |= dict.fromkeys(row)
            name = row.get(path_column)
            key = find_key(Path(str(name)).stem, row, key_column) if name else None
            if key:
                yield _locate_file(key, path.parent / str(name))
            else:
                left_out["row without id or path"] += 1
    names = [name for name in columns if name != BEYOND_HEADER]
    for name, option in ((key_column, "key"), (path_column, "path")):
        if names and name not in (*names, STEM):
            raise ConfigError(
                f"{path} has no column {name!r}; its columns: {list_names(names)}; name one with "
                f"{option}_column="
            )
