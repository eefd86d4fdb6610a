"""Find copies among images, or images that are copies of others; by thumbnails or by a model.

The output folder contains copies.jsonl (id, copy_of, distance), exclude.txt (their ids, for
`curate --exclude`), copies.png (a contact sheet) and manifest.json. During the work, the folder
`<output>.work` beside it contains the indexes or embeddings of the images.

Axes: N images, D features.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from swag_models import __version__
from swag_models.atomic import disk_errors, write_json, write_text
from swag_models.errors import ConfigError
from swag_models.inference.embeddings_file import read_embeddings
from swag_models.inference.image_sources import ImageRef
from swag_models.paths import expand_path
from swag_models.recipe.data.contact_sheet import Pair, write_contact_sheet
from swag_models.recipe.data.image_index import ImageLocation
from swag_models.recipe.data.image_set import (
    ARRAYS,
    BLOCK,
    CHUNK,
    Fingerprint,
    ImageMatch,
    ImageSet,
    index_images,
    read_locations,
    warn_of_unreadable,
)
from swag_models.recipe.data.manifest import MANIFEST_FILE
from swag_models.recipe.data.pack_copies import COPIES_FILE, LIKE_THRESHOLD
from swag_models.recipe.data.pack_plan import hash_locations, write_locations
from swag_models.recipe.data.thumbnails import check_distance
from swag_models.reruns import run_unless_done
from swag_models.resumable import WorkFolder, output_folder

if TYPE_CHECKING:
    from swag_models.inference.predict import Embedder

EXCLUDE_FILE, SHEET_FILE = "exclude.txt", "copies.png"

Found = Iterator[tuple[int, ImageMatch]]  # number of an image, and what it is a copy of
Vectors = NDArray[np.float32]
Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def find_duplicates(
    images: Sources,
    output: str | os.PathLike[str],
    *,
    like: Sources = (),
    threshold: float | None = None,
    embedder: "Embedder | None" = None,
    key_column: str | None = None,
    path_column: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Find images that are copies of an earlier one, or of any image of another set.

    Args:
        images: one or more sources; see `find_locations`.
        output: folder to write.
        like: sources of the other set, for example images of an evaluation.
        threshold: largest distance of a near copy, by default 0.3: see
            `thumbnails.measure_distance`. With a model, 1 - the cosine similarity of the features,
            which has no default, because it depends on the model.
        embedder: compares images by features of a model; by default by thumbnails.
        key_column: field of an image that is its id, in both sets; see `find_locations`.
        path_column: column of tables that has the paths, in both sets; by default "path".
        progress: show a progress bar on stderr.

    Returns:
        The manifest: numbers of `images`, of `copies` and of the `equal` ones among them, and of
        the `unreadable` images, with the reason of the first. Those of `like` are logged.

    Raises:
        ConfigError: an argument is invalid, or no image can be read.
        OutputError: the output cannot be written.
    """
    output = expand_path(output, "output").absolute()
    check_distance(threshold=threshold)
    if threshold is None and embedder is not None:
        raise ConfigError(
            "threshold is not set; distances depend on the model: try 0.05, and look at copies.png"
        )
    limit = LIKE_THRESHOLD if threshold is None else threshold
    sources = [_list_paths(images, "images"), _list_paths(like, "like")]
    settings = {"threshold": limit, "model": embedder and repr(embedder)}
    given = {"key_column": key_column, "path_column": path_column}
    columns = {name: column for name, column in given.items() if column is not None}
    files = [output / name for name in (COPIES_FILE, EXCLUDE_FILE, SHEET_FILE, MANIFEST_FILE)]
    work = output.with_name(f"{output.name}.work")  # exists if an earlier run was interrupted
    is_own = not output.exists() or files[-1].exists() or work.exists()
    if not is_own and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"{output} is not an empty folder; choose another name")

    def make() -> dict[str, Any]:
        job = {"sources": sources, **settings, **columns}
        with (
            disk_errors(output, resumable=True),
            output_folder(output),
            WorkFolder(work, job, output=output),
        ):
            result = _Search(sources, work, limit, embedder, progress, columns).write(
                output, settings
            )
        shutil.rmtree(work, ignore_errors=True)
        return result

    def make_key() -> Any:
        hashes = [hash_locations(paths, **columns) for paths in sources if paths]
        return [__version__, settings, columns, sources, hashes]

    manifest: dict[str, Any] = run_unless_done(output, make_key, files, make)
    return manifest


class _Search:
    """The search for copies.

    Args:
        sources: of the images, and of the other set, which may be empty.
        work: the work folder.
        threshold: largest distance of a near copy.
        embedder: None to compare thumbnails.
        progress: show a progress bar on stderr.
        columns: as for `find_locations`.
    """

    def __init__(
        self,
        sources: Sequence[list[str]],
        work: Path,
        threshold: float,
        embedder: "Embedder | None",
        progress: bool,
        columns: dict[str, str],
    ) -> None:
        self.columns = columns
        folders = [work / name for name, paths in zip(("images", "like"), sources) if paths]
        self.threshold, self.embedder, self.alone = threshold, embedder, len(folders) == 1
        index = self._index if embedder is None else self._embed
        self.facts, *others = [
            index(paths, folder, progress) for paths, folder in zip(sources, folders)
        ]
        for facts in others:
            warn_of_unreadable(sources[1], **facts)
        self.locations, self.others = (
            [location for batch in read_locations(folder) for location in batch]
            for folder in (folders[0], folders[-1])
        )
        self.folders = folders[0], folders[-1]

    def _index(self, paths: list[str], folder: Path, progress: bool) -> dict[str, Any]:
        return index_images(paths, folder, progress=progress, **self.columns)

    def _embed(self, paths: list[str], folder: Path, progress: bool) -> dict[str, Any]:
        """Write the features of images; returns the facts of `index_images`."""
        from swag_models.inference.embed import write_embeddings

        assert self.embedder is not None
        folder.mkdir(exist_ok=True)
        write_locations(paths, folder, **self.columns)
        locations = [location for batch in read_locations(folder) for location in batch]
        if not locations:
            raise ConfigError(f"no images in {', '.join(paths)}; give folders or .tar shards")
        summary = write_embeddings(
            self.embedder, list(map(_refer, locations)), folder / "features.npy", progress=progress
        )
        errors = [item.reason for item in summary.skipped]
        return {
            "images": len(locations),
            "unreadable": len(errors),
            "first_error": errors[0] if errors else None,
        }

    def write(self, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Compare the images, and write the files of the output; return the manifest."""
        (output / MANIFEST_FILE).unlink(missing_ok=True)  # written last, when all else is complete
        found = self._compare_thumbnails() if self.embedder is None else self._compare_features()
        pairs, rows, equal, roots = list[Pair](), list[dict[str, Any]](), 0, dict[int, int]()
        for number, match in found:
            # A copy of a copy is one of the first, so that a group has one original.
            roots[number] = roots.get(match.number, match.number) if self.alone else match.number
            left, right = self.locations[number], self.others[roots[number]]
            row = {"id": left.id, "path": left.name, "copy_of": right.id, "like": right.name}
            rows.append({**row, "distance": round(match.distance, 4)})
            pairs.append(Pair(left, self.others[match.number], match.distance))
            equal += match.equal
        write_text(output / COPIES_FILE, "".join(json.dumps(row) + "\n" for row in rows))
        ids = sorted({str(row["id"]) for row in rows})
        write_text(output / EXCLUDE_FILE, "".join(f"{identifier}\n" for identifier in ids))
        (output / SHEET_FILE).unlink(missing_ok=True)
        if pairs:
            write_contact_sheet(output / SHEET_FILE, pairs)
        manifest = {
            "versions": {"swag_models": __version__},
            **settings,
            "images": len(self.locations),
            "unreadable": self.facts["unreadable"],
            "first_unreadable": self.facts["first_error"],
            "copies": len(rows),
            "equal": equal,
        }
        write_json(output / MANIFEST_FILE, manifest, indent=1)
        return manifest

    def _compare_thumbnails(self) -> Found:
        others = ImageSet(self.folders[1])
        thumbnails, _, pixels = (np.load(self.folders[0] / name, mmap_mode="r") for name in ARRAYS)
        for start in range(0, len(thumbnails), BLOCK):
            block = [
                Fingerprint(pixels[number].decode(), np.asarray(thumbnails[number]))
                for number in range(start, min(start + BLOCK, len(thumbnails)))
            ]
            before = start if self.alone else None
            for number, match in enumerate(others.find(block, self.threshold, before), start):
                if match is not None:
                    yield number, match

    def _compare_features(self) -> Found:
        numbers, vectors = self._read_features(0)
        other_numbers, others = self._read_features(1)
        for start in range(0, len(vectors), BLOCK):
            block = vectors[start : start + BLOCK]
            best, nearest = np.full(len(block), -1.0), np.zeros(len(block), np.int64)
            stops = (
                start + np.arange(len(block)) if self.alone else np.full(len(block), len(others))
            )
            for first in range(0, int(stops.max()), CHUNK):
                similarities = block @ others[first : first + CHUNK].T
                columns = first + np.arange(similarities.shape[1])
                similarities[columns[None] >= stops[:, None]] = -1
                top = similarities.argmax(axis=1)
                values = similarities[np.arange(len(block)), top]
                better = values > best
                best[better], nearest[better] = values[better], first + top[better]
            for row in np.flatnonzero(best >= 1 - self.threshold):
                distance = max(0.0, 1 - float(best[row]))
                yield numbers[start + row], ImageMatch(other_numbers[nearest[row]], distance)

    def _read_features(self, which: int) -> tuple[list[int], Vectors]:
        """The numbers of the images that could be read, and their features of length 1."""
        vectors, _, skipped = read_embeddings(self.folders[which] / "features.npy")
        missing = {item.name for item in skipped}
        locations = (self.locations, self.others)[which]
        numbers = [n for n, place in enumerate(locations) if _refer(place).name not in missing]
        rows: Vectors = vectors.numpy()
        return numbers, rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _refer(location: ImageLocation) -> ImageRef:
    path = Path(os.fsdecode(location.path))
    if location.offset is None:
        return ImageRef(location.name, path)
    span = (location.offset, location.size)
    return ImageRef(f"{location.name}/{location.offset}", path, span)


def _list_paths(given: Sources, option: str) -> list[str]:
    several: Any = given if isinstance(given, (list, tuple)) else [given]
    return [os.path.abspath(expand_path(source, option)) for source in several]
