"""Random subsets of labelled images, the same on every machine and for every order of the images.

Images are drawn by a hash of their names instead of by a random number generator.
"""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, list_names

logger = logging.getLogger("swag_models")

Indices = NDArray[np.int64]
VALIDATION_SHARE = 0.2  # of the training images of each class, to choose hyperparameters
MIN_HELD_BACK = 3  # images of a class of which one is held back


def check_shots(
    shots: Sequence[float | None], labels: Indices, classes: Sequence[str] | None
) -> None:
    """Check numbers of shots before the features of the images are computed.

    Classes with fewer images than shots are logged; `choose_shots` takes all their images.

    Args:
        shots: numbers of shots, see `choose_shots`; None for all images.
        labels: class of each training image (N,).
        classes: class names for messages.

    Raises:
        ConfigError: a number is invalid, or there are too few images to choose C with all of them.
    """
    for count in shots:
        if count is not None and not (0 < count < 1 or (count >= 1 and count == int(count))):
            raise ConfigError(
                f"invalid shots {count}: allowed whole numbers of at least 1, "
                "and shares between 0 and 1"
            )
    sizes = np.bincount(labels)
    if None in shots and (sizes < MIN_HELD_BACK).all():
        raise ConfigError(
            f"no class has {MIN_HELD_BACK} training images, which the choice of C needs; give "
            "more, or leave out the shots 'all'"
        )
    for count in sorted(filter(None, shots)):
        small = np.flatnonzero((sizes > 0) & (sizes < count))
        if len(small):
            titles = [f"{classes[i] if classes else i} ({sizes[i]})" for i in small.tolist()]
            logger.warning(
                "%g shots: %s with fewer training images, of which all are used: %s",
                *(count, count_noun(len(small), "class"), list_names(titles, 5)),
            )


def choose_shots(names: Sequence[str], labels: Indices, shots: float, split: int) -> Indices:
    """Draw the same number, or share, of images of each class; all of a class that has fewer.

    Subsets are nested: within a split, the images of fewer shots are among those of more.

    Args:
        names: names of all images.
        labels: class of each image (N,).
        shots: images per class; below 1, the share of the class, but at least one image.
        split: number of the random choice.

    Returns:
        Sorted indices of the drawn images.
    """
    class_sizes = np.bincount(labels)
    if shots < 1:
        num_drawn = np.maximum(1, np.rint(shots * class_sizes))
    else:
        num_drawn = np.full(len(class_sizes), int(shots))
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
