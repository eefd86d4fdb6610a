"""Images with any number of labels each, listed in an annotation file beside them."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe
from swag_models.image_formats import is_image_name
from swag_models.paths import MAX_NAME
from swag_models.recipe.data.annotation_formats import Annotations, Entry, read_annotations
from swag_models.recipe.data.datasets import ImageDataset, hash_file_sizes, match_names

logger = logging.getLogger("swag_models")

# Annotation files by which Hugging Face's imagefolder and Roboflow's exports are recognised
FOLDER_FILES = ("metadata.csv", "metadata.jsonl", "_annotations.coco.json", "_classes.csv")
MAX_PATH = 4095  # bytes of a path on Linux
TRIED_NAMES = 20  # images that are looked for in each folder
# Of images that are listed without their suffix, as Kaggle does
ADDED_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")


def open_annotations(
    path: Path,
    classes: Sequence[str] | None = None,
    owner: str = "the model",
    folder: Path | None = None,
) -> ImageDataset:
    """Open the images that an annotation file lists, with their labels.

    The labels of images that are listed more than once are merged. Images that are missing stay in
    the data set: they are broken images, which are counted when they are read.

    Args:
        path: the file, in one of the formats of `annotation_formats`. File names are relative to
            its folder, or to one of those of `list_image_folders`.
        classes: as for `open_image_dataset`.
        owner: as for `open_image_dataset`.
        folder: the folder that file names are relative to, if it is known.

    Raises:
        ConfigError: the file cannot be read, has invalid entries or labels that are not in
            `classes`, names a file outside of its folder, or none of its images exists.
    """
    annotations = read_annotations(path)
    _check_names(path, annotations.entries)
    root = _find_root(path, annotations.entries, folder)
    labels: dict[str, dict[str, None]] = {}
    for entry in annotations.entries:
        labels.setdefault(_add_suffix(root, entry.name), {}).update(dict.fromkeys(entry.labels))
    present = [name for name in labels if os.path.isfile(root / name)]
    _report(path, annotations, list(labels), set(present))
    names = classes or annotations.classes
    numbers = dict(
        zip(annotations.classes, match_names(annotations.classes, names, path.name, owner))
    )
    rows = [tuple(numbers[label] for label in image_labels) for image_labels in labels.values()]
    # Labels are part of the hash: two files can label the same images.
    content = [hash_file_sizes(root, present), list(labels), rows, list(names)]
    return ImageDataset.from_files(
        root,
        list(labels),
        rows,
        names,
        kind="annotations",
        title=path.name,
        sha256=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def find_annotations(root: Path) -> Path | None:
    """Return the annotation file in a folder of images, or None without one.

    Raises:
        ConfigError: there are several.
    """
    found = [name for name in FOLDER_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise ConfigError(
            f"{root} has {' and '.join(found)}; give one of them, for example {root / found[0]}"
        )
    return root / found[0] if found else None


def list_image_folders(path: Path) -> Iterator[Path]:
    """List the folders that file names in an annotation file may be relative to.

    Args:
        path: the annotation file, for example coco/annotations/instances_val2017.json, whose
            images are in coco/val2017.
    """
    split = path.stem.rpartition("_")[2]
    yield path.parent
    for above in (path.parent, path.parent.parent):
        for name in (path.stem, split, f"{path.stem}_images", f"images/{split}", "images"):
            yield above / name


def _check_names(path: Path, entries: Sequence[Entry]) -> None:
    """Raise ConfigError unless every file name is a plain path below its folder."""
    invalid = [entry.name for entry in entries if not _is_plain(entry.name)]
    if invalid:
        more = f"; {len(invalid) - 1:,} more invalid" if len(invalid) > 1 else ""
        raise ConfigError(
            f"{path} has the file name {describe(invalid[0])}; allowed: relative paths below the "
            f"folder of the images, with / between folders{more}"
        )


def _is_plain(name: str) -> bool:
    try:
        parts = os.fsencode(name.removeprefix("./")).split(b"/")
    except UnicodeEncodeError:
        return False
    return (
        not any(character in name for character in ("\\", "\0", ":/"))
        and sum(map(len, parts)) + len(parts) <= MAX_PATH
        and all(0 < len(part) <= MAX_NAME and part not in (b".", b"..") for part in parts)
    )


def _find_root(path: Path, entries: Sequence[Entry], folder: Path | None) -> Path:
    """The first folder that has one of the first images; ConfigError if there is none."""
    if not entries:
        raise ConfigError(f"{path} lists no image; give a file with at least one")
    tried = [entry.name for entry in entries[:TRIED_NAMES]]
    for root in list_image_folders(path) if folder is None else [folder]:
        if any(os.path.isfile(root / _add_suffix(root, name)) for name in tried):
            return root
    raise ConfigError(
        f"{path} lists {describe(tried[0])}, but neither this nor the next images are in "
        f"{folder or 'its folder or in a folder named after it'}; put the file, or a link to it, "
        "beside the images"
    )


def _add_suffix(root: Path, name: str) -> str:
    """The name of a file that is listed with or without its suffix."""
    name = name.removeprefix("./")
    if is_image_name(name) or os.path.isfile(root / name):
        return name
    names = (name + suffix for suffix in ADDED_SUFFIXES)
    return next((longer for longer in names if os.path.isfile(root / longer)), name)


def _report(path: Path, annotations: Annotations, names: Sequence[str], present: set[str]) -> None:
    """Log what was assumed, merged and is missing."""
    remarks = list(annotations.remarks)
    if merged := len(annotations.entries) - len(names):
        remarks.append(f"{count_noun(merged, 'repeated file name')}, with merged labels")
    if missing := [name for name in names if name not in present]:
        total = count_noun(len(names), "image")
        remarks.append(f"missing: {len(missing):,} of {total}, such as {missing[0]}")
    if remarks:
        _warn_once(path, "; ".join(remarks))


@lru_cache(maxsize=256)  # commands open their data several times
def _warn_once(path: Path, text: str) -> None:
    logger.warning("%s: %s", path.name, text)
