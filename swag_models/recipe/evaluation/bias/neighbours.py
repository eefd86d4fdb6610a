"""Groups of nearest neighbours: whether images are more similar to images of their own group.

Axes: N images, D features, k neighbours, G groups, P permutations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swag_models.hub.progress import make_bar
from swag_models.recipe.evaluation.bias.disparity import Groups, adjust_p_values
from swag_models.recipe.evaluation.probes.knn import find_neighbours
from swag_models.recipe.evaluation.stored_rows import StoredRows


@dataclass(frozen=True, eq=False)
class NeighbourShares:
    """Shares of groups among the nearest neighbours; see `compare_neighbours`.

    Attributes:
        groups: the compared groups.
        neighbours: k, number of neighbours of each image.
        share: (G, G), share of a column's group among the neighbours of a row's images.
        expected: (G, G), the shares expected from group sizes alone.
        p: (G, G), p-values corrected for all pairs of groups.
    """

    groups: Groups
    neighbours: int
    share: NDArray[np.float64]
    expected: NDArray[np.float64]
    p: NDArray[np.float64]


def compare_neighbours(
    neighbours: NDArray[np.int64],
    groups: Groups,
    *,
    permutations: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> NeighbourShares:
    """Count the groups of the neighbours of each group's images, and test them against chance.

    If only group sizes mattered, (size - 1) / (N - 1) of the neighbours would be from the image's
    group, and size / (N - 1) from another group.

    Args:
        neighbours: (N, k), indices of the nearest other images of each image.
        groups: groups of the N images.
        permutations: P, the number of permutations of the groups, for the p-values.
        seed: seed of the permutations.
        progress: whether to show a progress bar.
    """
    num_images, num_groups = len(neighbours), len(groups.names)
    counts = np.empty((1 + permutations, num_groups, num_groups))
    counts[0] = _count_pairs(groups.codes, neighbours, num_groups)  # the observed order
    with make_bar(progress, total=permutations, unit=" permutations") as bar:
        for index, codes in enumerate(groups.permute(permutations, seed), 1):
            counts[index] = _count_pairs(codes, neighbours, num_groups)
            bar.update()
    # Studentised by the deviation over permutations, since no formula covers images that are
    # neighbours of many others. The observed order counts as one of the permutations.
    spread = counts.std(0)
    scores = np.abs(counts - counts.mean(0)) / np.where(spread > 0, spread, 1)
    return NeighbourShares(
        groups=groups,
        neighbours=neighbours.shape[1],
        share=counts[0] / counts[0].sum(1, keepdims=True),
        expected=(groups.sizes - np.eye(num_groups)) / (num_images - 1),
        p=adjust_p_values(scores[0], scores[1:].max((1, 2))),
    )


def list_neighbours(
    features: NDArray[np.float32] | StoredRows, neighbours: int
) -> NDArray[np.int64]:
    """The k nearest other images of each image by cosine similarity, nearest first.

    Args:
        features: (N, D).
        neighbours: k.

    Returns:
        (N, k), indices of images.
    """
    _, indices = find_neighbours(features, features, neighbours + 1)  # (N, k + 1)
    is_itself = indices == np.arange(len(indices))[:, None]
    # An image with more than k exact duplicates may not be among its own neighbours; then the last
    # neighbour is dropped instead.
    is_itself[~is_itself.any(1), -1] = True
    return indices[~is_itself].reshape(len(indices), neighbours)


def _count_pairs(
    codes: NDArray[np.int64], neighbours: NDArray[np.int64], num_groups: int
) -> NDArray[np.int64]:
    """(G, G): number of neighbours from a column's group, of images of a row's group."""
    pairs = codes[:, None] * num_groups + codes[neighbours]
    return np.bincount(pairs.ravel(), minlength=num_groups**2).reshape(num_groups, num_groups)
