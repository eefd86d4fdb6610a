"""Pack images and labels into training shards, in parallel.

Packing is resumable, and a resumed run writes the same bytes as an uninterrupted one: it lists the
images again, and packs those shards again whose images have changed. During packing, a folder
`<output>.work` beside the output contains

    job.json                description of the work; only a run with the same one can resume it
    locations.parquet       where every image is stored, and its size and modification time
    plan.json, plan.parquet shard, key, id, classes, repeat and location of every sample, in order
    rejects.jsonl           labels and images that the plan leaves out
    shard-000000.json       record of a finished shard: count, bytes, SHA-256, rejected images
    .lock                   held by the running process
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL

from swag_models import __version__
from swag_models.atomic import atomic_write, disk_errors, write_json, write_text
from swag_models.errors import ConfigError, SwagModelsError, check_minimum
from swag_models.formatting import count_noun, list_names
from swag_models.hub.download import hash_file
from swag_models.hub.hf_format import VOCABULARY_FILE
from swag_models.paths import expand_path
from swag_models.recipe.data.image_keys import URLS_FILE
from swag_models.recipe.data.manifest import MANIFEST_FILE, MANIFEST_FORMAT, read_manifest
from swag_models.recipe.data.pack_copies import (
    Exclusion,
    describe_exclusion,
    explain_rejects,
    find_damaged_lists,
    list_copies,
    open_exclusion,
    write_excluded,
)
from swag_models.recipe.data.pack_plan import (
    PLAN_FILE,
    REJECTS_FILE,
    count_class_samples,
    hash_locations,
    make_plan,
    to_json_lines,
    write_locations,
)
from swag_models.recipe.data.pack_shards import write_shards
from swag_models.recipe.data.step_folders import explain_folder, find_step
from swag_models.recipe.limits import check_limits, check_workers
from swag_models.reruns import find_finished, store_finished
from swag_models.resumable import WorkFolder, read_state, report_done, run_once
from swag_models.runtime import count_cpus

SHARD_SIZE = 10_000  # samples
MAX_SHARD_BYTES = 1 << 30  # of image files in a shard

COLUMN_PARAMETERS = ("key_column", "path_column")  # parameters that say how images are listed

logger = logging.getLogger("swag_models")


def pack(
    labels: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    shard_size: int = SHARD_SIZE,
    max_bytes: int = MAX_SHARD_BYTES,
    image_short_side: int | None = None,
    seed: int = 0,
    key_column: str | None = None,
    path_column: str | None = None,
    exclude_like: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    like_threshold: float | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Pack labelled images into shards; resume the work of an interrupted run.

    The metadata of images are removed; see `strip_metadata`. Labels without an image, images with
    the id of another one, and images that cannot be read are listed in rejects.jsonl. With several
    processes, a script that calls this function needs `if __name__ == "__main__":`.

    Args:
        labels: a Parquet file, or a folder of them, with columns `id`, `classes` and `repeat`. A
            vocabulary.parquet beside it is copied into the output, for the class names. Or an
            annotation file (.csv .json .jsonl, see `annotation_formats`) with the names of labels;
            an image is then in every epoch once.
        images: one or more sources; see `find_locations`. If the output has finished shards of the
            same labels, they are kept, even if the images have changed or were removed; a change is
            logged.
        output: folder of the shards.
        shard_size: samples per shard, approximately.
        max_bytes: size of the image files of a shard, approximately; shards get fewer samples if
            needed.
        image_short_side: pixels; an image whose shorter side is longer is resized to it.
        seed: seed of the order of the samples.
        key_column: field of the record beside an image that has the id of its label; "url" looks
            it up in the urls.parquet beside the labels. By default the first of id, URL, key and
            file name that matches any label; in a table, the column "id".
        path_column: column of a table that has the paths, also of `exclude_like`; by default
            "path".
        exclude_like: one or more sources of images that are kept out with their near copies, such
            as those of evaluations; see `find_locations`. excluded.txt lists the ids of what was
            left out, and excluded.png shows it.
        like_threshold: largest distance of a near copy, from 0 (equal pixels only) to 1, by default
            0.3; see `thumbnails.measure_distance`.
        processes: number of processes; by default one per CPU.
        progress: show a progress bar on stderr.

    Returns:
        The manifest; see `shards`.

    Raises:
        ConfigError: an argument is invalid, the output holds other work, or no image can be read.
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
    check_limits(shard_size=shard_size, max_bytes=max_bytes)
    check_workers(processes=processes)
    # The bytes of the shards depend on these, and not on the number of processes.
    parameters: dict[str, Any] = {
        "seed": seed,
        "shard_size": shard_size,
        "max_bytes": max_bytes,
        "image_short_side": image_short_side,
    }
    columns = {
        name: column
        for name, column in (("key_column", key_column), ("path_column", path_column))
        if column is not None
    }
    parameters |= columns
    unwanted = _list_sources(exclude_like, "exclude_like")
    parameters |= describe_exclusion(unwanted, like_threshold, path_column)
    identity = {"parameters": parameters, "labels_sha256": _hash_labels(labels)}
    work = output.with_name(f"{output.name}.work")
    # A work folder means that an earlier run was interrupted.
    sources = _list_sources(images, "images")
    if not work.exists() and (manifest := _find_finished(output, labels, identity)):
        _report_finished(output, sources, columns)
        return manifest
    job = {**identity, "images": sources}
    with disk_errors(output, resumable=True):
        with WorkFolder(work, job, output=output):
            plan, exclusion = _load_plan(labels, work, job, unwanted, progress)
            output.mkdir(exist_ok=True)
            records = write_shards(
                output, work, plan, image_short_side, processes or count_cpus(), progress, exclusion
            )
            if not any(record["count"] for record in records):
                _remove_all(output, work, records)
                raise ConfigError(
                    f"none of {count_noun(plan['count'], 'image')} {explain_rejects(records)}"
                )
            manifest = _finish_output(labels, output, work, {**job, **plan}, records, exclusion)
        # The manifest is complete, so a work folder that cannot be removed does no harm.
        shutil.rmtree(work, ignore_errors=True)
    store_finished(output, sources, [output / MANIFEST_FILE], plan["images"])
    return manifest


def _list_sources(given: Any, option: str) -> list[str]:
    """Absolute paths of one or more sources."""
    several = given if isinstance(given, (list, tuple)) else [given]
    return [os.path.abspath(expand_path(source, option)) for source in several]


def _report_finished(output: Path, images: Sequence[str], columns: Mapping[str, str]) -> None:
    """Tell the user that the shards are finished, and whether the images have changed since."""
    try:
        packed = find_finished(output, images, [output / MANIFEST_FILE])
    except LookupError:  # for example shards that were packed on another machine
        report_done(output)
        return
    with suppress(ConfigError):  # the images may have been moved
        if hash_locations(images, **columns) != packed:
            logger.warning(
                "images were added, changed or removed since %s was packed; "
                "delete it to pack them again",
                output,
            )


def _remove_all(output: Path, work: Path, records: Sequence[dict[str, Any]]) -> None:
    """Remove the shards and the work folder of input that is invalid."""
    for record in records:
        (output / record["name"]).unlink()
    with suppress(OSError):  # it has other files
        output.rmdir()
    shutil.rmtree(work)


def _find_finished(output: Path, labels: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest if this work is finished; None if it has to be done.

    Raises:
        ConfigError: the output has other content.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    if (output / MANIFEST_FILE).is_file() and find_step(output) in (None, "pack"):
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
    damaged += find_damaged_lists(output, manifest)
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


def _load_plan(
    labels: Path, work: Path, job: dict[str, Any], unwanted: Sequence[str], progress: bool
) -> tuple[dict[str, Any], Exclusion | None]:
    """Make the plan, or read that of an earlier run if no image has changed since.

    Returns:
        See `make_plan`; and `images`, the hash of all their locations. And the images to exclude.
    """
    record, files = work / "plan.json", [work / PLAN_FILE, work / REJECTS_FILE]
    resumes = record.exists()
    try:
        parameters, exclusion = job["parameters"], None
        if unwanted:
            threshold = parameters["exclude_like"]["threshold"]
            column = parameters.get("path_column")
            exclusion = open_exclusion(unwanted, threshold, column, work, progress=progress)
        columns = {name: parameters[name] for name in COLUMN_PARAMETERS if name in parameters}
        images = write_locations(job["images"], work, **columns)
        inputs = [job, images, read_state(labels.with_name(URLS_FILE))]
        plan: dict[str, Any] = run_once(
            record, inputs, files, lambda: make_plan(labels, work, parameters)
        )
    except SwagModelsError:
        if not resumes:
            shutil.rmtree(work)  # invalid input leaves no work folder behind
        raise
    return {**plan, "images": images}, exclusion


def _finish_output(
    labels: Path,
    output: Path,
    work: Path,
    plan: dict[str, Any],
    records: list[dict[str, Any]],
    exclusion: Exclusion | None,
) -> dict[str, Any]:
    """Write the vocabulary, the rejects, and last the manifest, which marks completion."""
    if (vocabulary := labels.with_name(VOCABULARY_FILE)).is_file():
        with atomic_write(output / VOCABULARY_FILE) as temporary:
            shutil.copyfile(vocabulary, temporary)
    rejected = [reject for record in records for reject in record["rejects"]]
    rejects = (work / REJECTS_FILE).read_text() + to_json_lines(rejected)
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
        "joined": plan["joined"],
        "copies": list_copies(output, work, len(records)),
        "rejects": dict(sorted(reasons.items())),
        "shards": [
            {name: record[name] for name in ("name", "count", "bytes", "sha256")}
            for record in records
        ],
    }
    if exclusion:
        manifest["exclude_like"] = write_excluded(output, work, exclusion, rejected)
    if plan["class_names"]:
        manifest["class_names"] = plan["class_names"]
    left_out = [reject["id"] for reject in rejected]
    manifest["class_samples"] = count_class_samples(work, left_out, plan["num_classes"])
    write_json(output / MANIFEST_FILE, manifest, indent=1)
    return manifest


def _hash_labels(labels: Path) -> str:
    """Return the SHA-256 of the file, or of the SHA-256s of the files in a folder."""
    try:
        if not labels.is_dir():
            return hash_file(labels)
        if text := explain_folder(labels):
            table = labels / "labels.parquet"
            raise ConfigError(f"{labels} is a folder; give {table}" if table.exists() else text)
        # Contents only, because Spark gives the files new names in each run.
        hashes = [hash_file(path) for path in sorted(labels.glob("*.parquet"))]
        if not hashes:
            raise ConfigError(f"{labels} has no .parquet file; give the labels of a curation")
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{labels} cannot be read: {error.strerror or error}") from None
