"""Embeddings of many images in one file: resumable, split between processes, merged.

During the work, a folder `<output>.work` beside the output contains
  job.json      description of the work: model, settings, images; only the same work is resumed
  vectors.f32   rows written so far
  rows.jsonl    one line for each batch, written after its rows
  .lock         held by the running process
At the end the output is written atomically, and the folder is deleted.

Axes: N images, D features.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from swag_models.atomic import disk_errors
from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.hub.progress import make_bar
from swag_models.inference.embed_job import add_hashes, describe_job, hash_images
from swag_models.inference.embeddings_file import (
    Vectors,
    check_embeddings_path,
    get_metadata_path,
    hash_rows,
    read_embeddings_metadata,
    read_intact_embeddings,
    write_embeddings_file,
)
from swag_models.inference.image_sources import find_images
from swag_models.inference.predict import Embedder, Skipped
from swag_models.paths import expand_path
from swag_models.resumable import WorkFolder, report_done

JOURNAL_FILES = ("rows.jsonl", "vectors.f32")
# Metadata that describe the rows of a file, and those that differ between the parts of one run.
ROWS_KEYS = {"skipped", "rows_sha256"}
PART_KEYS = {"rank", "files_hash", *ROWS_KEYS}

logger = logging.getLogger("swag_models")


class EmbedSummary(NamedTuple):
    """Result of `write_embeddings` and `merge_embeddings`.

    Attributes:
        path: the file with the embeddings.
        rows: number of embeddings in it.
        skipped: images that could not be read.
    """

    path: Path
    rows: int
    skipped: list[Skipped]


def write_embeddings(
    embedder: Embedder,
    images: Any,
    output: str | os.PathLike[str],
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> EmbedSummary:
    """Embed images into a file, and resume if an earlier run was interrupted.

    A .parquet file has the columns `name` and `embedding` (float32, D). A .npy file is (N, D), with
    the names in a .json file beside it. With several processes, each embeds a contiguous part of
    the images into `<stem>-<rank>-of-<world_size><suffix>`; `merge_embeddings` joins the parts.

    Args:
        embedder: the model.
        images: anything that `find_images` accepts.
        output: a .parquet or .npy file.
        rank: number of this process, from 0.
        world_size: number of processes.
        progress: show a progress bar on stderr.

    Returns:
        The file, its number of rows, and the skipped images.

    Raises:
        ConfigError: the output contains other embeddings, or an argument is invalid.
        OutputError: the output cannot be written.
    """
    output = _get_part_path(check_embeddings_path(output), rank, world_size)
    refs = find_images(images)
    start, stop = (len(refs) * part // world_size for part in (rank, rank + 1))
    job = describe_job(embedder, refs) | {"rank": rank, "world_size": world_size}
    job["files_hash"] = hash_images(refs[start:stop])
    if finished := _find_finished(output, job):
        return finished
    with (
        disk_errors(output, resumable=True),
        WorkFolder(_get_work_path(output), job, output=output) as work,
        _open_journal(work.path, job["width"]) as journal,
    ):
        with make_bar(
            progress,
            total=stop - start,
            initial=journal.num_images,
            unit=" images",
            smoothing=0.1,
        ) as bar:
            for batch in embedder.run(refs[start + journal.num_images : stop]):
                vectors = None if batch.values is None else batch.values.numpy()
                journal.append(len(batch.images), batch.names, batch.skipped, vectors)
                bar.update(len(batch.images))
        return _finish(journal, output, job)


def merge_embeddings(
    parts: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> EmbedSummary:
    """Merge the files that the processes of one run wrote, in the order of the images.

    Args:
        parts: all parts, in any order.
        output: the .parquet or .npy file to write.

    Returns:
        The file, its number of rows, and the skipped images.

    Raises:
        ConfigError: parts are missing or of different runs, or the output contains other
            embeddings.
        OutputError: the output cannot be written.
    """
    output = check_embeddings_path(output)
    paths, job = _sort_parts(parts)
    if finished := _find_finished(output, job):
        return finished
    with (
        disk_errors(output, resumable=True),
        WorkFolder(_get_work_path(output), output=output) as work,
    ):
        # An unfinished merge starts again: copying rows costs less than checking them.
        for name in (work.record.name, *JOURNAL_FILES):
            (work.path / name).unlink(missing_ok=True)
        work.claim(job)
        with _open_journal(work.path, job["width"]) as journal:
            for path in paths:
                vectors, names, skipped = read_intact_embeddings(path)
                journal.append(len(names) + len(skipped), names, skipped, vectors.numpy())
            return _finish(journal, output, job)


class _Journal:
    """The rows written so far, in two files that only grow.

    The rows of a batch are written first, then the line that accounts for them. When the work is
    resumed, rows without a line are cut off, so no row is lost or written twice.

    Args:
        lines: the open file `rows.jsonl`.
        vectors: the open file `vectors.f32`.
        width: D.
    """

    def __init__(self, lines: BinaryIO, vectors: BinaryIO, width: int) -> None:
        self.width = width
        self.num_images, self.names, self.skipped = 0, list[str](), list[Skipped]()
        self._lines, self._vectors = lines, vectors
        row_size = 4 * width  # bytes
        vectors_size = vectors.seek(0, os.SEEK_END)
        lines.seek(0)
        valid_size = 0
        for line in lines:
            if not line.endswith(b"\n"):  # the process was killed while writing it
                break
            try:
                batch = parse_json(line)
                skipped = [Skipped(*fields) for fields in batch["skipped"]]
            except (ValueError, LookupError, TypeError):  # damaged: the rest is embedded again
                break
            # After a power failure, a line may be on disk without its rows.
            if row_size * (len(self.names) + len(batch["names"])) > vectors_size:
                break
            valid_size += len(line)
            self.num_images += batch["count"]
            self.names += batch["names"]
            self.skipped += skipped
        lines.truncate(valid_size)
        vectors.truncate(row_size * len(self.names))

    def append(
        self, num_images: int, names: list[str], skipped: list[Skipped], vectors: Vectors | None
    ) -> None:
        """Add a batch of `num_images` images: rows (N, D) with N names, and the skipped images."""
        if vectors is not None:
            self._vectors.write(np.ascontiguousarray(vectors, dtype="<f4").data)
            self._vectors.flush()
        line = {"count": num_images, "names": names, "skipped": skipped}
        self._lines.write(json.dumps(line).encode() + b"\n")
        self._lines.flush()
        self.num_images += num_images
        self.names += names
        self.skipped += skipped

    def read_vectors(self) -> Vectors:
        """All rows (N, D), mapped into memory."""
        shape = (len(self.names), self.width)
        if not self.names:  # an empty file cannot be mapped
            return np.empty(shape, "<f4")
        return np.memmap(self._vectors.name, "<f4", "r", shape=shape)


@contextmanager
def _open_journal(folder: Path, width: int) -> Iterator[_Journal]:
    lines, vectors = (folder / name for name in JOURNAL_FILES)
    with lines.open("a+b") as lines_file, vectors.open("a+b") as vectors_file:
        yield _Journal(lines_file, vectors_file, width)


def _finish(journal: _Journal, output: Path, job: dict[str, Any]) -> EmbedSummary:
    """Write the output and delete the folder of the work."""
    vectors = journal.read_vectors()
    rows_hash = hash_rows(vectors, journal.names)
    metadata = {**job, "skipped": journal.skipped, "rows_sha256": rows_hash}
    write_embeddings_file(output, vectors, journal.names, metadata)
    shutil.rmtree(_get_work_path(output), ignore_errors=True)
    return EmbedSummary(output, len(journal.names), journal.skipped)


def _find_finished(output: Path, job: dict[str, Any]) -> EmbedSummary | None:
    """The embeddings that an earlier run with this job wrote; None if they are not complete.

    Raises:
        ConfigError: the output contains other embeddings.
    """
    if not _exists(output):
        return None
    if not (record := get_metadata_path(output)).exists():
        raise ConfigError(
            f"{output} was not written by swag-models embed: {record.name} is missing; delete "
            "it or choose another name"
        )
    try:
        metadata = read_embeddings_metadata(output)
    except ConfigError as error:
        raise ConfigError(f"{error}; delete it or choose another name") from None
    if any(metadata.get(name) != value for name, value in job.items()):
        raise ConfigError(f"{output} contains other embeddings; delete it or choose another name")
    if not output.exists():  # the .json file is written before its .npy file
        return None
    # an earlier run that was killed may not have deleted the folder
    shutil.rmtree(_get_work_path(output), ignore_errors=True)
    try:
        embeddings = read_intact_embeddings(output)
    except ConfigError as error:
        logger.warning("%s; it is written again", error)
        return None
    report_done(output)
    return EmbedSummary(output, len(embeddings.names), embeddings.skipped)


def _sort_parts(
    parts: Sequence[str | os.PathLike[str]],
) -> tuple[list[Path], dict[str, Any]]:
    """The paths of all parts of one run by rank, and the description of the whole run."""
    paths = [expand_path(part, "part") for part in parts]
    metadata = {path: read_embeddings_metadata(path) for path in paths}
    paths = sorted(metadata, key=lambda path: int(metadata[path]["rank"]))
    runs = {
        json.dumps({name: values[name] for name in values.keys() - PART_KEYS}, sort_keys=True)
        for values in metadata.values()
    }
    if len(runs) > 1:
        raise ConfigError(
            f"{', '.join(map(str, metadata))} are from different runs; pass the parts of one run"
        )
    first = metadata[paths[0]]
    world_size = first["world_size"]
    if missing := sorted(set(range(world_size)) - {part["rank"] for part in metadata.values()}):
        template = Path("part" + paths[0].suffix)
        names = ", ".join(_get_part_path(template, rank, world_size).name for rank in missing)
        raise ConfigError(
            f"{len(paths)} of {count_noun(world_size, 'part')} passed; missing: {names}"
        )
    if len(paths) > world_size:
        raise ConfigError(
            f"{len(paths)} of {count_noun(world_size, 'part')} passed; pass each part once"
        )
    # The merged file equals that of a single process.
    job = {name: value for name, value in first.items() if name not in ROWS_KEYS}
    hashes = [part["files_hash"] for part in metadata.values()]
    job |= {"rank": 0, "world_size": 1, "files_hash": add_hashes(hashes)}
    return paths, job


def _get_part_path(output: Path, rank: int, world_size: int) -> Path:
    """The file of one process."""
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"invalid rank {rank}: allowed with world_size {world_size}: 0 to {world_size - 1}"
        )
    if world_size == 1:
        return output
    return output.with_stem(f"{output.stem}-{rank:05d}-of-{world_size:05d}")


def _get_work_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.work")


def _exists(output: Path) -> bool:
    return output.exists() or get_metadata_path(output).exists()
