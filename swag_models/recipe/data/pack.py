"""Pack images and labels into training shards, in parallel.

Packing is resumable, and a resumed run writes the same bytes as an uninterrupted one. During
packing, a folder `<output>.work` beside the output contains

    job.json                description of the work; only a run with the same one can resume it
    locations.parquet       where every image is stored
    plan.json, plan.parquet shard, key, id, classes, repeat and location of every sample, in order
    rejects.jsonl           labels and images that the plan leaves out
    shard-000000.json       record of a finished shard: count, bytes, SHA-256, rejected images
    .lock                   held by the running process
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL
from tqdm import tqdm

from swag_models import __version__
from swag_models.atomic import atomic_write, disk_errors, write_json, write_text
from swag_models.errors import ConfigError, ImageError, SwagModelsError, check_minimum
from swag_models.formatting import list_names
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.hub.progress import hides_bar
from swag_models.paths import expand_path
from swag_models.recipe.data.image_index import ImageLocation
from swag_models.recipe.data.manifest import MANIFEST_FILE, MANIFEST_FORMAT, read_manifest
from swag_models.recipe.data.pack_plan import PLAN_FILE, REJECTS_FILE, make_plan, to_json_lines
from swag_models.recipe.data.strip_metadata import strip_metadata
from swag_models.recipe.limits import check_limits
from swag_models.recipe.worker_pool import open_pool
from swag_models.resumable import WorkFolder, read_result, read_state, report_done, run_once
from swag_models.runtime import count_cpus, import_extra

SHARD_SIZE = 10_000  # samples
MAX_BYTES = 1 << 30  # of image files in a shard

logger = logging.getLogger("swag_models")


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
    """Pack labelled images into shards; resume the work of an interrupted run.

    The metadata of images are removed; see `strip_metadata`. Labels without an image, images with
    the id of another one, and images that cannot be read are listed in rejects.jsonl. With several
    processes, a script that calls this function needs `if __name__ == "__main__":`.

    Args:
        labels: a Parquet file, or a folder of them, with columns `id`, `classes` and `repeat`. A
            vocabulary.parquet beside it is copied into the output, for the class names.
        images: one or more sources; see `find_locations`. If the output has finished shards of the
            same labels, they are kept, even if the images differ.
        output: folder of the shards.
        shard_size: samples per shard, approximately.
        max_bytes: size of the image files of a shard, approximately; shards get fewer samples if
            needed.
        image_short_side: pixels; an image whose shorter side is longer is resized to it.
        seed: seed of the order of the samples.
        processes: number of processes; by default one per CPU.
        progress: show a progress bar on stderr.

    Returns:
        The manifest; see `shards`.

    Raises:
        ConfigError: an argument is invalid, or the output holds other work.
        OutputError: the output cannot be written.
    """
    labels = expand_path(labels, "labels")
    output = expand_path(output, "output").absolute()
    check_minimum(
        1,
        shard_size=shard_size,
        max_bytes=max_bytes,
        image_short_side=image_short_side,
        processes=processes,
    )
    check_limits(shard_size=shard_size, max_bytes=max_bytes, processes=processes)
    # The bytes of the shards depend on these, and not on the number of processes.
    parameters = {
        "seed": seed,
        "shard_size": shard_size,
        "max_bytes": max_bytes,
        "image_short_side": image_short_side,
    }
    identity = {"parameters": parameters, "labels_sha256": _hash_labels(labels)}
    work = output.with_name(f"{output.name}.work")
    # A work folder means that an earlier run was interrupted.
    if not work.exists() and (manifest := _find_finished(output, labels, identity)):
        report_done(output)
        return manifest
    sources = [images] if isinstance(images, (str, os.PathLike)) else images
    job = {**identity, "images": [os.path.abspath(source) for source in sources]}
    with disk_errors(output, resumable=True):
        with WorkFolder(work, job, output=output):
            plan = _load_plan(labels, work, job)
            output.mkdir(exist_ok=True)
            records = _write_shards(
                output, work, plan, image_short_side, processes or count_cpus(), progress
            )
            manifest = _finish_output(labels, output, work, {**job, **plan}, records)
        # The manifest is complete, so a work folder that cannot be removed does no harm.
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def write_shard(output: Path, work: Path, number: int, short_side: int | None) -> dict[str, Any]:
    """Write one shard of the plan and then its record.

    Args:
        output: folder of the shards.
        work: the work folder.
        number: number of the shard.
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

    record: dict[str, Any] = run_once(_record_path(work, number), path.name, [path], write)
    return record


def _find_finished(output: Path, labels: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest if this work is finished; None if it has to be done.

    Raises:
        ConfigError: the output has other content.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if (output / MANIFEST_FILE).is_file():
        manifest = read_manifest(output / MANIFEST_FILE)
        if manifest | identity == manifest:
            if not (damaged := _find_damaged(output, labels, manifest)):
                return manifest
            logger.warning("%s: damaged or missing, packed again: %s", output, list_names(damaged))
            return None
    raise ConfigError(f"{output} is not empty; delete it or choose another name")


def _find_damaged(output: Path, labels: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of files that are missing, or differ from those that were packed.

    Only a shard that was written after the manifest is read, because there may be terabytes.
    """
    packed_at = (output / MANIFEST_FILE).stat().st_mtime_ns
    damaged = []
    for shard in manifest["shards"]:
        path = output / shard["name"]
        size, time = read_state(path) or (None, 0)
        changed = size == shard["bytes"] and time >= packed_at
        if size != shard["bytes"] or (changed and hash_file(path) != shard["sha256"]):
            damaged.append(path.name)
    rejects, copy = output / REJECTS_FILE, output / VOCABULARY_FILE
    count = rejects.read_bytes().count(b"\n") if rejects.is_file() else None
    if count != sum(manifest["rejects"].values()):
        damaged.append(REJECTS_FILE)
    vocabulary = labels.with_name(VOCABULARY_FILE)
    if vocabulary.is_file() and not (
        copy.is_file() and copy.read_bytes() == vocabulary.read_bytes()
    ):
        damaged.append(VOCABULARY_FILE)
    return damaged


def _load_plan(labels: Path, work: Path, job: dict[str, Any]) -> dict[str, int]:
    """Make the plan, or read that of an earlier run."""
    files = [work / PLAN_FILE, work / REJECTS_FILE]
    try:
        plan: dict[str, int] = run_once(
            work / "plan.json", job, files, lambda: make_plan(labels, work, job)
        )
    except SwagModelsError:
        shutil.rmtree(work)  # invalid input leaves no work folder behind
        raise
    return plan


def _write_samples(
    archive: tarfile.TarFile, work: Path, number: int, short_side: int | None
) -> tuple[list[float], list[dict[str, str]]]:
    """Add the samples of a shard to its tar file; return their repeat factors and the rejects."""
    parquet = import_extra("pyarrow.parquet")
    # The plan is sorted by shard, so this reads only a few row groups.
    rows = parquet.read_table(work / PLAN_FILE, filters=[("shard", "=", number)]).to_pylist()
    repeats, rejects = list[float](), list[dict[str, str]]()
    for row in rows:
        location = ImageLocation(row["id"], row["path"], row["offset"], row["size"])
        try:
            content, suffix = strip_metadata(location.read(), location.name, short_side)
        except ImageError as error:
            rejects.append(
                {
                    "id": location.id,
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


def _write_shards(
    output: Path,
    work: Path,
    plan: dict[str, int],
    short_side: int | None,
    processes: int,
    progress: bool,
) -> list[dict[str, Any]]:
    """Write the missing shards; return the records of all shards."""
    records: dict[int, dict[str, Any]] = {}
    for number in range(plan["shards"]):
        name = _name_shard(number)
        with suppress(LookupError):
            records[number] = read_result(_record_path(work, number), name, [output / name])
    # The progress bar starts at the samples that earlier runs finished.
    missing = [number for number in range(plan["shards"]) if number not in records]
    done = sum(record["count"] + len(record["rejects"]) for record in records.values())
    with tqdm(
        total=plan["count"],
        initial=done,
        unit=" images",
        disable=hides_bar(progress),
        smoothing=0.1,
    ) as bar:
        for number, record in _run_pool(output, work, missing, short_side, processes):
            records[number] = record
            bar.update(record["count"] + len(record["rejects"]))
    return [records[number] for number in range(plan["shards"])]


def _run_pool(
    output: Path, work: Path, numbers: list[int], short_side: int | None, processes: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Write the numbered shards; yield the number and record of each once it is finished."""
    if min(processes, len(numbers)) <= 1:  # saves the cost of starting a process
        for number in numbers:
            yield number, write_shard(output, work, number, short_side)
        return
    with open_pool(min(processes, len(numbers))) as pool:
        futures = {
            pool.submit(write_shard, output, work, number, short_side): number for number in numbers
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def _finish_output(
    labels: Path, output: Path, work: Path, plan: dict[str, Any], records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write the vocabulary, the rejects, and last the manifest, which marks completion."""
    if (vocabulary := labels.with_name(VOCABULARY_FILE)).is_file():
        with atomic_write(output / VOCABULARY_FILE) as temporary:
            shutil.copyfile(vocabulary, temporary)
    rejects = (work / REJECTS_FILE).read_text() + to_json_lines(
        reject for record in records for reject in record["rejects"]
    )
    write_text(output / REJECTS_FILE, rejects)
    reasons = Counter(json.loads(line)["reason"] for line in rejects.splitlines())
    manifest = {
        "format": MANIFEST_FORMAT,
        "versions": {"swag_models": __version__, "pillow": PIL.__version__},
        "parameters": plan["parameters"],
        "labels_sha256": plan["labels_sha256"],
        "num_classes": plan["num_classes"],
        "count": sum(record["count"] for record in records),
        "bytes": sum(record["bytes"] for record in records),
        "samples": math.fsum(record["samples"] for record in records),
        "unlabelled": plan["unlabelled"],
        "rejects": dict(sorted(reasons.items())),
        "shards": [
            {name: record[name] for name in ("name", "count", "bytes", "sha256")}
            for record in records
        ],
    }
    write_json(output / MANIFEST_FILE, manifest, indent=1)
    return manifest


def _hash_labels(labels: Path) -> str:
    """Return the SHA-256 of the file, or of the SHA-256s of the files in a folder."""
    try:
        if not labels.is_dir():
            return hash_file(labels)
        # Contents only, because Spark gives the files new names in each run.
        hashes = [hash_file(path) for path in sorted(labels.glob("*.parquet"))]
        if not hashes:
            raise ConfigError(f"{labels} has no .parquet file; give the labels of a curation")
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{labels} cannot be read: {error.strerror or error}") from None


def _name_shard(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _record_path(work: Path, number: int) -> Path:
    return work / f"shard-{number:06d}.json"
