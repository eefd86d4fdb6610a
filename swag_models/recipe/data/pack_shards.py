"""Write the shards of a plan, in parallel; those that an earlier run has finished are kept."""

import io
import json
import logging
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.atomic import atomic_write
from swag_models.errors import ImageError
from swag_models.formatting import count_noun
from swag_models.hub.download import hash_file
from swag_models.hub.progress import make_bar
from swag_models.image_decoding import read_image
from swag_models.recipe.data.image_index import ImageLocation
from swag_models.recipe.data.image_set import BLOCK, Fingerprint, fingerprint
from swag_models.recipe.data.pack_copies import PIXELS_FILE, Exclusion, write_pixels
from swag_models.recipe.data.pack_plan import PLAN_FILE
from swag_models.recipe.data.strip_metadata import strip_metadata
from swag_models.recipe.worker_pool import open_pool
from swag_models.resumable import read_result, run_once
from swag_models.runtime import import_extra

MAX_BLOCK_BYTES = 64 << 20  # of image files in a block

logger = logging.getLogger("swag_models")


class _Sample(NamedTuple):
    """An image that was read, and its row of the plan."""

    row: dict[str, Any]
    name: str
    content: bytes
    suffix: str
    fingerprint: Fingerprint


def write_shards(
    output: Path,
    work: Path,
    plan: dict[str, Any],
    short_side: int | None,
    processes: int,
    progress: bool,
    exclusion: Exclusion | None = None,
) -> list[dict[str, Any]]:
    """Write the missing shards; return the records of all shards, see `write_shard`.

    Args:
        output: folder of the shards.
        work: the work folder.
        plan: from `make_plan`.
        short_side: as `image_short_side` of `pack`.
        processes: number of processes.
        progress: show a progress bar on stderr.
        exclusion: images to keep out of the shards, with their near copies.
    """
    digests: list[str] = plan["digests"]
    if exclusion:
        digests = [f"{digest} {exclusion.facts['sha256']}" for digest in digests]
    records: dict[int, dict[str, Any]] = {}
    changed = _remove_surplus(output, work, len(digests))
    for number, digest in enumerate(digests):
        path = _record_path(work, number)
        try:
            records[number] = read_result(path, digest, _list_files(output, work, number))
        except LookupError:
            changed += path.exists()
    if changed:
        logger.warning(
            "packing %s of %s again: names, sizes or modification times of images, or shards "
            "themselves, have changed",
            *(count_noun(changed, "finished shard"), output),
        )
    # The progress bar starts at the samples that earlier runs finished.
    missing = {number: digest for number, digest in enumerate(digests) if number not in records}
    done = sum(record["count"] + len(record["rejects"]) for record in records.values())
    with make_bar(
        progress, total=plan["count"], initial=done, unit=" images", smoothing=0.1
    ) as bar:
        for number, record in _run_pool(output, work, missing, (short_side, exclusion), processes):
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
    output: Path,
    work: Path,
    digests: dict[int, str],
    options: tuple[int | None, Exclusion | None],
    processes: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write the shards of these hashes; yield the number and record of each that is finished."""
    if min(processes, len(digests)) <= 1:  # saves the cost of starting a process
        for number, digest in digests.items():
            yield number, write_shard(output, work, number, digest, *options)
        return
    with open_pool(min(processes, len(digests))) as pool:
        futures = {
            pool.submit(write_shard, output, work, number, digest, *options): number
            for number, digest in digests.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def write_shard(
    output: Path,
    work: Path,
    number: int,
    digest: str,
    short_side: int | None,
    exclusion: Exclusion | None = None,
) -> dict[str, Any]:
    """Write one shard of the plan and then its record.

    Args:
        output: folder of the shards.
        work: the work folder.
        number: number of the shard.
        digest: hash of its samples.
        short_side: as `image_short_side` of `pack`.
        exclusion: as for `write_shards`.

    Returns:
        The record: name, count, bytes, SHA-256, sum of the repeat factors, and rejected images.
    """
    files = _list_files(output, work, number)
    path, pixels = files

    def write() -> dict[str, Any]:
        with atomic_write(path) as temporary, tarfile.open(temporary, "w") as archive:
            rows = _read_plan(work, number)
            repeats, rejects, hashes = _write_samples(archive, rows, short_side, exclusion)
        write_pixels(pixels, hashes)
        return {
            "name": path.name,
            "count": len(repeats),
            "bytes": path.stat().st_size,
            "sha256": hash_file(path),
            # Exact, so that the total does not depend on the split into shards.
            "samples": math.fsum(repeats),
            "rejects": rejects,
        }

    record: dict[str, Any] = run_once(_record_path(work, number), digest, files, write)
    return record


def _read_plan(work: Path, number: int) -> list[dict[str, Any]]:
    # The plan is sorted by shard, so this reads only a few row groups.
    table = import_extra("pyarrow.parquet").read_table(
        work / PLAN_FILE, filters=[("shard", "=", number)]
    )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _write_samples(
    archive: tarfile.TarFile,
    rows: Sequence[dict[str, Any]],
    short_side: int | None,
    exclusion: Exclusion | None,
) -> tuple[list[float], list[dict[str, Any]], list[tuple[str, str]]]:
    """Add samples to a tar file.

    Returns:
        The repeat factors, the rejects, and the ids with the hashes of the pixels.
    """
    repeats, rejects, hashes = list[float](), list[dict[str, Any]](), list[tuple[str, str]]()
    for block in _read_blocks(rows, short_side, rejects):
        matches = (
            [None] * len(block)
            if exclusion is None
            else exclusion.find([sample.fingerprint for sample in block])
        )
        for sample, match in zip(block, matches):
            row = sample.row
            if exclusion and match:
                (reason,) = exclusion.describe([match])
                rejects.append({"id": row["id"], "path": sample.name, **reason})
                continue
            label = {name: row[name] for name in ("id", "classes", "repeat")}
            members = ((sample.suffix, sample.content), ("json", json.dumps(label).encode()))
            for member, data in members:
                # A new TarInfo has no owner or time, so that equal samples give equal bytes.
                info = tarfile.TarInfo(f"{row['key']}.{member}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            repeats.append(row["repeat"])
            hashes.append((row["id"], sample.fingerprint.digest))
    return repeats, rejects, hashes


def _read_blocks(
    rows: Sequence[dict[str, Any]],
    short_side: int | None,
    rejects: list[dict[str, Any]],
) -> Iterator[list[_Sample]]:
    """Read samples in blocks, which are compared at once; append unreadable ones to `rejects`."""
    block, size = list[_Sample](), 0
    for row in rows:
        location = ImageLocation(*(row[name] for name in ImageLocation._fields if name in row))
        try:
            content = location.read()
            upright = read_image(io.BytesIO(content), location.name)
            compared = fingerprint(upright)
            content, suffix = strip_metadata(content, location.name, short_side, upright)
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
        block.append(_Sample(row, location.name, content, suffix, compared))
        size += len(content)
        if len(block) == BLOCK or size > MAX_BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _list_files(output: Path, work: Path, number: int) -> list[Path]:
    """The files of a shard: its tar file, and the hashes of its images."""
    return [output / _name_shard(number), work / PIXELS_FILE.format(number)]


def _name_shard(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _record_path(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}.json"
