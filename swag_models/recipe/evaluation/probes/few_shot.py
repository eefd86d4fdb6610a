"""Random subsets of labelled images, the same on every machine and for every order of the images.

Images are drawn by a hash of their names instead of by a random number generator.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from swag_models.errors import ConfigError

Indices = NDArray[np.int64]
VALIDATION_SHARE = 0.2  # of the training images of each class, to choose hyperparameters


def choose_shots(
    names: Sequence[str],
    labels: Indices,
    shots: float,
    split: int,
    classes: Sequence[str] | None = None,
) -> Indices:
    """Draw the same number, or share, of images of each class.

    Subsets are nested: within a split, the images of fewer shots are among those of more.

    Args:
        names: names of all images.
        labels: class of each image (N,).
        shots: images per class; below 1, the share of the class, but at least one image.
        split: number of the random choice.
        classes: class names for messages.

    Returns:
        Sorted indices of the drawn images.

    Raises:
        ConfigError: `shots` is invalid, or a class has too few images.
    """
    if not (0 < shots < 1 or (shots >= 1 and shots == int(shots))):
        raise ConfigError(
            f"invalid shots {shots}: allowed whole numbers of at least 1, "
            "and shares between 0 and 1"
        )
    class_sizes = np.bincount(labels)
    if shots < 1:
        num_drawn = np.maximum(1, np.rint(shots * class_sizes))
    else:
        num_drawn = np.full(len(class_sizes), int(shots))
    # Classes without any image are allowed: the test set may have classes that training lacks.
    too_small = np.flatnonzero((class_sizes > 0) & (class_sizes < num_drawn))
    if len(too_small):
        number = too_small[0]
        raise ConfigError(
            f"class {classes[number] if classes else number} has {class_sizes[number]} images, "
            f"too few for {shots} shots; choose fewer shots"
        )
    return np.flatnonzero(_rank_in_class(names, labels, f"shots {split}") < num_drawn[labels])


def hold_back(names: Sequence[str], labels: Indices) -> NDArray[np.bool_]:
    """Choose the validation images: a fifth of each class, rounded, but never a whole class.

    Returns:
        Whether each image is held back for validation (N,).
    """
    class_sizes = np.bincount(labels)
    num_held = np.minimum(np.rint(VALIDATION_SHARE * class_sizes), np.maximum(class_sizes - 1, 0))
    mask: NDArray[np.bool_] = _rank_in_class(names, labels, "validation") < num_held[labels]
    return mask


def _rank_in_class(names: Sequence[str], labels: Indices, salt: str) -> Indices:
    """Return the rank of each image (N,) among the images of its class, by hash."""
    digests = [hashlib.sha256(f"{salt} {name}".encode()).digest()[:8] for name in names]
    hashes = np.array(digests, "V8").view(">u8")  # big-endian, so the same on every machine
    order = np.lexsort((hashes, labels))  # by class, then by hash
    class_sizes = np.bincount(labels)
    class_starts = np.cumsum(class_sizes) - class_sizes  # start of each class in `order`
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - class_starts[labels[order]]
    return ranks
