"""Ingest files of posts in any format: one table of posts, and a file of rejected rows.

Text formats are first converted to Parquet, in parallel. For each input, in order, the folder of
the conversion then contains
  00000.parquet         id, url, hashtags, hash, license
  00000.rejects.jsonl   the malformed rows: input, row, reason, text, value
  00000.json            the record of `run_once`; a part without it is converted again
The first two depend only on the content and name of the input, byte for byte.
"""

import gc
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError, check_minimum
from swag_models.hub.progress import make_bar
from swag_models.recipe.curation import queries
from swag_models.recipe.curation.backends import Backend, remove_table
from swag_models.recipe.curation.columns import DEFAULT_COLUMNS, Columns, find_parquet_columns
from swag_models.recipe.curation.post_files import find_format
from swag_models.recipe.curation.posts import (
    MAX_REJECT_CHARS,
    TRUNCATED,
    Post,
    Reject,
    warn_of_truncated,
)
from swag_models.recipe.curation.readers import read_posts
from swag_models.recipe.worker_pool import open_pool
from swag_models.resumable import WorkFolder, read_result, run_once
from swag_models.runtime import count_cpus

if TYPE_CHECKING:
    import ibis

POSTS_AT_ONCE = 2**14  # in memory; also the rows of a Parquet row group
CONVERSION_VERSION = 5  # increase when parts change; parts of another version are converted again
POST_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "url": pa.string(),
        "hashtags": pa.list_(pa.string()),
        "hash": pa.string(),
        "license": pa.string(),
    }
)


@dataclass(frozen=True)
class ReadOptions:
    """How files of posts are read.

    Args:
        columns: names of their columns.
        format: their format; by default recognised from each file's name.
        progress: whether to show a progress bar.
    """

    columns: Columns = DEFAULT_COLUMNS
    format: str | None = None
    progress: bool = True


class Conversion(NamedTuple):
    """The result of `convert_posts`.

    Attributes:
        parts: Parquet files, in the order of the inputs.
        rows: number of posts in all parts.
        rejects: number of rejected rows for each reason.
        reject_files: JSON Lines files of the rejected rows, without empty files.
    """

    parts: list[Path]
    rows: int
    rejects: dict[str, int]
    reject_files: list[Path]


class _Job(NamedTuple):
    """One input, the files it is converted to, and the key that they depend on."""

    source: Path
    columns: Columns
    format: str
    part: Path
    rejects: Path
    record: Path
    key: dict[str, Any]


def unite_posts(
    backend: Backend, files: Sequence[Path], options: ReadOptions, folder: Path, rejects: Path
) -> "tuple[ibis.Table, dict[str, int]]":
    """Unite the posts of all files in one table, and write the rejected rows to a file.

    Args:
        backend: reads the tables.
        files: see `find_files`.
        options: how they are read.
        folder: folder for converted text files and temporary tables.
        rejects: JSON Lines file to write.

    Returns:
        The table of posts, and the number of rejected rows for each reason.

    Raises:
        ConfigError: a file cannot be read or lacks a column.
        OutputError: the folder cannot be written.
    """
    import ibis

    formats = {file: options.format or find_format(file) for file in files}
    converted = convert_posts(
        [file for file in files if formats[file] != "parquet"],
        folder / "posts",
        columns=options.columns,
        format=options.format,
        progress=options.progress,
    )
    # read together where possible, since a union of thousands of tables is a huge query
    tables = [backend.read_all(converted.parts)] if converted.parts else []
    counts = Counter(converted.rejects)
    parquet_files = [file for file in files if formats[file] == "parquet"]
    with atomic_write(rejects) as temporary, temporary.open("wb") as output:
        for path in converted.reject_files:
            output.write(path.read_bytes())
        for columns, group in _group_by_schema(parquet_files, options.columns):
            rows = queries.select_posts(backend.read_all(group), columns._asdict())
            tables.append(rows.filter(rows.reason.isnull()).drop("reason"))
            malformed = folder / "malformed.parquet"
            columns_shown = ("id", "reason", "url", "hashtags")
            backend.write(rows.filter(rows.reason.notnull()).select(*columns_shown), malformed)
            # the rows of a group do not state which file they come from
            source = " ... ".join(dict.fromkeys((group[0].name, group[-1].name)))
            for reason, text in _list_malformed(malformed):
                counts[reason] += 1
                line = json.dumps({"input": source, "reason": reason, "text": text})
                output.write(line.encode() + b"\n")
            remove_table(malformed)
    table = ibis.union(*tables) if len(tables) > 1 else tables[0]
    return table, dict(sorted((+counts).items()))  # "+" drops zeros


def _group_by_schema(files: Sequence[Path], columns: Columns) -> list[tuple[Columns, list[Path]]]:
    """Group Parquet files that can be read as one table, with the columns of their posts."""
    groups: dict[Any, tuple[Columns, list[Path]]] = {}
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
        except pa.ArrowInvalid:
            raise ConfigError(
                f"{file} is not a Parquet file or is truncated; replace or remove it"
            ) from None
        # Files of one dataset may have different types, for example ids as numbers and as text.
        types = tuple(zip(schema.names, map(str, schema.types), strict=True))
        if types not in groups:
            groups[types] = find_parquet_columns(schema, columns, file), []
        groups[types][1].append(file)
    return list(groups.values())


def _list_malformed(path: Path) -> Iterator[tuple[str, str]]:
    """Yield reason and text of each row of a table of malformed rows."""
    for batch in pyarrow.dataset.dataset(path).to_batches():
        for row in batch.to_pylist():
            fields = [row["id"], row["url"], *(row["hashtags"] or [])]
            yield row["reason"], " ".join(filter(None, fields))[:MAX_REJECT_CHARS]


def convert_posts(
    inputs: Sequence[Path],
    folder: Path,
    *,
    columns: Columns = DEFAULT_COLUMNS,
    format: str | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Conversion:
    """Convert text files of posts to Parquet parts.

    A part is converted again only if the name, size or modification time of its input, the columns
    or the format have changed.

    Args:
        inputs: files in any format except Parquet.
        folder: where the parts are written; used by one process at a time.
        columns: names of their columns or fields.
        format: their format; by default recognised from each file's name.
        processes: number of processes; by default one per input, at most one per CPU.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: an input cannot be read.
        OutputError: the folder cannot be written.
    """
    check_minimum(1, processes=processes)
    # by position, so that two inputs with the same name do not collide
    jobs = [_plan_job(path, folder / f"{i:05d}", columns, format) for i, path in enumerate(inputs)]
    with disk_errors(folder, resumable=True), WorkFolder(folder):
        waiting = [job for job in jobs if not _is_done(job)]
        total = sum(job.key["size"] for job in jobs)  # bytes
        done = total - sum(job.key["size"] for job in waiting)
        shown = progress and bool(jobs)
        with make_bar(
            shown, total=total, initial=done, unit="B", unit_scale=True, desc="posts"
        ) as bar:
            count = min(len(waiting), processes or count_cpus())
            if count > 1:
                _convert_in_processes(waiting, count, lambda size: bar.update(done + size - bar.n))
            # converts the inputs that are left, and reads the records of all
            results = [_convert_once(job, bar.update) for job in jobs]
    for job, result in zip(jobs, results, strict=True):
        if TRUNCATED in result["rejects"]:
            warn_of_truncated(job.source, job.rejects)
    rejects = sum((Counter(result["rejects"]) for result in results), Counter[str]())
    return Conversion(
        [job.part for job in jobs],
        sum(result["rows"] for result in results),
        dict(sorted(rejects.items())),
        [job.rejects for job, result in zip(jobs, results, strict=True) if result["rejects"]],
    )


def _plan_job(source: Path, stem: Path, columns: Columns, format: str | None) -> _Job:
    format = format or find_format(source)
    try:
        status = source.stat()
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from None
    key = {
        "input": str(source),
        "size": status.st_size,
        "time": status.st_mtime_ns,
        "columns": columns,
        "format": format,
        "version": CONVERSION_VERSION,
    }
    part, rejects = stem.with_suffix(".parquet"), stem.with_suffix(".rejects.jsonl")
    return _Job(source, columns, format, part, rejects, stem.with_suffix(".json"), key)


def _is_done(job: _Job) -> bool:
    try:
        read_result(job.record, job.key, [job.part, job.rejects])
    except LookupError:
        return False
    return True


def _convert_once(job: _Job, advance: Callable[[int], object]) -> dict[str, Any]:
    """Convert one input, unless that is done; returns the numbers of rows and rejects.

    Args:
        job: the input.
        advance: called with the number of bytes of the input read since the last call.
    """
    result: dict[str, Any] = run_once(
        job.record, job.key, [job.part, job.rejects], lambda: _convert(job, advance)
    )
    return result


def _convert(job: _Job, advance: Callable[[int], object]) -> dict[str, Any]:
    position = 0

    def report_position(new_position: int) -> None:
        nonlocal position
        advance(new_position - position)
        position = new_position

    rows, rejects = 0, Counter[str]()
    # chunk by chunk, so that memory does not grow with the input
    with (
        atomic_write(job.part) as part,
        atomic_write(job.rejects) as rejects_path,
        _pause_garbage_collection(),
        pyarrow.parquet.ParquetWriter(part, POST_SCHEMA, compression="zstd") as writer,
        rejects_path.open("w") as rejects_file,
    ):
        results = read_posts(job.source, job.columns, job.format, report_position)
        while chunk := list(islice(results, POSTS_AT_ONCE)):
            if posts := [row for row in chunk if isinstance(row, Post)]:
                columns = zip(zip(*posts), POST_SCHEMA)
                arrays = [pa.array(values, field.type) for values, field in columns]
                writer.write_table(pa.table(arrays, schema=POST_SCHEMA))
                rows += len(posts)
            for row in chunk:
                if isinstance(row, Reject):
                    rejects_file.write(json.dumps(row._asdict()) + "\n")
                    rejects[row.reason] += 1
    report_position(job.key["size"])  # read_posts reports every 1000 rows
    return {"rows": rows, "rejects": rejects}


# In a worker process: the number of bytes that all workers have read.
_bytes_read: Any = None


def _convert_in_processes(
    jobs: Sequence[_Job], count: int, update: Callable[[int], object]
) -> None:
    """Convert inputs in `count` processes; `update` is called with the total bytes read."""
    bytes_read = multiprocessing.get_context("spawn").Value("q", 0)
    with open_pool(count, _share_counter, bytes_read) as pool:
        waiting = {pool.submit(_convert_counted, job) for job in jobs}
        while waiting:
            # a timeout, to update the progress bar twice a second
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
            update(bytes_read.value)
            for future in done:
                future.result()  # raises what the worker raised


def _share_counter(bytes_read: Any) -> None:
    global _bytes_read
    _bytes_read = bytes_read


def _convert_counted(job: _Job) -> None:
    def advance(count: int) -> None:
        with _bytes_read.get_lock():
            _bytes_read.value += count

    _convert_once(job, advance)


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles: rows have none, and it takes a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
