"""The nearest neighbours of features by cosine, exactly and in bounded memory, and the class that they vote for.

Products are numpy's, whose OpenBLAS is at full speed on AMD processors too, unlike torch's MKL; the rest is torch's threads.

Axes: N features of the bank, Q queries, D width, k neighbours, K classes; n m of a block, c candidates of a query.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from swag_models.errors import ConfigError

TEMPERATURE = 0.07  # of DINO's protocol (Caron et al. 2021), with k of 10, 20, 100 and 200, of which 20 is best
MEMORY = (
    128 * 2**20
)  # bytes of each of three blocks: of the bank, of the queries, and of their products
ROWS = 32768  # of a block of the bank at most: shorter features are multiplied no faster in longer ones
EXACT = 1e-6  # by which rounding may keep a length from 1
GROUP = 64  # products that are compared by their maximum


def find_neighbours(
    bank: NDArray[Any],
    queries: NDArray[Any],
    k: int,
    *,
    memory: int = MEMORY,
    progress: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine similarities (Q, k), falling, and the places in the bank (Q, k); among equals the first.

    bank (N, D), queries (Q, D): float16 or float32, in memory or mapped, of any length; zeros are like nothing. float32 of
    length 1 is not copied. memory: bytes of each block. ConfigError if the bank has fewer than k.
    """
    (count, width), total = bank.shape, len(queries)
    if not 1 <= k <= count:
        raise ConfigError(
            f"k is {k}; allowed: 1 to {count:,}, as many as there are features to choose from"
        )
    high = GROUP * max(1, min(ROWS, count, memory // (4 * width)) // GROUP)
    wide = max(1, min(total, memory // (4 * high), memory // (4 * width)))
    rows, part = np.empty((high, width), np.float32), np.empty((wide, width), np.float32)
    products = np.empty((wide, high), np.float32)
    similarities, places = torch.full((total, k), -torch.inf), torch.full((total, k), -1)
    for first in tqdm(range(0, count, high), "neighbours", disable=not progress):
        here = min(high, count - first)
        block = _normalise(bank[first : first + here], rows[: -(-here // GROUP) * GROUP])  # (n, D)
        for start in range(0, total, wide):
            some = slice(start, start + wide)
            asked = _normalise(queries[some], part[: len(similarities[some])])  # (m, D)
            found = products.reshape(-1)[: len(asked) * len(block)].reshape(len(asked), len(block))
            np.dot(asked, block.T, out=found)
            found[:, here:] = -np.inf
            _merge(torch.from_numpy(found), first, similarities[some], places[some])
    return similarities.numpy(), places.numpy()


def classify_neighbours(
    similarities: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.int64]:
    """The class (Q,) with the most votes of the neighbours, whose similarities and classes are (Q, k): exp(s / temperature)."""
    chosen = np.empty(len(labels), np.int64)
    step = max(1, MEMORY // (8 * num_classes))
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        weights = np.exp(similarities[part].astype(np.float64) / temperature)
        slots = labels[part] + num_classes * np.arange(len(weights))[:, None]
        votes = np.bincount(slots.ravel(), weights.ravel(), num_classes * len(weights))
        chosen[part] = votes.reshape(len(weights), num_classes).argmax(1)
    return chosen


def _normalise(vectors: NDArray[Any], space: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length 1, and zeros after them, in the space; or as they are, if they are that and fill it."""
    count = len(vectors)
    values = torch.from_numpy(space)
    if (
        vectors.flags.writeable
    ):  # torch takes no others without a warning, and is ten times as fast with float16
        given = torch.from_numpy(vectors)
        if vectors.dtype == np.float32 and vectors.shape == space.shape:
            lengths = torch.linalg.vector_norm(given, dim=1)
            if bool(((lengths - 1).abs() < EXACT).all()):
                return vectors
        values[:count] = given
    else:
        space[:count] = vectors
    values[count:] = 0
    values /= torch.linalg.vector_norm(values, dim=1, keepdim=True).clamp_min(torch.finfo().tiny)
    return space


def _merge(found: Tensor, first: int, similarities: Tensor, places: Tensor) -> None:
    """Put what is better among the products (m, n), which begin at a place of the bank, into the best so far (m, k).

    Few are, after the first block, so all products are read only once, for the maxima of groups of them: what is above the
    worst of the best so far, and where many are, above the k-th of the maxima, is looked at again.
    """
    k = similarities.shape[1]
    size = GROUP
    while size > 1 and found.shape[1] < 2 * k * size:
        size //= 2
    grouped = found.view(len(found), -1, size)
    maxima = grouped.amax(2)
    bound = similarities[:, -1]
    rows, groups = (maxima > bound[:, None]).nonzero(as_tuple=True)
    if len(rows) > k * len(found) and maxima.shape[1] >= k:
        least = maxima.topk(k).values[:, -1]
        bound = bound.maximum(least.nextafter(least.new_tensor(-torch.inf)))  # itself is to pass
        rows, groups = (maxima > bound[:, None]).nonzero(as_tuple=True)
    passing = grouped[rows, groups]
    which, columns = (passing > bound[rows, None]).nonzero(as_tuple=True)
    if not len(which):
        return
    better, rows, columns = passing[which, columns], rows[which], columns + size * groups[which]
    counts = rows.bincount(minlength=len(found))
    slots = (
        k + torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    )  # after the best so far, in the order of the bank
    most = int(counts.max())
    values = torch.cat(
        [similarities, found.new_full((len(found), most), -torch.inf)], 1
    )  # (m, k + c)
    numbers = torch.cat([places, places.new_full((len(found), most), -1)], 1)
    values[rows, slots] = better
    numbers[rows, slots] = columns + first
    values, order = values.sort(dim=1, descending=True, stable=True)
    similarities.copy_(values[:, :k])
    places.copy_(numbers.gather(1, order[:, :k]))
