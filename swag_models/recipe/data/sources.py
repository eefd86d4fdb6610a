"""Open labelled data of any kind: shards, image folders, annotation files, Hugging Face datasets.

Imports no torch.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError, ImageError
from swag_models.formatting import count_noun
from swag_models.image_decoding import read_image, to_rgb
from swag_models.inference.image_sources import TAR_SUFFIXES
from swag_models.paths import expand_location, is_system_name, require_regular
from swag_models.recipe.data.annotation_formats import ANNOTATION_SUFFIXES
from swag_models.recipe.data.annotations import find_annotations, open_annotations
from swag_models.recipe.data.datasets import (
    Decoder,
    ImageDataset,
    Labels,
    find_folders,
    hash_file_sizes,
    match_names,
    open_image_folder,
)
from swag_models.recipe.data.manifest import MANIFEST_FILE
from swag_models.recipe.data.shard_list import ShardList
from swag_models.recipe.data.shards import (
    Shards,
    check_vocabulary,
    find_shards,
    hash_shards,
    name_shards,
)
from swag_models.recipe.data.step_folders import explain_folder
from swag_models.recipe.data.urls import is_url
from swag_models.runtime import import_extra

SPLITS_FILE = "dataset_dict.json"  # lists the splits, each of which is a sub-folder
# `datasets.load_from_disk` reads a folder that contains one of these files.
DATASET_FILES = (SPLITS_FILE, "dataset_info.json", "state.json")
TRAIN_SPLITS = ("train",)
EVAL_SPLITS = ("validation", "val", "test")  # in order of preference


def find_image_folder(data: Shards) -> Path | None:
    """Return the path of a folder, dataset on disk or annotation file; None for shards.

    Args:
        data: as for `open_train_loader`.

    Raises:
        ConfigError: the path does not exist, or is a file of another kind.
    """
    if not isinstance(data, (str, os.PathLike)):
        return None  # a sequence of shards
    text = expand_location(data)
    if is_url(text) or text.endswith((*TAR_SUFFIXES, MANIFEST_FILE)):
        return None
    root = Path(text)
    if root.suffix in ANNOTATION_SUFFIXES and not root.is_dir():
        require_regular(root)
        if root.exists():
            return root
    if not root.is_dir():
        raise ConfigError(
            f"data {text} {'is a file' if root.exists() else 'does not exist'}; allowed: packed "
            "shards, paths or URLs of .tar files, a folder with a sub-folder of images for each "
            f"class, a list of images and labels ({' '.join(ANNOTATION_SUFFIXES)}), or a dataset "
            "saved with save_to_disk"
        )
    if (root / MANIFEST_FILE).is_file():
        return None
    if not is_hf_dataset(root) and (explained := explain_folder(root)):
        raise ConfigError(explained)
    # A .tar beside class folders is the archive that they were unpacked from, not a shard.
    has_images = is_hf_dataset(root) or bool(find_folders(root) or find_annotations(root))
    has_shards = any(not is_system_name(path.name) for path in root.glob("*.tar"))
    return root if has_images or not has_shards else None


def open_image_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = TRAIN_SPLITS,
    owner: str = "the model",
) -> ImageDataset:
    """Open an image folder, an annotation file or a Hugging Face dataset on disk.

    Args:
        root: the folder or the annotation file.
        classes: names of all classes of `owner`; the classes of the data set are numbered by them.
            By default the data set's own.
        splits: names of the split to open, in order of preference, if a dataset has several.
        owner: what has these `classes`, for messages.

    Raises:
        ConfigError: the folder is of another kind, or has classes that are not in `classes`.
    """
    if is_hf_dataset(root):
        return open_hf_dataset(root, classes, splits, owner)
    if root.is_file():
        return open_annotations(root, classes, owner)
    annotations, has_folders = find_annotations(root), bool(find_folders(root))
    if annotations and has_folders:
        raise ConfigError(
            f"{root} has sub-folders and {annotations.name}; give {annotations} to read its "
            "labels, or remove it to take the sub-folders as classes"
        )
    if annotations:
        return open_annotations(annotations, classes, owner)
    if has_folders:
        return open_image_folder(root, classes, owner)
    # The first names show the user what kind of folder it is.
    names = sorted(path.name for path in root.iterdir())
    content = f"{', '.join(names[:5]) or 'nothing'}{', ...' if names[5:] else ''}"
    raise ConfigError(
        f"data folder {root} has {content}; allowed: packed shards, a sub-folder of images for "
        "each class, images with a metadata.csv, or a dataset saved with save_to_disk"
    )


@dataclass(frozen=True)
class ShardSource:
    """Shards with the classes of a model.

    Attributes:
        title: name of the data for reports.
        urls: paths or URLs of all shards.
        num_classes: number of classes; None for shards without a manifest.
        label_classes: number of classes that occur, by the manifest; otherwise `num_classes`.
        class_names: names of all classes of the model; None if not given.
        sha256: see `hash_shards`.
        samples: expected number of samples in an epoch; None without a manifest.
        count: number of different samples; None without a manifest.
        class_samples: expected number of samples in an epoch that have each class of the manifest;
            None without a manifest, or with one of an earlier version.
    """

    title: str
    urls: ShardList
    num_classes: int | None
    label_classes: int | None
    class_names: tuple[str, ...] | None
    sha256: str
    samples: int | None
    count: int | None
    class_samples: tuple[float, ...] | None = None
    kind = "shards"


def open_source(
    data: Shards,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = TRAIN_SPLITS,
    synsets: Sequence[str] | None = None,
) -> ImageDataset | ShardSource:
    """Open labelled data of any kind.

    Args:
        data: as for `open_train_loader`.
        classes: names of all classes of a model; by default the data's own.
        splits: names of the split of a dataset to open, in order of preference.
        synsets: synset of each class of a model; a vocabulary beside shards must have the same.

    Raises:
        ConfigError: the data do not exist, or have other classes.
    """
    if root := find_image_folder(data):
        return open_image_dataset(root, classes, splits)
    check_vocabulary(data, synsets)
    urls, manifest = find_shards(data)
    # The classes of shards are numbers, so they must be in the order of the model.
    num_classes = manifest["num_classes"] if manifest else None
    names = manifest.get("class_names") if manifest else None
    for name, expected in zip(names or (), classes or ()):
        if name != expected:
            raise ConfigError(
                f"{name_shards(data)} has class {name!r} where the model has {expected!r}; give "
                "images with the classes of the model in their order, or not packed"
            )
    if classes and num_classes and num_classes > len(classes):
        raise ConfigError(
            f"{name_shards(data)} has {count_noun(num_classes, 'class')}; "
            f"allowed: at most {len(classes)}, as the model has"
        )
    return ShardSource(
        title=name_shards(data),
        urls=urls,
        num_classes=len(classes) if classes else num_classes,
        label_classes=len(classes) if classes and num_classes is None else num_classes,
        class_names=tuple(classes or names or ()) or None,
        sha256=hash_shards(data),
        # Repeat factors may be fractions, so their sum is rounded.
        samples=round(manifest["samples"]) if manifest else None,
        count=manifest["count"] if manifest else None,
        class_samples=tuple(manifest.get("class_samples") or ()) or None if manifest else None,
    )


def describe_source(source: ImageDataset | ShardSource, samples: int | None) -> dict[str, Any]:
    """Describe data for reports and model cards: kind, name, samples, classes, SHA-256."""
    return {
        "kind": source.kind,
        "name": source.title,
        "samples": samples,
        "classes": source.num_classes,
        "sha256": source.sha256,
    }


def list_local_files(source: ImageDataset | ShardSource) -> Iterator[tuple[str, str]]:
    """Yield the name within the data, and the path, of each local file that they are read from."""
    if isinstance(source, ImageDataset):
        return ((name, os.path.join(source.root, name)) for name in source.files)
    return ((os.path.basename(url), url) for url in source.urls if not is_url(url))


def open_hf_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = TRAIN_SPLITS,
    owner: str = "the model",
) -> ImageDataset:
    """Open a folder that `datasets.Dataset.save_to_disk` wrote.

    Args:
        root: the folder. Its rows need the columns `image` (an Image, or the bytes of a file) and
            `label` or `labels` (a ClassLabel, an integer of at least 0, or a list of either).
        classes: as for `open_image_dataset`.
        splits: as for `open_image_dataset`.
        owner: as for `open_image_dataset`.

    Raises:
        ConfigError: `datasets` is not installed, the folder is damaged, or a column is missing.
    """
    datasets = import_extra("datasets", "datasets", "a Hugging Face dataset")
    folder = _choose_split(root, splits)
    try:
        rows = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder} cannot be read as a dataset: {reason}") from None
    if "label" not in rows.column_names and "labels" in rows.column_names:
        rows = rows.rename_column("labels", "label")
    if missing := {"image", "label"} - set(rows.column_names):
        raise ConfigError(
            f"{folder} has no column {' and '.join(sorted(missing))}; its columns are "
            f"{', '.join(rows.column_names)}: rename one with Dataset.rename_column"
        )
    if not len(rows):
        raise ConfigError(f"{folder} has no rows; give a dataset with images")
    labels, class_names, num_classes = _read_labels(rows, folder, classes, owner)
    # Keep the bytes, to decode them like other files: size limit, orientation, RGB.
    if isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    return ImageDataset(
        kind="dataset",
        root=folder,
        title="/".join((root.resolve().name, *folder.relative_to(root).parts)),
        names=list(map(str, range(len(rows)))),
        labels=labels,
        class_names=class_names,
        num_classes=num_classes,
        sha256=hash_file_sizes(folder, files),
        files=files,
        reader=partial(_read_row, rows.select_columns("image").with_format(None), folder),
    )


def is_hf_dataset(root: Path) -> bool:
    """Return whether a folder looks like a Hugging Face dataset."""
    return any((root / name).is_file() for name in DATASET_FILES)


def _read_row(rows: Any, folder: Path, index: int, decode: Decoder | None = None) -> Any:
    name, cell = f"row {index} of {folder}", rows[index]["image"]
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if isinstance(content, bytes):
        return read_image(io.BytesIO(content), name, decode or to_rgb)
    raise ImageError(f"{name} has a {type(content).__name__} instead of an image")


def _read_labels(
    rows: Any, folder: Path, classes: Sequence[str] | None, owner: str
) -> tuple[list[Labels], tuple[str, ...] | None, int]:
    """Return the labels of all rows, the class names if any, and the number of classes."""
    # As one Arrow column: reading a million rows one by one takes minutes.
    cells = rows.select_columns("label").with_format("arrow")[:]["label"].to_pylist()
    labels = [tuple(cell) if isinstance(cell, list) else (cell,) for cell in cells]
    for number, row in enumerate(labels):
        if not all(type(label) is int and label >= 0 for label in row):
            raise ConfigError(
                f"row {number} of {folder} has label {cells[number]!r}; "
                "allowed: integers of at least 0"
            )
    feature = rows.features["label"]
    feature = getattr(feature, "feature", feature)  # the items of a list
    names = getattr(feature, "names", None)
    count = len(names or ()) or max((label for row in labels for label in row), default=-1) + 1
    if names and classes:
        numbers = match_names(names, classes, folder, owner)
        labels = [tuple(numbers[label] for label in row) for row in labels]
    elif classes and count > len(classes):
        raise ConfigError(
            f"{folder} has {count_noun(count, 'class')} without names; {owner} has {len(classes)}: "
            "give the column label the type ClassLabel"
        )
    names = tuple(classes or names or ()) or None
    return labels, names, len(names or ()) or count


def _choose_split(root: Path, splits: Sequence[str]) -> Path:
    path = root / SPLITS_FILE
    if not path.is_file():
        return root
    try:
        names = parse_json(path.read_text("utf-8"))["splits"]
        if not (isinstance(names, list) and names and all(type(name) is str for name in names)):
            raise ValueError(f"splits is {names!r}, not a list of names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    for split in splits:
        if split in names:
            return root / split
    raise ConfigError(
        f"{root} has no split {' or '.join(splits)}; its splits are {', '.join(names)}: give the "
        f"folder of one, for example {root / str(names[0])}"
    )
