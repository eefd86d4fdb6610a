"""Labelled pictures with an index: a folder with a sub-folder per class, or a Hugging Face dataset on disk. No torch."""

from __future__ import annotations

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.inference.image_sources import find_images
from swag_models.preprocess import read_image
from swag_models.runtime import import_extra

SPLITS = "dataset_dict.json"  # of a dataset of several splits, each of which is a folder beside it
DATASET = (
    SPLITS,
    "dataset_info.json",
    "state.json",
)  # one of them makes a folder what `datasets.load_from_disk` reads


class ImageDataset(ABC):
    """Pictures 0 to len - 1 and the classes of each.

    title: what others may read of where it lies. class_names: of all classes, or None if they have none.
    sha256: of the sorted names and sizes of its files.
    """

    kind: str
    root: Path
    title: str
    num_classes: int
    class_names: tuple[str, ...] | None
    sha256: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def files(self) -> list[Path]:
        """All that its pictures are read from."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a picture is called within the album."""

    @abstractmethod
    def classes(self, index: int) -> tuple[int, ...]: ...

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """An upright RGB image; ImageError names the picture and says what is wrong with it."""


class PictureFolder(ImageDataset):
    """A folder with a sub-folder of pictures, searched to any depth, for each class: the sorted names are the classes.

    That is torchvision's `ImageFolder`, but for hidden sub-folders, which are passed over. ConfigError if one has no picture.
    """

    kind = "folder"

    def __init__(
        self, root: Path, classes: Sequence[str] | None = None, owner: str = "the model"
    ) -> None:
        self.root, self.title = root, root.resolve().name
        own = find_folders(root)
        self.class_names = tuple(classes or own)
        self.num_classes = len(self.class_names)
        self._files, self._classes = list[str](), list[int]()
        for folder, number in zip(own, match_names(own, self.class_names, root, owner)):
            found = [
                os.path.relpath(str(picture.source), root) for picture in find_images(root / folder)
            ]
            self._files += found
            self._classes += [number] * len(found)
        self.sha256 = hash_sizes(root, self._files)

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[Path]:
        return [self.root / name for name in self._files]

    def name(self, index: int) -> str:
        return _spell(self._files[index])

    def classes(self, index: int) -> tuple[int, ...]:
        return (self._classes[index],)

    def read(self, index: int) -> Image.Image:
        path = self.root / self._files[index]
        return _refuse_empty(read_image(path, _spell(str(path))), _spell(str(path)))


class DiskDataset(ImageDataset):
    """What `datasets.Dataset.save_to_disk` wrote, with columns `image` (an Image, or a file's bytes) and `label`.

    label: a ClassLabel or a whole number from 0 on, or a list of them. `splits` are the names to look for, in order, if the
    folder has several. ConfigError says what it has instead.
    """

    kind = "dataset"

    def __init__(
        self,
        root: Path,
        classes: Sequence[str] | None = None,
        splits: Sequence[str] = ("train",),
        owner: str = "the model",
    ) -> None:
        datasets = import_extra("datasets", "datasets", "a Hugging Face dataset")
        self.root = _choose_split(root, splits)
        self.title = "/".join((root.resolve().name, *self.root.relative_to(root).parts))
        try:
            rows = datasets.load_from_disk(str(self.root))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.root} is no dataset that can be read: {str(error).splitlines()[0]}"
            ) from None
        if missing := {"image", "label"} - set(rows.column_names):
            raise ConfigError(
                f"{self.root} has no column {' and '.join(sorted(missing))}, but {', '.join(rows.column_names)}; "
                "rename_column of datasets gives it another name"
            )
        labels = rows.select_columns("label").with_format("arrow")[:]["label"].to_pylist()
        self._classes = [tuple(label) if isinstance(label, list) else (label,) for label in labels]
        for number, each in enumerate(self._classes):
            if not all(type(label) is int and label >= 0 for label in each):
                raise ConfigError(
                    f"row {number} of {self.root} has label {labels[number]!r}; allowed: whole numbers from 0 on"
                )
        feature = rows.features["label"]
        own = getattr(getattr(feature, "feature", feature), "names", None)  # of a list it is inside
        count = (
            len(own or ())
            or max((label for each in self._classes for label in each), default=-1) + 1
        )
        if own and classes:
            places = match_names(own, classes, self.root, owner)
            self._classes = [tuple(places[label] for label in each) for each in self._classes]
        elif classes and count > len(classes):
            raise ConfigError(
                f"{self.root} has {count} classes without names; {owner} has {len(classes)}"
            )
        names = classes or own
        self.class_names = tuple(names) if names else None
        self.num_classes = len(names or ()) or count
        if isinstance(rows.features["image"], datasets.Image):
            rows = rows.cast_column("image", datasets.Image(decode=False))
        self._images = rows.select_columns("image").with_format(None)
        if not len(self):
            raise ConfigError(f"{self.root} has no rows; give a dataset with pictures")
        self.sha256 = hash_sizes(self.root, [path.name for path in self.files()])

    def __len__(self) -> int:
        return len(self._classes)

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if path.is_file())

    def name(self, index: int) -> str:
        return str(index)

    def classes(self, index: int) -> tuple[int, ...]:
        return self._classes[index]

    def read(self, index: int) -> Image.Image:
        name = f"row {index} of {self.root}"
        image = self._images[index]["image"]
        content = image["bytes"] if isinstance(image, dict) else image
        if isinstance(content, bytes):
            return _refuse_empty(read_image(io.BytesIO(content), name), name)
        if isinstance(image, dict) and image["path"]:
            return _refuse_empty(read_image(image["path"], name), name)
        raise ImageError(f"{name} has no image, but {type(content).__name__}")


def open_image_dataset(
    root: Path,
    classes: Sequence[str] | None = None,
    splits: Sequence[str] = ("train",),
    owner: str = "the model",
) -> ImageDataset:
    """The album in a folder; ConfigError says what is there instead.

    classes: the names of all classes of their owner, among which the album's must be, in place of its own.
    """
    if is_dataset(root):
        return DiskDataset(root, classes, splits, owner)
    if find_folders(root):
        return PictureFolder(root, classes, owner)
    found = sorted(path.name for path in root.iterdir())
    raise ConfigError(
        f"data folder {root} has {', '.join(found[:5]) or 'nothing'}{' and more' if len(found) > 5 else ''}; allowed: packed "
        "shards, a sub-folder of pictures for each class, or what save_to_disk of datasets wrote"
    )


def is_dataset(root: Path) -> bool:
    """Whether it looks like a Hugging Face dataset."""
    return any((root / name).is_file() for name in DATASET)


def find_folders(root: Path) -> list[str]:
    """The names of the sub-folders, sorted, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def match_names(
    own: Sequence[str], classes: Sequence[str], what: object, owner: str = "the model"
) -> list[int]:
    """The place of each of these names among the classes; ConfigError names those that are not there, or are there twice."""
    places, counts = {name: place for place, name in enumerate(classes)}, Counter(classes)
    for problem, names in (
        (f"that {owner} has not", [name for name in own if name not in places]),
        (f"that {owner} has more than once", [name for name in own if counts[name] > 1]),
    ):
        if names:
            raise ConfigError(
                f"{what} has classes {problem}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}; "
                f"its {len(classes)} classes begin with {', '.join(classes[:3])}: rename or remove them"
            )
    return [places[name] for name in own]


def hash_sizes(root: Path, files: Iterable[str]) -> str:
    """SHA-256 of the names and sizes of files, sorted by name: what tells most changes without reading all."""
    digest = hashlib.sha256()
    for name in sorted(files):
        try:
            size = (root / name).stat().st_size
        except OSError as error:
            raise ConfigError(
                f"{_spell(str(root / name))} cannot be read: {error.strerror}"
            ) from None
        digest.update(f"{json.dumps(name)} {size}\n".encode())
    return digest.hexdigest()


def _choose_split(root: Path, splits: Sequence[str]) -> Path:
    if not (root / SPLITS).is_file():
        return root
    try:
        found: Any = json.loads((root / SPLITS).read_text())["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{root / SPLITS} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    for split in splits:
        if split in found:
            return root / split
    raise ConfigError(
        f"{root} has no split {' or '.join(splits)}, but {', '.join(found)}; give {root / str(found[0])}"
    )


def _refuse_empty(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels")
    return image


def _spell(name: str) -> str:
    """A name as text that can be written to any file; bytes that are no UTF-8 are spelled out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
