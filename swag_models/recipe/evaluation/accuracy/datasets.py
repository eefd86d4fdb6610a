"""Test pictures in the folders that they are released in, with the classes of a model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.errors import ConfigError
from swag_models.recipe.data.datasets import (
    ImageDataset,
    find_folders,
    match_names,
    open_image_folder,
)
from swag_models.recipe.data.hf_dataset import EVAL_SPLITS
from swag_models.recipe.data.shards import Shards, check_vocabulary
from swag_models.recipe.data.sources import open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.hashtags import canonicalise, load_imagenet

Labels = Mapping[int, tuple[int, ...]]  # of pictures, by their index in an album

PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})\b")
REAL = "github.com/google-research/reassessed-imagenet"
BORDER = 2  # red pixels around ObjectNet's pictures, lest anyone train on them


class Task(NamedTuple):
    """Pictures with a model's classes, and which of these compete: all if None."""

    data: ImageDataset | Shards
    competing: tuple[int, ...] | None = None


def relabel(
    dataset: ImageDataset, labels: Labels, candidate: EvaluatedModel, border: int = 0
) -> ImageDataset:
    """The images of `labels`, with the model's classes, without `border` pixels at each edge."""
    assert candidate.num_classes is not None
    return dataset.relabel(labels, candidate.classes, candidate.num_classes, border=border)


def open_folder(root: Path, candidate: EvaluatedModel) -> Task:
    """Folders, or a dataset's labels, named like the model's classes, in any spelling, by WordNet id, or by number."""
    album = open_image_dataset(root, splits=EVAL_SPLITS)
    assert candidate.num_classes is not None
    own, names = album.class_names, candidate.classes
    if own is None or names is None:
        own, names = own or _count(album.num_classes), _count(candidate.num_classes)
    if candidate.synsets and set(own) <= set(candidate.synsets):
        names = candidate.synsets
    elif not set(own) <= set(names) and set(map(canonicalise, own)) <= set(
        map(canonicalise, names)
    ):
        own, names = (tuple(map(canonicalise, each)) for each in (own, names))
    places = match_names(own, names, root)
    labels = {
        index: tuple(places[label] for label in album.labels[index]) for index in range(len(album))
    }
    return Task(relabel(album, labels, candidate))


def open_shards(shards: Shards, candidate: EvaluatedModel) -> Task:
    """Packed pictures, whose classes are numbers: ConfigError if a vocabulary beside them is not the model's."""
    check_vocabulary(shards, candidate.synsets)
    return Task(shards)


def open_all(root: Path, _: EvaluatedModel) -> Task:
    """A folder for each WordNet id of ImageNet-1k."""
    return Task(_open_ids(root))


def open_some(root: Path, _: EvaluatedModel) -> Task:
    """A folder for each of 200 WordNet ids, whose classes compete."""
    own, known = find_folders(root), load_imagenet()
    if len(own) != 200 or set(own) - set(known):
        raise ConfigError(
            f"{root} has {len(own)} folders, {len(set(own) & set(known))} of them WordNet ids of ImageNet-1k; the release has "
            "200 ids and nothing else: unpack it anew"
        )
    return Task(open_image_folder(root, known), tuple(map(known.index, own)))


def open_numbered(root: Path, _: EvaluatedModel) -> Task:
    """A folder for each class number: as text they are not in order."""
    own, numbers = find_folders(root), _count(1000)
    if missing := [number for number in numbers if number not in own]:
        raise ConfigError(
            f"{root} has no folder {missing[0]}; the release has 1000, named 0 to 999: unpack it anew"
        )
    return Task(open_image_folder(root, numbers))


def open_real(root: Path, candidate: EvaluatedModel) -> Task:
    """ImageNet's pictures with other labels: one, several, or none, which leaves a picture out."""
    path = next(
        (each / "real.json" for each in (root, root.parent) if (each / "real.json").is_file()), None
    )
    if path is None:
        raise ConfigError(f"neither {root} nor {root.parent} has real.json; get it from {REAL}")
    real, numbers = _read_json(path, list), set(range(1000))
    if not all(isinstance(each, list) and set(each) <= numbers for each in real):
        raise ConfigError(
            f"{path} does not have lists of labels from 0 to 999; get it anew from {REAL}"
        )
    album, labels = _open_ids(root), {}
    for index in range(len(album)):
        match = PICTURE.search(album.name(index))
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(real):
            raise ConfigError(
                f"{album.name(index)} in {root} is none of the {len(real):,} pictures that {path} has labels of"
            )
        if real[number - 1]:
            labels[index] = tuple(real[number - 1])
    return Task(relabel(album, _refuse_none(labels, root), candidate))


def open_objectnet(root: Path, candidate: EvaluatedModel) -> Task:
    """ObjectNet's folders that ImageNet-1k has one class of, or several."""
    if not (root / "images").is_dir():
        raise ConfigError(f"{root} has no folder images, as the release has; unpack it anew")
    album, known = open_image_folder(root / "images"), map_objectnet(root / "mappings")
    classes = [known.get(name) for name in album.class_names or ()]
    labels = {
        index: found for index in range(len(album)) if (found := classes[album.labels[index][0]])
    }
    return Task(relabel(album, _refuse_none(labels, root), candidate, BORDER))


def map_objectnet(mappings: Path) -> dict[str, tuple[int, ...]]:
    """ObjectNet's folders -> their classes of ImageNet-1k, of those that have any, as its four files say.

    A folder has a label, a label descriptions of classes, each description a line, and each class a line, counted from 0 or 1.
    """
    labels = _read_json(mappings / "folder_to_objectnet_label.json", dict)
    descriptions = _read_json(mappings / "objectnet_to_imagenet_1k.json", dict)
    places = {
        int(index): line
        for index, line in _read_json(mappings / "pytorch_to_imagenet_2012_id.json", dict).items()
    }
    lines = _read_text(mappings / "imagenet_to_label_2012_v2").splitlines()
    first = min(places.values(), default=0)
    if (
        len(lines) != 1000
        or first not in (0, 1)
        or sorted(places.values()) != list(range(first, first + 1000))
    ):
        raise ConfigError(
            f"{mappings} does not number the 1000 classes of ImageNet-1k; unpack the release anew"
        )
    classes: dict[str, list[int]] = {}
    for index, line in sorted(places.items()):
        classes.setdefault(lines[line - first].strip(), []).append(index)
    found = {}
    for folder, label in labels.items():
        own = descriptions[label].split("; ") if label in descriptions else []
        if strange := [each for each in own if each not in classes]:
            raise ConfigError(
                f"{mappings} maps {label} to {strange[0]!r}, which is no class there; unpack the release anew"
            )
        if own:
            found[folder] = tuple(sorted(index for each in own for index in classes[each]))
    return found


def _open_ids(root: Path) -> ImageDataset:
    own, known = find_folders(root), load_imagenet()
    if missing := sorted(set(known) - set(own)):
        if not own and any(PICTURE.match(name) for name in os.listdir(root)):
            raise ConfigError(
                f"{root} has its pictures side by side; torchvision.datasets.ImageNet, or the usual valprep.sh, moves them to "
                "a folder for each WordNet id"
            )
        raise ConfigError(
            f"{root} has {1000 - len(missing)} of 1000 folders named by WordNet id, and not {missing[0]}; for a part of the "
            "classes there is the benchmark folder"
        )
    return open_image_folder(root, known)


def _count(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))


def _refuse_none(labels: dict[int, tuple[int, ...]], root: Path) -> dict[int, tuple[int, ...]]:
    if not labels:
        raise ConfigError(
            f"{root} has no picture with a class of ImageNet-1k; unpack the release anew"
        )
    return labels


def _read_json(path: Path, kind: type) -> Any:
    text = _read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}; get it anew") from None
    if not isinstance(content, kind):
        raise ConfigError(
            f"{path} has no {kind.__name__}, but {type(content).__name__}; get it anew"
        )
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"{path} cannot be read: {reason}; it comes with the release") from None
