"""Embeddings of many pictures in one file: continued after a kill, split between processes, merged.

While the work lasts, a folder `<output>.work` beside the output holds
  job.json      what is being done: model, settings, pictures; only the same work continues it
  vectors.f32   rows so far, appended batch by batch
  rows.jsonl    one line for each batch, written after its rows: what no line accounts for is cut off and done again
  lock          held by the process at work
The output appears whole, and the folder goes.

Axes: N pictures, D features.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError, ImageError
from swag_models.inference.image_sources import ImageRef, find_images
from swag_models.inference.predict import Embedder, Embeddings, Skipped

SUFFIXES = (".parquet", ".npy")
ROWS = 8192  # in one group of a Parquet file
FILES = ("rows.jsonl", "vectors.f32")
KEY = "swag_models"  # of our metadata


class EmbedSummary(NamedTuple):
    """Where the embeddings are, how many, and what was skipped."""

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
    """Embed `images`, anything `find_images` takes, into a .parquet or .npy file, continuing what an earlier run began.

    Parquet has columns `name` and `embedding` (float32, D); .npy is (N, D) with the names in a .json file beside it.
    Of `world_size` processes each takes one stretch of the pictures and writes `<stem>-<rank>-of-<world_size><suffix>`, for
    `merge_embeddings`. ConfigError if the output holds other work, OutputError if it cannot be written.
    """
    output = _name_part(check_embeddings_path(output), rank, world_size)
    pictures = find_images(images)
    start, stop = (len(pictures) * part // world_size for part in (rank, rank + 1))
    job = {
        **_describe(embedder, pictures),
        "pictures": len(pictures),
        "rank": rank,
        "world_size": world_size,
    }
    if _is_taken(output):
        if {key: value for key, value in _read_meta(output).items() if key in job} != job:
            raise ConfigError(f"{output} holds other embeddings; delete it or choose another name")
        if output.exists():
            shutil.rmtree(
                _folder_of(output), ignore_errors=True
            )  # still there if the process was killed just then
            found = read_embeddings(output)
            return EmbedSummary(output, len(found.names), found.skipped)
    with disk_errors(output, resumable=True), _Work(output, job) as work:
        with tqdm(
            total=stop - start,
            initial=work.done,
            unit=" pictures",
            disable=not progress,
            smoothing=0.1,
        ) as bar:
            for batch in embedder.run(pictures[start + work.done : stop]):
                vectors = None if batch.values is None else batch.values.numpy()
                work.append(len(batch.pictures), batch.names, batch.skipped, vectors)
                bar.update(len(batch.pictures))
        return work.finish()


def merge_embeddings(
    parts: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> EmbedSummary:
    """Put the files of all processes of one run together, in the order of the pictures.

    ConfigError if they are not all the parts of one run.
    """
    output = check_embeddings_path(output)
    metas = {Path(part): _read_meta(Path(part)) for part in parts}
    ordered = sorted(metas, key=lambda part: int(metas[part]["rank"]))
    runs = {
        json.dumps({**meta, "rank": 0, "skipped": []}, sort_keys=True) for meta in metas.values()
    }
    if len(runs) > 1:
        raise ConfigError(
            f"{', '.join(map(str, metas))} are of different runs; give the parts of one"
        )
    world_size = metas[ordered[0]]["world_size"]
    if missing := sorted(set(range(world_size)) - {meta["rank"] for meta in metas.values()}):
        names = ", ".join(
            _name_part(Path("part" + ordered[0].suffix), rank, world_size).name for rank in missing
        )
        raise ConfigError(f"{len(ordered)} of {world_size} parts given; missing: {names}")
    if len(ordered) > world_size:
        raise ConfigError(f"{len(ordered)} of {world_size} parts given; give each once")
    job = {key: value for key, value in metas[ordered[0]].items() if key != "skipped"}
    if _is_taken(output):
        raise ConfigError(f"{output} exists; delete it or choose another name")
    with (
        disk_errors(output, resumable=True),
        _Work(output, {**job, "rank": 0, "world_size": 1}, fresh=True) as work,
    ):
        for part in ordered:
            found = read_embeddings(part)
            work.append(
                len(found.names) + len(found.skipped),
                found.names,
                found.skipped,
                found.vectors.numpy(),
            )
        return work.finish()


def read_embeddings(path: str | os.PathLike[str]) -> Embeddings:
    """What `write_embeddings` wrote: vectors (N, D), names and skipped pictures; the vectors of a .npy file are mapped."""
    path = Path(path)
    record = _read_record(path)
    meta = record[KEY]
    skipped = [Skipped(*each) for each in meta["skipped"]]
    if path.suffix == ".npy":
        return Embeddings(torch.from_numpy(np.load(path, mmap_mode="c")), record["names"], skipped)
    table = _import_pyarrow().parquet.read_table(path).combine_chunks()
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return Embeddings(
        torch.from_numpy(flat.reshape(-1, meta["width"]).copy()), table["name"].to_pylist(), skipped
    )


class _Work:
    """The folder of work under way: append batches, then finish. Only one process at a time holds it."""

    def __init__(self, output: Path, job: dict[str, Any], fresh: bool = False) -> None:
        self.output, self.job, self.fresh = output, job, fresh
        self.folder = _folder_of(output)
        self.done, self.names, self.skipped = 0, list[str](), list[Skipped]()

    def __enter__(self) -> _Work:
        self.folder.mkdir(exist_ok=True)
        with ExitStack() as held:  # let go of all again if the work is refused
            try:
                held.enter_context(FileLock(self.folder / "lock").acquire(timeout=0))
            except Timeout:
                raise ConfigError(
                    f"another process is writing {self.output}; wait for it, or choose another name"
                ) from None
            described = self.folder / "job.json"
            if self.fresh:
                for name in (described.name, *FILES):
                    (self.folder / name).unlink(missing_ok=True)
            if not described.exists():
                with atomic_write(described) as to:
                    to.write_text(json.dumps(self.job, indent=2))
            elif json.loads(described.read_text()) != self.job:
                raise ConfigError(
                    f"{self.folder} holds other work for {self.output}; delete it or choose another name"
                )
            self._rows, self._vectors = (
                held.enter_context((self.folder / name).open("a+b")) for name in FILES
            )
            self._recall()
            self._held = held.pop_all()
        return self

    def _recall(self) -> None:
        """Take up what the journal accounts for, and cut off the rest."""
        row, space = 4 * self.job["width"], self._vectors.seek(0, os.SEEK_END)  # bytes
        self._rows.seek(0)
        whole = 0
        for line in self._rows:
            if not line.endswith(b"\n"):
                break
            batch = json.loads(line)
            if row * (len(self.names) + len(batch["names"])) > space:  # the machine lost its power
                break
            whole += len(line)
            self.done += batch["count"]
            self.names += batch["names"]
            self.skipped += [Skipped(*each) for each in batch["skipped"]]
        self._rows.truncate(whole)
        self._vectors.truncate(row * len(self.names))

    def append(
        self,
        count: int,
        names: list[str],
        skipped: list[Skipped],
        vectors: np.ndarray[Any, Any] | None,
    ) -> None:
        """Add `count` pictures: rows (N, D) with their names, and those skipped."""
        if vectors is not None:
            self._vectors.write(np.ascontiguousarray(vectors, dtype="<f4").data)
            self._vectors.flush()
        self._rows.write(
            json.dumps({"count": count, "names": names, "skipped": skipped}).encode() + b"\n"
        )
        self._rows.flush()
        self.done += count
        self.names += names
        self.skipped += skipped

    def finish(self) -> EmbedSummary:
        """Write the output and remove the folder."""
        shape = (len(self.names), self.job["width"])
        path = self.folder / "vectors.f32"
        vectors = np.memmap(path, "<f4", "r", shape=shape) if self.names else np.empty(shape, "<f4")
        meta = {**self.job, "skipped": self.skipped}
        if self.output.suffix == ".npy":
            with atomic_write(_record_of(self.output)) as to:
                to.write_text(json.dumps({KEY: meta, "names": self.names}))
            with atomic_write(self.output) as to:
                _write_npy(to, vectors)
        else:
            with atomic_write(self.output) as to:
                _write_parquet(to, vectors, self.names, meta)
        shutil.rmtree(self.folder, ignore_errors=True)
        return EmbedSummary(self.output, len(self.names), self.skipped)

    def __exit__(self, *error: object) -> None:
        self._held.close()


def _describe(embedder: Embedder, pictures: Sequence[ImageRef]) -> dict[str, Any]:
    """What must be equal for two runs to give the same rows."""
    weights, listing = hashlib.sha256(), hashlib.sha256()
    for name, tensor in embedder.model.state_dict().items():
        start = (
            tensor.flatten()[:1024].float().cpu().numpy()
        )  # enough to tell one training from another
        weights.update(f"{name} {tuple(tensor.shape)}".encode() + start.tobytes())
    for picture in pictures:
        listing.update(f"{picture.name}\0".encode())
        if not isinstance(picture.source, Path):  # a number is all the name it has
            listing.update(_digest(picture))
    return {
        "model": embedder.name,
        "width": embedder.model.num_features,
        "preprocess": repr(embedder.preprocess),
        "dtype": str(embedder.dtype).removeprefix("torch."),
        "weights_sha256": weights.hexdigest(),
        "pictures_sha256": listing.hexdigest(),
    }


def _digest(picture: ImageRef) -> bytes:
    """SHA-256 of the pixels, or of what is wrong with them."""
    try:
        return hashlib.sha256(np.ascontiguousarray(picture.read()).data).digest()
    except ImageError as error:
        return hashlib.sha256(str(error).encode()).digest()


def check_embeddings_path(output: str | os.PathLike[str]) -> Path:
    """A path that embeddings can be written to, or ConfigError: that is better known before the work than after it."""
    path = Path(output)
    if not path.parent.is_dir():
        raise ConfigError(
            f"{path.parent} is no folder; make it, or choose another one for {path.name}"
        )
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"embeddings in {path}: end the name in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        _import_pyarrow()
    return path


def _import_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "a .parquet file needs pyarrow; pip install 'swag-models[embed]', or write .npy"
        ) from None
    return pyarrow


def _name_part(output: Path, rank: int, world_size: int) -> Path:
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"rank is {rank}; with world_size {world_size} it goes from 0 to {world_size - 1}"
        )
    return (
        output
        if world_size == 1
        else output.with_stem(f"{output.stem}-{rank:05d}-of-{world_size:05d}")
    )


def _folder_of(output: Path) -> Path:
    """Where the work for it is under way."""
    return output.with_name(f"{output.name}.work")


def _record_of(path: Path) -> Path:
    """The file with our metadata."""
    return path.with_suffix(".json") if path.suffix == ".npy" else path


def _is_taken(output: Path) -> bool:
    return output.exists() or _record_of(output).exists()


def _read_meta(path: Path) -> dict[str, Any]:
    meta: dict[str, Any] = _read_record(path)[KEY]
    return meta


def _read_record(path: Path) -> dict[str, Any]:
    """Our metadata under `KEY`, and for .npy the names."""
    parquet = None if path.suffix == ".npy" else _import_pyarrow().parquet
    try:
        if parquet:
            return {KEY: json.loads(parquet.read_schema(path).metadata[KEY.encode()])}
        record: dict[str, Any] = json.loads(_record_of(path).read_text())
        return {KEY: record[KEY], "names": record["names"]}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:  # pyarrow's own errors are ValueErrors
        raise ConfigError(
            f"{_record_of(path)} is not what swag-models embed wrote: {error}"
        ) from None


def _write_npy(to: Path, vectors: np.ndarray[Any, Any]) -> None:
    with to.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, np.lib.format.header_data_from_array_1_0(vectors)
        )
        file.write(vectors.data)  # numpy's own way does not say that a disk is full


def _write_parquet(
    to: Path, vectors: np.ndarray[Any, Any], names: list[str], meta: dict[str, Any]
) -> None:
    pa = _import_pyarrow()
    columns = [
        pa.field("name", pa.string()),
        pa.field("embedding", pa.list_(pa.float32(), vectors.shape[1])),
    ]
    schema = pa.schema(columns, metadata={KEY: json.dumps(meta)})
    with pa.parquet.ParquetWriter(to, schema) as writer:
        for start in range(0, len(names), ROWS):
            rows = pa.array(vectors[start : start + ROWS].reshape(-1))
            arrays = [
                pa.array(names[start : start + ROWS], pa.string()),
                pa.FixedSizeListArray.from_arrays(rows, vectors.shape[1]),
            ]
            writer.write_table(pa.table(arrays, schema=schema))
