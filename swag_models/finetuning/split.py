"""Hold out a part of the images of each class, the same part in every run.

Copies of an image stay on the same side: an accuracy on images that were trained on means nothing.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from pathlib import Path

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, describe, escape_unprintable, list_names
from swag_models.paths import open_regular
from swag_models.recipe.data.datasets import ImageDataset

HASH_CHUNK_SIZE = 2**20  # bytes that are read at once
NO_CLASS = -1

logger = logging.getLogger("swag_models")


def split_dataset(
    dataset: ImageDataset, share: float, seed: int
) -> tuple[ImageDataset, ImageDataset | None]:
    """Split a data set into training and held-out images.

    The choice depends on the names of the images within their folder (of copies, on their content)
    and on the seed, and not on the machine. An image with several classes counts as one of its
    rarest class.

    Args:
        dataset: the images.
        share: fraction of each class to hold out, at least one image of two; 0 for none.
        seed: of the choice.

    Returns:
        The training images, and the held-out images or None. Both have all classes.

    Raises:
        ConfigError: the share is not allowed.
    """
    if not (isinstance(share, (int, float)) and 0 <= share < 1):
        raise ConfigError(f"holdout is {describe(share)}; allowed: from 0 to below 1, as in 0.2")
    if not share:
        return dataset, None
    contents = identify_contents(dataset)
    ranks = [hashlib.sha256(f"{seed}\0{content}".encode()).digest() for content in contents]
    held_out: set[int] = set()
    single: list[str] = []
    for number, members in sorted(_group_by_class(dataset).items()):
        order = sorted(members, key=lambda index: (ranks[index], index))
        count = _count_held_out([contents[index] for index in order], share)
        held_out.update(order[:count])
        if not count:
            single.append(_name_group(dataset, number))
    if single:
        line = (
            f"{len(single)} of {count_noun(dataset.num_classes, 'class')} with one image, or "
            f"copies of one, which is trained on and not measured: {list_names(single, 5)}"
        )
        logger.warning("%s", escape_unprintable(line, 499))
    if not held_out:
        return dataset, None
    train, rest = (
        dataset.relabel(
            {index: labels for index, labels in enumerate(dataset.labels) if wanted(index)},
            dataset.class_names,
            dataset.num_classes,
        )
        for wanted in (lambda index: index not in held_out, held_out.__contains__)
    )
    return train, rest


def identify_contents(dataset: ImageDataset) -> list[str]:
    """Return a text for each image that is equal for copies of the same file.

    Only files of equal size are read. The number of copies is logged.
    """
    names = [dataset.name(index) for index in range(len(dataset))]
    if len(dataset.files) != len(dataset) or dataset.kind == "dataset":  # images in other files
        return names
    paths = [dataset.root / file for file in dataset.files]
    sizes = [_measure(path) for path in paths]
    counts = Counter(sizes)
    contents = [
        name if counts[size] == 1 else _hash(path) or name
        for name, path, size in zip(names, paths, sizes)
    ]
    copies = len(contents) - len(set(contents))
    if copies:
        labels = defaultdict[str, set[object]](set)
        for content, label in zip(contents, dataset.labels):
            labels[content].add(label)
        subject = count_noun(copies, "image is a copy of another", "images are copies of others")
        line = f"{subject}; copies stay on one side of the split"
        wrong = [name for name, content in zip(names, contents) if len(labels[content]) > 1]
        if wrong:
            line += f"; with copies in another class: {list_names(wrong, 4)}"
        logger.warning("%s", escape_unprintable(line, 499))
    return contents


def _group_by_class(dataset: ImageDataset) -> dict[int, list[int]]:
    """Class number -> indices of its images; an image of several classes is in the rarest.

    Images without a class are in the group NO_CLASS.
    """
    counts = Counter(label for labels in dataset.labels for label in labels)
    groups = defaultdict[int, list[int]](list)
    for index, labels in enumerate(dataset.labels):
        rarest = min(labels, key=lambda label: (counts[label], label), default=NO_CLASS)
        groups[rarest].append(index)
    return groups


def _name_group(dataset: ImageDataset, number: int) -> str:
    if number == NO_CLASS:
        return "images without a label"
    return dataset.class_names[number] if dataset.class_names else str(number)


def _count_held_out(contents: list[str], share: float) -> int:
    """Number of images to hold out from the beginning of a class, without dividing copies."""
    if len(contents) < 2:
        return 0
    count = min(max(1, round(share * len(contents))), len(contents) - 1)
    end = count
    while end < len(contents) and contents[end] == contents[end - 1]:
        end += 1
    if end < len(contents):
        return end
    while count and contents[count] == contents[count - 1]:  # all others are copies of this one
        count -= 1
    return count


def _measure(path: Path) -> int:
    """Size of a file in bytes; -1 if it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _hash(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read, which is reported when it is used."""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while chunk := file.read(HASH_CHUNK_SIZE):
                digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
