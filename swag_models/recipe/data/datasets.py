"""Labelled images that are read by index: an image folder, or any list of image files.

Imports no torch.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from swag_models.errors import ConfigError, ImageError
from swag_models.formatting import count_noun, list_names, printable
from swag_models.image_decoding import read_image, to_rgb
from swag_models.inference.image_sources import NoImageError, find_images, log_left_out
from swag_models.paths import is_system_name

Labels = tuple[int, ...]  # class numbers of one image
Decoder = Callable[[Image.Image], Any]  # as for `read_image`

DatasetT = TypeVar("DatasetT", bound="ImageDataset")


# eq=False: comparing millions of names is never wanted, and identity makes it hashable.
@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, read by index from 0 to len - 1. It can be sent to worker processes.

    Args:
        kind: "folder", "dataset", "table", ...; shown in reports and model cards.
        root: the folder that contains the files.
        title: name of the data for reports, without parent folders, whose names may be private.
        names: name of each image within the data set, often its path relative to `root`.
        labels: class numbers of each image.
        class_names: names of all classes; None if they have no names.
        num_classes: number of classes.
        sha256: changes when an image or a label is likely to have changed; see `hash_file_sizes`.
        files: paths of all files that the images are read from, relative to `root` or absolute.
        reader: index -> upright RGB image; raises ImageError, which names the image. With
            `engine.scaled_decoding` it gets a second argument, `decode` of `read_image`.
        repeats: how often each image is in an epoch, on average; None for once.
    """

    kind: str
    root: Path
    title: str
    names: Sequence[str]
    labels: Sequence[Labels]
    class_names: tuple[str, ...] | None
    num_classes: int
    sha256: str
    files: Sequence[str]
    reader: Callable[..., Any]
    repeats: Sequence[float] | None = field(default=None, kw_only=True)

    @classmethod
    def from_files(
        cls: type[DatasetT],
        root: Path,
        paths: Sequence[str],
        labels: Sequence[Labels],
        class_names: Sequence[str],
        **fields: Any,
    ) -> DatasetT:
        """Make a data set of image files, which are named by their paths.

        Args:
            root: the folder that `paths` are relative to.
            paths: the file of each image.
            labels: class numbers of each image.
            class_names: names of all classes.
            **fields: values of other fields, or replacements for the defaults.
        """
        defaults = {
            "kind": "folder",
            "title": root.resolve().name,
            "num_classes": len(class_names),
            "files": paths,
            "sha256": fields.get("sha256") or hash_file_sizes(root, paths),
            # A partial of a module-level function can be pickled, which spawned workers require.
            "reader": partial(_read_file, root, paths),
        }
        return cls(
            root=root,
            names=paths,
            labels=labels,
            class_names=tuple(class_names),
            **{**defaults, **fields},
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def epoch_size(self) -> int:
        """Number of samples in an epoch, the sum of the repeats."""
        return len(self) if self.repeats is None else max(1, round(sum(self.repeats)))

    def name(self, index: int) -> str:
        """Return the name of an image, with bytes that are not UTF-8 as escapes."""
        return printable(self.names[index])

    def read(self, index: int, decode: Decoder | None = None) -> Any:
        """Read an image as upright RGB.

        Args:
            index: its number.
            decode: as for `read_image`.

        Raises:
            ImageError: the image is broken or missing; the message names it.
        """
        return self.reader(index, decode) if decode else self.reader(index)

    def relabel(
        self,
        labels: Mapping[int, Labels],
        class_names: Sequence[str] | None,
        num_classes: int,
        *,
        border: int = 0,
    ) -> "ImageDataset":
        """Return a subset of the images with other classes.

        Args:
            labels: index of each image to keep -> its class numbers.
            class_names: names of all classes; None if they have no names.
            num_classes: number of classes.
            border: pixels to crop from every edge of every image.
        """
        indices, rows = list(labels), list(labels.values())
        # Labels are part of the hash, so that results on other labels are not mistaken for these.
        sha256 = hashlib.sha256(f"{self.sha256} {indices} {rows}".encode()).hexdigest()
        names = [self.names[index] for index in indices]
        return replace(
            self,
            names=names,
            labels=rows,
            class_names=tuple(class_names) if class_names else None,
            num_classes=num_classes,
            sha256=sha256,
            repeats=self.repeats and [self.repeats[index] for index in indices],
            reader=partial(_read_cropped, self.reader, indices, names, border),
        )


def open_image_folder(
    root: Path, classes: Sequence[str] | None = None, owner: str = "the model"
) -> ImageDataset:
    """Open a folder with one sub-folder for each class, whose sorted names are the classes.

    This is the layout of torchvision's `ImageFolder`. The number of files that are left out is
    logged.

    Args:
        root: the folder; each sub-folder is searched for images to any depth.
        classes: as for `open_image_dataset`.
        owner: as for `open_image_dataset`.

    Raises:
        ConfigError: a sub-folder has no image, or is not among `classes`.
    """
    folders, empty = find_folders(root), list[str]()
    class_names = classes or folders
    paths, labels, left_out = list[str](), list[Labels](), _count_others(root, folders)
    for folder, number in zip(folders, match_names(folders, class_names, root, owner)):
        try:
            images = find_images(root / folder, left_out)
        except NoImageError as error:
            empty.append(printable(folder) + error.content)
            continue
        paths += [os.path.relpath(str(image.source), root) for image in images]
        labels += [(number,)] * len(images)
    if empty:
        raise ConfigError(
            f"{root} has class folders without images: {list_names(empty, 5)}; add images to "
            "them, or remove or rename them: names that begin with a dot are left out"
        )
    log_left_out(left_out)
    return ImageDataset.from_files(root, paths, labels, class_names)


def find_folders(root: Path) -> list[str]:
    """Return the sorted names of the sub-folders, and of links to folders.

    Hidden folders and those of systems, such as __MACOSX, are left out.

    Raises:
        ConfigError: the folder cannot be searched.
    """
    above = Path(os.path.realpath(root))
    try:
        # Tools create hidden folders, for example .ipynb_checkpoints.
        return sorted(
            path.name
            for path in root.iterdir()
            if not path.name.startswith(".")
            and not is_system_name(path.name)
            and path.is_dir()
            # A link to a folder above contains the images of all classes.
            and not (path.is_symlink() and above.is_relative_to(os.path.realpath(path)))
        )
    except OSError as error:
        raise ConfigError(f"{root} cannot be searched: {error.strerror}") from None


def _count_others(root: Path, folders: Sequence[str]) -> Counter[str]:
    """Count what is in a folder beside its sub-folders."""
    others = [path for path in root.iterdir() if path.name not in set(folders)]

    def find_kind(path: Path) -> str:
        if is_system_name(path.name):
            return "system folder" if path.is_dir() else "system file"
        if path.is_dir():
            return "hidden folder" if path.name.startswith(".") else "link to a folder above"
        return path.suffix.lower() or "without a suffix"

    return Counter(map(find_kind, others))


def match_names(
    names: Sequence[str], classes: Sequence[str], source: object, owner: str = "the model"
) -> list[int]:
    """Return the class number of each name.

    Args:
        names: the names to look up.
        classes: names of all classes, in order of their numbers.
        source: where the names come from, for messages.
        owner: what has these `classes`, for messages.

    Raises:
        ConfigError: a name is missing from the classes, or occurs more than once in them.
    """
    # Duplicate names would silently map to the last of their numbers.
    numbers, counts = {name: number for number, name in enumerate(classes)}, Counter(classes)
    for problem, wrong_names in (
        (f"that {owner} does not have", [name for name in names if name not in numbers]),
        (f"that {owner} has more than once", [name for name in names if counts[name] > 1]),
    ):
        if wrong_names:
            raise ConfigError(
                f"{source} has classes {problem}: {list_names(wrong_names, 5)}; it has "
                f"{count_noun(len(classes), 'class')}, first {', '.join(classes[:3])}: rename or "
                "remove them"
            )
    return [numbers[name] for name in names]


def hash_file_sizes(root: Path, files: Iterable[str]) -> str:
    """Return the SHA-256 of the names and sizes of files.

    It detects most changes of the files without reading them.

    Args:
        root: the folder that `files` are relative to.
        files: paths, in any order.

    Raises:
        ConfigError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in sorted(files):
        try:
            # A link that leads nowhere is one broken image, which is reported when it is read.
            size = (root / name).stat(follow_symlinks=(root / name).exists()).st_size
        except OSError as error:
            raise ConfigError(
                f"{printable(root / name)} cannot be read: {error.strerror}"
            ) from None
        # JSON escapes line breaks and bytes that are not UTF-8.
        digest.update(f"{json.dumps(name)} {size}\n".encode())
    return digest.hexdigest()


def _read_file(root: Path, paths: Sequence[str], index: int, decode: Decoder | None = None) -> Any:
    path = root / paths[index]
    return read_image(path, printable(path), decode or to_rgb)


def _read_cropped(
    reader: Callable[..., Any],
    indices: Sequence[int],
    names: Sequence[str],
    border: int,
    index: int,
    decode: Decoder | None = None,
) -> Any:
    if not border:
        return reader(indices[index], decode) if decode else reader(indices[index])
    image: Image.Image = reader(indices[index])
    width, height = image.size
    if min(width, height) <= 2 * border:
        raise ImageError(
            f"{printable(names[index])} has {width}x{height} pixels, "
            f"too few to crop {border} from each edge"
        )
    image = image.crop((border, border, width - border, height - border))
    return decode(image) if decode else image
