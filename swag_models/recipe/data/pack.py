"""Images and labels -> WebDataset shards, in parallel; what was killed goes on, and ends in the same bytes.

Which sample lies in which shard is decided before any image is read: samples are sorted by a hash of seed and id, so that each
shard is a random sample of the whole, and cut into shards of equal length. A shard then depends on nothing but its own samples.

While the work lasts, a folder `<output>.work` beside the output holds
  job.json          what is being done: only the same work continues it
  plan.parquet      shard, key, id, classes, repeat and place of every sample, in order
  rejects.jsonl     what the plan already leaves out
  shard-000000.json of each finished shard: count, bytes, SHA-256, and the images it rejected
  lock              held by the process at work
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import PIL
from filelock import FileLock, Timeout
from tqdm import tqdm

from swag_models import __version__
from swag_models.atomic import atomic_write, disk_errors
from swag_models.errors import ConfigError, ImageError, SwagModelsError
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.recipe.data.image_index import Place, find_places
from swag_models.recipe.data.shards import MANIFEST_FILE, MANIFEST_FORMAT, read_manifest
from swag_models.recipe.data.strip_metadata import scrub_image
from swag_models.recipe.worker_pool import open_pool
from swag_models.runtime import count_cpus, import_extra

SHARD_SIZE = 10_000  # samples
MAX_BYTES = 1 << 30
ROWS = 100_000  # of a table, written at a time
REJECTS = "rejects.jsonl"


def pack(
    labels: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    shard_size: int = SHARD_SIZE,
    max_bytes: int = MAX_BYTES,
    image_short_side: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the images that have labels into shards, continuing what an earlier run began; the manifest, as in `shards`.

    labels: a Parquet file, or a folder of them, with columns `id`, `classes` and `repeat`; a vocabulary.parquet beside it is
    taken along, so that training knows the names of the classes. images: one or more of what `find_places` takes; finished
    shards of these labels stay, whatever the images are now. A shard has about `shard_size` samples, fewer if their files
    would come to more than `max_bytes`. Pictures lose their metadata, and become smaller if their shorter side has more than
    `image_short_side` pixels: see `scrub_image`. Labels without an image, further images of an id, and unreadable images are
    listed in rejects.jsonl.
    ConfigError if the output holds other work, OutputError if it cannot be written. With several `processes`, a script that
    calls this needs `if __name__ == "__main__":`.
    """
    labels, output = Path(labels), Path(os.path.abspath(output))
    limits = {
        "shard_size": shard_size,
        "max_bytes": max_bytes,
        "image_short_side": image_short_side,
        "processes": processes,
    }
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it is at least 1")
    parameters = {
        "seed": seed,
        "shard_size": shard_size,
        "max_bytes": max_bytes,
        "image_short_side": image_short_side,
    }
    known = {"parameters": parameters, "labels_sha256": _hash_labels(labels)}
    work = output.with_name(f"{output.name}.work")
    if output.exists() and not work.exists() and (not output.is_dir() or any(output.iterdir())):
        if (output / MANIFEST_FILE).is_file() and (
            done := read_manifest(output / MANIFEST_FILE)
        ) | known == done:
            return done
        raise ConfigError(f"{output} is not empty; delete it or choose another name")
    given = [images] if isinstance(images, (str, os.PathLike)) else images
    sources = [os.path.abspath(each) for each in given]
    job = {**known, "images": sources}
    with disk_errors(output, resumable=True):
        work.mkdir(exist_ok=True)
        with _hold(work, output):
            try:
                plan = _make_plan(labels, work, job)
            except SwagModelsError:
                if not (work / "job.json").exists():
                    shutil.rmtree(work)
                raise
            output.mkdir(exist_ok=True)
            records = _write_shards(
                output, work, plan, image_short_side, processes or count_cpus(), progress
            )
            manifest = _finish(labels, output, work, plan, records)
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def write_shard(output: Path, work: Path, number: int, short_side: int | None) -> dict[str, Any]:
    """Write one shard of the plan, and then its record, which is returned."""
    parquet = import_extra("pyarrow.parquet")
    name, rejects, repeats = f"shard-{number:06d}.tar", list[dict[str, str]](), list[float]()
    rows = parquet.read_table(work / "plan.parquet", filters=[("shard", "=", number)]).to_pylist()
    with atomic_write(output / name) as path, tarfile.open(path, "w") as archive:
        for row in rows:
            place = Place(row["id"], row["path"], row["offset"], row["size"])
            try:
                content, suffix = scrub_image(place.read(), place.name, short_side)
            except ImageError as error:
                rejects.append(
                    {
                        "id": place.id,
                        "path": place.name,
                        "reason": "unreadable",
                        "error": str(error),
                    }
                )
                continue
            label = {key: row[key] for key in ("id", "classes", "repeat")}
            for member, data in ((suffix, content), ("json", json.dumps(label).encode())):
                info = tarfile.TarInfo(f"{row['key']}.{member}")  # of no one, at no time
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            repeats.append(row["repeat"])
    path = output / name
    record = {
        "name": name,
        "count": len(repeats),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
    }
    record |= {"samples": math.fsum(repeats), "rejects": rejects}
    _write_text(_record_of(work, number), json.dumps(record))
    return record


def _make_plan(labels: Path, work: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Decide what lies where, or find it decided: how many samples and shards there are, and what is left out."""
    if (work / "job.json").exists():
        plan: dict[str, Any] = json.loads((work / "job.json").read_text())
        if plan["job"] != job:
            raise ConfigError(
                f"{work} holds other work; delete it and {work.with_suffix('')}, or choose another name"
            )
        return plan
    duckdb = import_extra("duckdb")
    _write_places(find_places(job["images"]), work / "places.parquet")
    with closing(duckdb.connect()) as database:
        database.execute(f"SET temp_directory = '{_quote(str(work / 'duckdb'))}'")
        try:
            database.execute(
                f"CREATE VIEW labels AS SELECT id, classes, repeat FROM read_parquet('{_quote(_spell(labels))}')"
            )
            bad = "id IS NULL OR classes IS NULL OR NOT coalesce(isfinite(repeat) AND repeat >= 0, false)"
            wrong = database.execute(
                f"SELECT any_value(id) FROM labels GROUP BY id HAVING count(*) > 1 OR bool_or({bad}) ORDER BY id LIMIT 1"
            ).fetchone()
            num_classes = database.execute(
                "SELECT coalesce(max(list_max(classes)), -1) + 1 FROM labels"
            ).fetchone()[0]
        except duckdb.Error as error:
            raise ConfigError(
                f"{labels} is not a table with columns id, classes and repeat: {str(error).splitlines()[0]}"
            ) from None
        if wrong:
            raise ConfigError(
                f"{labels} has no one good row for id {wrong[0]!r}: each has one, with classes and a repeat of 0 or more"
            )
        database.execute(f"""
            CREATE VIEW places AS SELECT *, row_number() OVER (PARTITION BY id ORDER BY number) AS rank
            FROM read_parquet('{_quote(glob.escape(str(work / "places.parquet")))}');
            CREATE VIEW packed AS SELECT labels.*, path, "offset", size, md5('{job["parameters"]["seed"]}/' || id) AS key
            FROM labels JOIN places USING (id) WHERE rank = 1
        """)
        count, size = database.execute(
            "SELECT count(*), coalesce(sum(size), 0)::BIGINT FROM packed"
        ).fetchone()
        if not count:
            raise ConfigError(
                f"no image has a label in {labels}: ids are file stems, or are given in tables or .json members"
            )
        shards = max(
            -(-count // job["parameters"]["shard_size"]), -(-size // job["parameters"]["max_bytes"])
        )
        shards = min(shards, count)
        with atomic_write(work / "plan.parquet", unique=True) as path:
            database.execute(f"""
                COPY (SELECT (row_number() OVER (ORDER BY key) - 1) * {shards} // {count} AS shard, * FROM packed ORDER BY key)
                TO '{_quote(str(path))}' (FORMAT parquet, ROW_GROUP_SIZE 16384)
            """)
        missing = database.execute("SELECT id FROM labels ANTI JOIN places USING (id) ORDER BY id")
        rejects = [{"id": row[0], "reason": "no image"} for row in missing.fetchall()]
        again = database.execute(
            "SELECT id, path FROM places SEMI JOIN labels USING (id) WHERE rank > 1 ORDER BY number"
        )
        rejects += [
            {
                "id": identifier,
                "path": Place(identifier, path, None, 0).name,
                "reason": "another image has its id",
            }
            for identifier, path in again.fetchall()
        ]
        unlabelled = database.execute(
            "SELECT count(*) FROM places ANTI JOIN labels USING (id)"
        ).fetchone()[0]
    _write_text(work / REJECTS, _to_lines(rejects))
    plan = {
        "job": job,
        "count": count,
        "shards": shards,
        "num_classes": num_classes,
        "unlabelled": unlabelled,
    }
    _write_text(work / "job.json", json.dumps(plan))
    return plan


def _write_places(places: Iterable[Place], path: Path) -> None:
    pa, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    schema = pa.schema(
        [
            ("number", pa.int64()),
            ("id", pa.string()),
            ("path", pa.binary()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
        ]
    )
    rows = list[dict[str, Any]]()
    with atomic_write(path, unique=True) as to, parquet.ParquetWriter(to, schema) as writer:
        for number, place in enumerate(places):
            rows.append({"number": number, **place._asdict()})
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_shards(
    output: Path,
    work: Path,
    plan: dict[str, Any],
    short_side: int | None,
    processes: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """Write what is missing; the records of all shards."""
    records: dict[int, dict[str, Any]] = {}
    for number in range(plan["shards"]):
        if (path := _record_of(work, number)).exists():
            record = json.loads(path.read_text())
            if (shard := output / record["name"]).is_file() and shard.stat().st_size == record[
                "bytes"
            ]:
                records[number] = record
    todo = [number for number in range(plan["shards"]) if number not in records]
    done = sum(record["count"] + len(record["rejects"]) for record in records.values())
    with tqdm(
        total=plan["count"], initial=done, unit=" images", disable=not progress, smoothing=0.1
    ) as bar:
        for number, record in _run(output, work, todo, short_side, min(processes, len(todo))):
            records[number] = record
            bar.update(record["count"] + len(record["rejects"]))
    return [records[number] for number in range(plan["shards"])]


def _run(
    output: Path, work: Path, todo: list[int], short_side: int | None, processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write these shards, and give each one's record when it is there."""
    if processes <= 1:
        yield from ((number, write_shard(output, work, number, short_side)) for number in todo)
        return
    with open_pool(processes) as pool:
        futures = {
            pool.submit(write_shard, output, work, number, short_side): number for number in todo
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def _finish(
    labels: Path, output: Path, work: Path, plan: dict[str, Any], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write what was rejected, what the classes are if that lies beside the labels, and last the manifest."""
    if (vocabulary := labels.with_name(VOCABULARY_FILE)).is_file():
        with atomic_write(output / VOCABULARY_FILE) as to:
            shutil.copyfile(vocabulary, to)
    lines = (work / REJECTS).read_text() + _to_lines(
        each for record in records for each in record["rejects"]
    )
    _write_text(output / REJECTS, lines)
    reasons = Counter(json.loads(line)["reason"] for line in lines.splitlines())
    manifest = {
        "format": MANIFEST_FORMAT,
        "versions": {"swag_models": __version__, "pillow": PIL.__version__},
        "parameters": plan["job"]["parameters"],
        "labels_sha256": plan["job"]["labels_sha256"],
        "num_classes": plan["num_classes"],
        "count": sum(record["count"] for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "samples": math.fsum(record["samples"] for record in records),
        "unlabelled": plan["unlabelled"],
        "rejects": dict(sorted(reasons.items())),
        "shards": [
            {key: record[key] for key in ("name", "count", "bytes", "sha256")} for record in records
        ],
    }
    _write_text(output / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _spell(labels: Path) -> str:
    """The labels as DuckDB takes them: a file, or a folder of files, which Spark writes."""
    return glob.escape(str(labels)) + ("/*.parquet" if labels.is_dir() else "")


def _hash_labels(labels: Path) -> str:
    """SHA-256 of the file, or of those of the files."""
    try:
        if not labels.is_dir():
            return hash_file(labels)
        hashes = [hash_file(path) for path in sorted(labels.glob("*.parquet"))]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{labels} cannot be read: {error.strerror}") from None


def _record_of(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}.json"


def _to_lines(rows: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as to:
        to.write_text(text)


def _quote(text: str) -> str:
    """A text within an SQL string."""
    return text.replace("'", "''")


@contextmanager
def _hold(work: Path, output: Path) -> Iterator[None]:
    """Keep other processes off, as long as this one works."""
    try:
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"another process is writing {output}; wait for it, or choose another name"
        ) from None
