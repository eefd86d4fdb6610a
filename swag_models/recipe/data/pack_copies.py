"""Copies among packed images, and images to keep out of the shards with their near copies.

Workers compare the images of a shard while they have their pixels, so packing reads every image
once. In the work folder, `like/` is the index of the images to keep out, and
`shard-000000.pixels.parquet` has the id and the hash of the pixels of each sample.
"""

import glob
import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.atomic import atomic_write, write_text
from swag_models.errors import ConfigError
from swag_models.recipe.data.contact_sheet import MAX_PAIRS, Pair, write_contact_sheet
from swag_models.recipe.data.image_index import ImageLocation, find_locations
from swag_models.recipe.data.image_keys import STEM
from swag_models.recipe.data.image_set import (
    Fingerprint,
    ImageMatch,
    ImageSet,
    index_images,
    warn_of_unreadable,
)
from swag_models.recipe.data.pack_plan import PLAN_FILE
from swag_models.recipe.data.thumbnails import check_distance
from swag_models.recipe.database import duckdb_errors
from swag_models.runtime import import_extra

COPIES_FILE = "copies.jsonl"
EXCLUDED_FILE, EXCLUDED_SHEET_FILE = "excluded.txt", "excluded.png"
EQUAL, NEAR = "equal to an image to exclude", "near copy of an image to exclude"  # reasons
LIKE_THRESHOLD = 0.3  # largest distance of a near copy; docs/duplicates.md has measurements
PIXELS_FILE = "shard-{:06d}.pixels.parquet"

Reject = dict[str, Any]


class Exclusion(NamedTuple):
    """Images to keep out of the shards.

    Attributes:
        folder: their index.
        threshold: largest distance of a near copy.
        facts: see `index_images`.
    """

    folder: Path
    threshold: float
    facts: dict[str, Any]

    def find(self, images: Sequence[Fingerprint]) -> list[ImageMatch | None]:
        """Find the image to exclude that each image is a copy of."""
        return _open_set(self.folder, self.facts["sha256"]).find(images, self.threshold)

    def describe(self, matches: Sequence[ImageMatch]) -> list[Reject]:
        """Describe matches for rejects.jsonl."""
        found = _open_set(self.folder, self.facts["sha256"])
        return [
            {
                "reason": EQUAL if match.equal else NEAR,
                "like": location.name,
                "like_number": match.number,
                "distance": round(match.distance, 4),
            }
            for match, location in zip(matches, found.locate([match.number for match in matches]))
        ]


@lru_cache(maxsize=1)
def _open_set(folder: Path, digest: str) -> ImageSet:
    """Open an index once in each process; `digest` is that of its content."""
    return ImageSet(folder)


def describe_exclusion(
    sources: Sequence[str], threshold: float | None, path_column: str | None
) -> dict[str, Any]:
    """Return JSON values that the shards depend on: threshold, names and sizes of the images.

    Args:
        sources: images to exclude, as for `find_locations`.
        threshold: largest distance of a near copy; None for the default.
        path_column: column of tables with the paths; None for the default.

    Returns:
        One entry, `exclude_like`; none without sources.

    Raises:
        ConfigError: the images cannot be found, or the threshold is not from 0 to 1.
    """
    check_distance(like_threshold=threshold)
    if not sources:
        if threshold is not None:
            raise ConfigError("like_threshold is set without exclude_like; set both or none")
        return {}
    digest, count = hashlib.sha256(), 0
    for location in find_locations(sources, **_list_columns(path_column)):
        digest.update(f"{location.id} {location.size}\n".encode())
        count += 1
    threshold = LIKE_THRESHOLD if threshold is None else threshold
    images = {"threshold": threshold, "images": count, "sha256": digest.hexdigest()}
    return {"exclude_like": images}


def _list_columns(path_column: str | None) -> dict[str, str]:
    """Arguments of `find_locations`: images to exclude need no ids, which their tables may lack."""
    return {"key_column": STEM, **({"path_column": path_column} if path_column else {})}


def open_exclusion(
    sources: Sequence[str],
    threshold: float,
    path_column: str | None,
    work: Path,
    *,
    progress: bool,
) -> Exclusion:
    """Read the images to exclude, unless an earlier run has done so.

    Args:
        sources: as for `find_locations`.
        threshold: largest distance of a near copy.
        path_column: column of tables with the paths; None for the default.
        work: the work folder.
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: there are no images, or none can be read.
    """
    folder = work / "like"
    facts = index_images(sources, folder, progress=progress, **_list_columns(path_column))
    warn_of_unreadable(sources, **facts)
    return Exclusion(folder, threshold, facts)


def write_pixels(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Write the ids and the hashes of the pixels of a shard's samples."""
    pa, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    columns = {
        name: pa.array(values, pa.string())
        for name, values in zip(("id", "pixels"), zip(*rows) if rows else ((), ()))
    }
    with atomic_write(path) as temporary:
        parquet.write_table(pa.table(columns), temporary)


def list_copies(output: Path, work: Path, shards: int) -> dict[str, int]:
    """List images with equal pixels in copies.jsonl: `id`, and `copy_of`, the smallest id of all.

    Returns:
        The numbers of `images` that are copies of another one, and of `originals`.
    """
    duckdb, count, originals = import_extra("duckdb"), 0, set[str]()
    paths = [glob.escape(str(work / PIXELS_FILE.format(number))) for number in range(shards)]
    query = """
        SELECT id, first FROM (
            SELECT id, min(id) OVER (PARTITION BY pixels) AS first FROM read_parquet(?)
        ) WHERE id <> first ORDER BY first, id
    """
    with (
        duckdb_errors(f"the images of {output} cannot be compared"),
        closing(duckdb.connect()) as database,
        atomic_write(output / COPIES_FILE) as temporary,
        temporary.open("w") as file,
    ):
        database.execute("SET temp_directory = ?", [str(work / "duckdb")])
        cursor = database.execute(query, [paths])
        while rows := cursor.fetchmany(10_000):
            for identifier, first in rows:
                file.write(json.dumps({"id": identifier, "copy_of": first}) + "\n")
                originals.add(first)
            count += len(rows)
    return {"images": count, "originals": len(originals)}


def write_excluded(
    output: Path, work: Path, exclusion: Exclusion, rejects: Iterable[Reject]
) -> dict[str, Any]:
    """Write the ids of excluded images, and a contact sheet of the least similar pairs.

    Args:
        output: folder of the shards.
        work: the work folder.
        exclusion: the images to exclude.
        rejects: of all shards.

    Returns:
        The entry of the manifest.
    """
    excluded = [row for row in rejects if row["reason"] in (EQUAL, NEAR)]
    ids = sorted(row["id"] for row in excluded)
    write_text(output / EXCLUDED_FILE, "".join(f"{identifier}\n" for identifier in ids))
    shown = sorted(excluded, key=lambda row: (-row["distance"], row["id"]))[:MAX_PAIRS]
    (output / EXCLUDED_SHEET_FILE).unlink(missing_ok=True)
    if shown:
        parquet, names = import_extra("pyarrow.parquet"), ImageLocation._fields[:5]
        wanted = [("id", "in", [row["id"] for row in shown])]
        table = parquet.read_table(work / PLAN_FILE, columns=list(names), filters=wanted)
        lefts = {row["id"]: ImageLocation(**row) for row in table.to_pylist()}
        others = _open_set(exclusion.folder, exclusion.facts["sha256"])
        rights = others.locate([row["like_number"] for row in shown])
        write_contact_sheet(
            output / EXCLUDED_SHEET_FILE,
            [Pair(lefts[row["id"]], right, row["distance"]) for row, right in zip(shown, rights)],
        )
    return {
        **{name: exclusion.facts[name] for name in ("images", "unreadable")},
        "equal": sum(row["reason"] == EQUAL for row in excluded),
        "near": sum(row["reason"] == NEAR for row in excluded),
    }


def explain_rejects(records: Iterable[dict[str, Any]]) -> str:
    """Say why no image of any shard is left."""
    rejects = [reject for record in records for reject in record["rejects"]]
    alike = [reject for reject in rejects if "like" in reject]
    if not alike:
        return f"can be read; the first: {rejects[0]['error']}"
    return (
        f"is left: {len(alike)} are like images of exclude_like, the first {alike[0]['path']} "
        f"like {alike[0]['like']}"
    )


def find_damaged_lists(output: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of lists of copies that are missing or have lost lines."""
    excluded = manifest.get("exclude_like")
    count = excluded["equal"] + excluded["near"] if excluded else None
    expected = {COPIES_FILE: manifest.get("copies", {}).get("images"), EXCLUDED_FILE: count}
    return [
        name
        for name, lines in expected.items()
        if lines is not None
        and not ((path := output / name).is_file() and path.read_bytes().count(b"\n") == lines)
    ] + ([EXCLUDED_SHEET_FILE] if count and not (output / EXCLUDED_SHEET_FILE).is_file() else [])
