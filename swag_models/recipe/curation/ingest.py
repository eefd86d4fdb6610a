"""Files of posts in any format -> Parquet, one part for each, in parallel; parts that are done are kept.

For each input, in order, the folder holds
  00000.parquet         id, url, hashtags, hash, license
  00000.rejects.jsonl   what was malformed: input, row, reason, text
  00000.json            which input it was, and how many rows and rejects; written last: a part without it is made again
The first two depend on the content and name of the input alone, to the byte.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError
from swag_models.recipe.curation.columns import UNNAMED, Columns
from swag_models.recipe.curation.readers import Post, Reject, find_format, read_posts
from swag_models.recipe.worker_pool import open_pool
from swag_models.runtime import count_cpus, import_extra

ROWS = 2**14  # in one group of a Parquet file: so many are in memory at a time
VERSION = 2  # of the parts: those of another are made again


class Conversion(NamedTuple):
    """parts: Parquet files, in the order of the inputs; rows: posts in them; rejects: how many for each reason; and where."""

    parts: list[Path]
    rows: int
    rejects: dict[str, int]
    rejects_files: list[Path]


class _Job(NamedTuple):
    """One input, and the files it becomes."""

    source: Path
    columns: Columns
    format: str
    part: Path
    rejects: Path
    record: Path


def convert_posts(
    inputs: Sequence[Path],
    folder: Path,
    *,
    columns: Columns = UNNAMED,
    format: str | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Conversion:
    """Convert `inputs`, none of them Parquet, into parts in `folder`, in so many processes (by default as many as can run).

    A part is kept if the name, size and time of its input are what they were, and so are columns and format. ConfigError for
    an input that cannot be read, OutputError if the folder cannot be written.
    """
    import_extra("pyarrow")
    if processes is not None and processes < 1:
        raise ConfigError(f"processes is {processes}; give 1 or more")
    jobs = [_plan(path, folder / f"{i:05d}", columns, format) for i, path in enumerate(inputs)]
    with disk_errors(folder, resumable=True), ExitStack() as held:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(FileLock(folder / "lock").acquire(timeout=0))
        except Timeout:
            raise ConfigError(
                f"another process is writing {folder}; wait for it, or choose another folder"
            ) from None
        sizes = {job: _describe(job)["size"] for job in jobs}
        waiting = [job for job in jobs if not _is_done(job)]
        done = sum(sizes.values()) - sum(sizes[job] for job in waiting)
        bar = tqdm(
            total=sum(sizes.values()),
            initial=done,
            unit="B",
            unit_scale=True,
            desc="posts",
            disable=not progress,
        )
        held.enter_context(bar)
        count = min(len(waiting), processes or count_cpus())
        if count > 1:
            _convert_in_processes(waiting, count, lambda seen: bar.update(done + seen - bar.n))
        else:
            for job in waiting:
                _convert(job, bar.update)
        records = [json.loads(job.record.read_bytes()) for job in jobs]
    rejects = sum((Counter(record["rejects"]) for record in records), Counter[str]())
    files = [job.rejects for job, record in zip(jobs, records) if record["rejects"]]
    return Conversion(
        [job.part for job in jobs],
        sum(record["rows"] for record in records),
        dict(sorted(rejects.items())),
        files,
    )


def _plan(source: Path, stem: Path, columns: Columns, format: str | None) -> _Job:
    outputs = (stem.with_suffix(suffix) for suffix in (".parquet", ".rejects.jsonl", ".json"))
    return _Job(source, columns, format or find_format(source), *outputs)


def _convert(job: _Job, advance: Callable[[int], object]) -> None:
    """Make one part; `advance` is told how many more bytes of the input are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seen = 0

    def see(position: int) -> None:
        nonlocal seen
        advance(position - seen)
        seen = position

    text = pa.string()
    schema = pa.schema(
        {"id": text, "url": text, "hashtags": pa.list_(text), "hash": text, "license": text}
    )
    record, rows, rejects = _describe(job), 0, Counter[str]()
    job.record.unlink(missing_ok=True)
    with (
        atomic_write(job.part) as part,
        atomic_write(job.rejects) as rejected,
        _pause_collector(),
        ExitStack() as files,
    ):
        writer = files.enter_context(pq.ParquetWriter(part, schema, compression="zstd"))
        log = files.enter_context(rejected.open("w"))
        found = read_posts(job.source, job.columns, job.format, see)
        while chunk := list(islice(found, ROWS)):
            if posts := [row for row in chunk if isinstance(row, Post)]:
                arrays = [
                    pa.array(column, field.type) for column, field in zip(zip(*posts), schema)
                ]
                writer.write_table(pa.table(arrays, schema=schema))
                rows += len(posts)
            for row in chunk:
                if isinstance(row, Reject):
                    log.write(json.dumps(row._asdict()) + "\n")
                    rejects[row.reason] += 1
    see(record["size"])
    written = [job.part.stat().st_size, job.rejects.stat().st_size]
    with atomic_write(job.record) as to:
        to.write_text(
            json.dumps({**record, "written": written, "rows": rows, "rejects": rejects}, indent=2)
        )


def _describe(job: _Job) -> dict[str, Any]:
    """What must be equal for a part to be kept."""
    try:
        status = job.source.stat()
    except OSError as error:
        raise ConfigError(f"{job.source} cannot be read: {error.strerror}") from None
    source = {"input": str(job.source), "size": status.st_size, "time": status.st_mtime_ns}
    return {**source, "columns": [*job.columns], "format": job.format, "version": VERSION}


def _is_done(job: _Job) -> bool:
    try:
        record = json.loads(job.record.read_bytes())
        written = [job.part.stat().st_size, job.rejects.stat().st_size]
    except FileNotFoundError:
        return False
    return record.items() >= {**_describe(job), "written": written}.items()


# Of a process that converts: how many bytes all of them have read.
_seen: Any = None


def _convert_in_processes(
    jobs: Sequence[_Job], count: int, update: Callable[[int], object]
) -> None:
    """Make parts in `count` processes; `update` is told how many bytes are read in all."""
    seen = multiprocessing.get_context("spawn").Value("q", 0)
    with open_pool(count, _share, seen) as pool:
        waiting = {pool.submit(_convert_counted, job) for job in jobs}
        while waiting:
            done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
            update(seen.value)
            for future in done:
                future.result()


def _share(seen: Any) -> None:
    global _seen
    _seen = seen


def _convert_counted(job: _Job) -> None:
    def advance(more: int) -> None:
        with _seen.get_lock():
            _seen.value += more

    _convert(job, advance)


@contextmanager
def _pause_collector() -> Iterator[None]:
    """No search for cycles: there are none in rows, and looking through them takes a quarter of the time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
