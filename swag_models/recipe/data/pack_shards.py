"""Write the shards of a plan, in parallel; those that an earlier run has finished are kept."""

import io
import json
import logging
import math
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from swag_models.atomic import atomic_write
from swag_models.errors import ImageError
from swag_models.hub.download import hash_file
from swag_models.hub.progress import make_bar
from swag_models.recipe.data.image_index import ImageLocation
from swag_models.recipe.data.pack_plan import PLAN_FILE
from swag_models.recipe.data.strip_metadata import strip_metadata
from swag_models.recipe.worker_pool import open_pool
from swag_models.resumable import read_result, run_once
from swag_models.runtime import import_extra

logger = logging.getLogger("swag_models")


def write_shards(
    output: Path,
    work: Path,
    plan: dict[str, Any],
    short_side: int | None,
    processes: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """Write the missing shards; return the records of all shards, see `write_shard`.

    Args:
        output: folder of the shards.
        work: the work folder.
        plan: from `make_plan`.
        short_side: as `image_short_side` of `pack`.
        processes: number of processes.
        progress: show a progress bar on stderr.
    """
    digests: list[str] = plan["digests"]
    records: dict[int, dict[str, Any]] = {}
    changed = _remove_surplus(output, work, len(digests))
    for number, digest in enumerate(digests):
        path = _record_path(work, number)
        try:
            records[number] = read_result(path, digest, [output / _name_shard(number)])
        except LookupError:
            changed += path.exists()
    if changed:
        logger.warning(
            "%d finished shards of %s are packed again: they, or names, sizes or modification "
            "times of their images, have changed",
            *(changed, output),
        )
    # The progress bar starts at the samples that earlier runs finished.
    missing = {number: digest for number, digest in enumerate(digests) if number not in records}
    done = sum(record["count"] + len(record["rejects"]) for record in records.values())
    with make_bar(
        progress, total=plan["count"], initial=done, unit=" images", smoothing=0.1
    ) as bar:
        for number, record in _run_pool(output, work, missing, short_side, processes):
            records[number] = record
            bar.update(record["count"] + len(record["rejects"]))
    return [records[number] for number in range(len(digests))]


def _remove_surplus(output: Path, work: Path, count: int) -> int:
    """Remove the shards that an earlier plan had in addition; return their number."""
    surplus = 0
    for record in work.glob("shard-*.json"):
        match = re.fullmatch(r"shard-([0-9]+)\.json", record.name)
        if match and int(match[1]) >= count:
            (output / f"{record.stem}.tar").unlink(missing_ok=True)
            record.unlink()
            surplus += 1
    return surplus


def _run_pool(
    output: Path, work: Path, digests: dict[int, str], short_side: int | None, processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write the shards of these hashes; yield the number and record of each that is finished."""
    if min(processes, len(digests)) <= 1:  # saves the cost of starting a process
        for number, digest in digests.items():
            yield number, write_shard(output, work, number, digest, short_side)
        return
    with open_pool(min(processes, len(digests))) as pool:
        futures = {
            pool.submit(write_shard, output, work, number, digest, short_side): number
            for number, digest in digests.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def write_shard(
    output: Path, work: Path, number: int, digest: str, short_side: int | None
) -> dict[str, Any]:
    """Write one shard of the plan and then its record.

    Args:
        output: folder of the shards.
        work: the work folder.
        number: number of the shard.
        digest: hash of its samples.
        short_side: as `image_short_side` of `pack`.

    Returns:
        The record: name, count, bytes, SHA-256, sum of the repeat factors, and rejected images.
    """
    path = output / _name_shard(number)

    def write() -> dict[str, Any]:
        with atomic_write(path) as temporary, tarfile.open(temporary, "w") as archive:
            repeats, rejects = _write_samples(archive, work, number, short_side)
        return {
            "name": path.name,
            "count": len(repeats),
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
            # Exact, so that the total does not depend on the split into shards.
            "samples": math.fsum(repeats),
            "rejects": rejects,
        }

    record: dict[str, Any] = run_once(_record_path(work, number), digest, [path], write)
    return record


def _write_samples(
    archive: tarfile.TarFile, work: Path, number: int, short_side: int | None
) -> tuple[list[float], list[dict[str, str]]]:
    """Add the samples of a shard to its tar file; return their repeat factors and the rejects."""
    parquet = import_extra("pyarrow.parquet")
    # The plan is sorted by shard, so this reads only a few row groups.
    rows = parquet.read_table(work / PLAN_FILE, filters=[("shard", "=", number)]).to_pylist()
    repeats, rejects = list[float](), list[dict[str, str]]()
    for row in rows:
        location = ImageLocation(*(row[name] for name in ImageLocation._fields if name in row))
        try:
            content, suffix = strip_metadata(location.read(), location.name, short_side)
        except ImageError as error:
            rejects.append(
                {
                    "id": row["id"],
                    "path": location.name,
                    "reason": "unreadable",
                    "error": str(error),
                }
            )
            continue
        label = {name: row[name] for name in ("id", "classes", "repeat")}
        for member, data in ((suffix, content), ("json", json.dumps(label).encode())):
            # A new TarInfo has no owner or time, so that equal samples give equal bytes.
            info = tarfile.TarInfo(f"{row['key']}.{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        repeats.append(row["repeat"])
    return repeats, rejects


def _name_shard(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _record_path(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}.json"
