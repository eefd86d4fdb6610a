"""Open test sets in their published folder layouts, labelled with the classes of a model."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.decoding import parse_json
from swag_models.errors import ConfigError
from swag_models.formatting import count_noun
from swag_models.paths import read_regular
from swag_models.recipe.classes.class_matching import NamedClasses, relabel_images
from swag_models.recipe.data.datasets import ImageDataset, find_folders, open_image_folder
from swag_models.recipe.data.shards import Shards, check_vocabulary
from swag_models.recipe.data.sources import EVAL_SPLITS, open_image_dataset
from swag_models.recipe.evaluation.models import EvaluatedModel
from swag_models.recipe.hashtags import load_imagenet

ImageLabels = Mapping[int, tuple[int, ...]]  # index of an image -> its classes

VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\b")  # numbered from 1
REAL_URL = "github.com/google-research/reassessed-imagenet"
# Pixels to crop at each edge: ObjectNet's images have a red border, so that training on them can
# be detected.
OBJECTNET_BORDER = 2


class BenchmarkData(NamedTuple):
    """A test set, ready for a model.

    Attributes:
        data: images labelled with the classes of the model.
        competing: classes that predictions are limited to; None for all.
    """

    data: ImageDataset | Shards
    competing: tuple[int, ...] | None = None


def open_named_folders(
    root: Path, model: EvaluatedModel, skip_unmatched: bool = False
) -> BenchmarkData:
    """Open a folder with a sub-folder for each class, or a Hugging Face dataset on disk.

    Sub-folders or labels are named by the classes of the model in any spelling, see
    `class_matching`; or by class numbers, if either side has no names.

    Args:
        root: the folder.
        model: has the classes.
        skip_unmatched: leave out images of classes that the model does not have.
    """
    dataset = open_image_dataset(root, splits=EVAL_SPLITS)
    assert model.num_classes is not None
    if dataset.class_names is None or model.classes is None:
        names = dataset.class_names or _number_names(dataset.num_classes)
        numbered = NamedClasses("the model", _number_names(model.num_classes))
        relabelled = relabel_images(replace(dataset, class_names=names), numbered, skip_unmatched)
        return BenchmarkData(replace(relabelled, class_names=model.classes))
    return BenchmarkData(relabel_images(dataset, model.name_classes(), skip_unmatched))


def open_shards(shards: Shards, model: EvaluatedModel) -> BenchmarkData:
    """Open packed shards, whose classes are numbers.

    Raises:
        ConfigError: the vocabulary beside the shards is not that of the model.
    """
    check_vocabulary(shards, model.synsets)
    return BenchmarkData(shards)


def open_wnid_folders(root: Path, _: EvaluatedModel) -> BenchmarkData:
    """Open a folder with a sub-folder for each WordNet id of ImageNet-1k."""
    return BenchmarkData(_open_imagenet(root))


def open_200_wnids(root: Path, _: EvaluatedModel) -> BenchmarkData:
    """Open a folder with 200 of the WordNet ids of ImageNet-1k; only these may be predicted."""
    folders, wnids = find_folders(root), load_imagenet()
    if len(folders) != 200 or set(folders) - set(wnids):
        raise ConfigError(
            f"{root} has {count_noun(len(folders), 'folder')}, {len(set(folders) & set(wnids))} of "
            "them WordNet ids of ImageNet-1k; the release has exactly 200 such folders: unpack it "
            "again"
        )
    competing = tuple(map(wnids.index, folders))
    return BenchmarkData(open_image_folder(root, wnids), competing)


def open_index_folders(root: Path, _: EvaluatedModel) -> BenchmarkData:
    """Open a folder with a sub-folder for each class number from 0 to 999."""
    # The numbers are matched as class names, because names sorted as text are not in numeric order.
    folders, numbers = find_folders(root), _number_names(1000)
    if missing := [number for number in numbers if number not in folders]:
        raise ConfigError(
            f"{root} has no folder {missing[0]}; the release has 1000, named 0 to 999: "
            "unpack it again"
        )
    return BenchmarkData(open_image_folder(root, numbers))


def open_real(root: Path, model: EvaluatedModel) -> BenchmarkData:
    """Open ReaL: ImageNet's validation images with new labels, one or several for each image.

    Images without a label are left out. real.json is in the folder or beside it.
    """
    candidates = [folder / "real.json" for folder in (root, root.parent)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise ConfigError(
            f"real.json is neither in {root} nor in {root.parent}; get it from {REAL_URL}"
        )
    real_labels, classes = _read_json(path, list), set(range(1000))
    if not all(isinstance(labels, list) and set(labels) <= classes for labels in real_labels):
        raise ConfigError(
            f"{path} does not contain lists of labels from 0 to 999; get it again from {REAL_URL}"
        )
    dataset, labels = _open_imagenet(root), {}
    for index in range(len(dataset)):
        # Labels are listed by the number in the file name.
        match = VAL_NAME.search(dataset.name(index))
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(real_labels):
            raise ConfigError(
                f"{dataset.name(index)} in {root} is not one of the "
                f"{count_noun(len(real_labels), 'image')} labelled by {path}; give the validation "
                "images with their names"
            )
        if real_labels[number - 1]:
            labels[index] = tuple(real_labels[number - 1])
    _check_not_empty(labels, root)
    return BenchmarkData(_relabel(dataset, labels, model))


def open_objectnet(root: Path, model: EvaluatedModel) -> BenchmarkData:
    """Open ObjectNet's images of classes of ImageNet-1k; a folder can have several classes."""
    if not (root / "images").is_dir():
        raise ConfigError(f"{root} has no folder named images; unpack the release again")
    dataset = open_image_folder(root / "images")
    imagenet_classes = map_objectnet(root / "mappings")
    folder_labels = [imagenet_classes.get(folder) for folder in dataset.class_names or ()]
    labels = {
        index: classes
        for index, (folder_number,) in enumerate(dataset.labels)
        if (classes := folder_labels[folder_number])
    }
    _check_not_empty(labels, root)
    return BenchmarkData(_relabel(dataset, labels, model, border=OBJECTNET_BORDER))


def map_objectnet(mappings: Path) -> dict[str, tuple[int, ...]]:
    """Read the mapping from ObjectNet's folders to classes of ImageNet-1k.

    The four files of the release are joined:

        folder -> label                    folder_to_objectnet_label.json
        label -> descriptions of classes   objectnet_to_imagenet_1k.json, separated by "; "
        description -> line number         imagenet_to_label_2012_v2
        class -> line number               pytorch_to_imagenet_2012_id.json, from 0 or from 1

    Args:
        mappings: the folder of these files.

    Returns:
        The classes of each folder that has at least one.
    """
    labels = _read_json(mappings / "folder_to_objectnet_label.json", dict)
    descriptions = _read_json(mappings / "objectnet_to_imagenet_1k.json", dict)
    class_lines = _read_json(mappings / "pytorch_to_imagenet_2012_id.json", dict)
    line_numbers = {int(index): line for index, line in class_lines.items()}
    lines = _read_text(mappings / "imagenet_to_label_2012_v2").splitlines()
    first = min(line_numbers.values(), default=0)
    complete = sorted(line_numbers.values()) == list(range(first, first + 1000))
    if not complete or first not in (0, 1) or len(lines) != 1000:
        raise ConfigError(
            f"{mappings} does not number the 1000 classes of ImageNet-1k; unpack the release again"
        )
    # Lists, because two classes of ImageNet can have the same description.
    classes: dict[str, list[int]] = {}
    for index, line in sorted(line_numbers.items()):
        classes.setdefault(lines[line - first].strip(), []).append(index)
    folder_classes = {}
    for folder, label in labels.items():
        class_names = descriptions[label].split("; ") if label in descriptions else []
        if unknown := [name for name in class_names if name not in classes]:
            raise ConfigError(
                f"{mappings} maps {label} to {unknown[0]!r}, which is not a class of ImageNet-1k; "
                "unpack the release again"
            )
        if class_names:
            indices = {index for name in class_names for index in classes[name]}
            folder_classes[folder] = tuple(sorted(indices))
    return folder_classes


def _open_imagenet(root: Path) -> ImageDataset:
    folders, wnids = find_folders(root), load_imagenet()
    if missing := sorted(set(wnids) - set(folders)):
        if not folders and any(VAL_NAME.match(name) for name in os.listdir(root)):
            raise ConfigError(
                f"{root} has all images in one folder; move them to one folder per WordNet id, "
                "with torchvision.datasets.ImageNet or valprep.sh"
            )
        raise ConfigError(
            f"{root} has {1000 - len(missing)} of 1000 folders named by WordNet id, but not "
            f"{missing[0]}; for a subset of the classes use the benchmark 'folder'"
        )
    return open_image_folder(root, wnids)


def _relabel(
    dataset: ImageDataset, labels: ImageLabels, model: EvaluatedModel, border: int = 0
) -> ImageDataset:
    """Return the labelled images with the classes of the model, and crop the border."""
    assert model.num_classes is not None
    return dataset.relabel(labels, model.classes, model.num_classes, border=border)


def _number_names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _check_not_empty(labels: ImageLabels, root: Path) -> None:
    if not labels:
        raise ConfigError(
            f"{root} has no image with a class of ImageNet-1k; unpack the release again"
        )


def _read_json(path: Path, kind: type) -> Any:
    text = _read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}; get it again") from None
    if not isinstance(content, kind):
        raise ConfigError(
            f"{path} has a {type(content).__name__} instead of a {kind.__name__}; get it again"
        )
    return content


def _read_text(path: Path) -> str:
    try:
        return read_regular(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {reason}; unpack the release again") from None
