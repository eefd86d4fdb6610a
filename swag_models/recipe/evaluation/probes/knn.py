"""Exact k-nearest-neighbour search by cosine similarity in bounded memory, and a vote on classes.

Matrix products use numpy, whose OpenBLAS reaches full speed on CPUs of all vendors, while torch's
MKL is up to twice as slow on AMD. Everything else uses torch, for its threads.

Axes: N features of the bank, Q queries, D feature width, k neighbours, K classes; n bank rows and
m queries of a block, c candidates of a query.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.hub.progress import make_bar
from swag_models.recipe.evaluation.stored_rows import StoredRows

# DINO's protocol (Caron et al. 2021, arXiv 2104.14294), which tries k = 10, 20, 100 and 200.
TEMPERATURE = 0.07
BUFFER_BYTES = 128 * 2**20  # size of each of three buffers: bank rows, queries, products
MAX_BLOCK_ROWS = 32768  # bank rows; with narrow features, larger blocks are not faster
UNIT_LENGTH_TOLERANCE = 1e-6  # float32 rounding leaves normalised features this close to length 1
GROUP_SIZE = 64  # products per group in `_merge_block`; a power of two


def find_neighbours(
    bank: NDArray[Any] | StoredRows,
    queries: NDArray[Any] | StoredRows,
    k: int,
    *,
    memory: int = BUFFER_BYTES,
    progress: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k features of the bank with the highest cosine similarity to each query.

    Args:
        bank: features (N, D), float16 or float32, in memory, memory-mapped or stored. float32
            features of length 1 are not copied. A zero vector has similarity 0 to everything.
        queries: features (Q, D), as `bank`.
        k: number of neighbours, at most N.
        memory: size of each of the three buffers in bytes.
        progress: show a progress bar.

    Returns:
        Similarities (Q, k) in descending order, and row indices into the bank (Q, k). Equally
        similar features are sorted by index.

    Raises:
        ConfigError: k is below 1, or the bank has fewer than k features.
    """
    (bank_size, width), num_queries = bank.shape, len(queries)
    if not 1 <= k <= bank_size:
        raise ConfigError(f"invalid k {k}: allowed 1 to {bank_size:,}, the number of features")
    # A block has a multiple of GROUP_SIZE bank rows, so that groups divide its products evenly.
    bank_rows = min(MAX_BLOCK_ROWS, bank_size, memory // (4 * width))
    bank_rows = GROUP_SIZE * max(1, bank_rows // GROUP_SIZE)
    query_rows = max(1, min(num_queries, memory // (4 * bank_rows), memory // (4 * width)))
    bank_buffer = np.empty((bank_rows, width), np.float32)
    query_buffer = np.empty((query_rows, width), np.float32)
    product_buffer = np.empty(query_rows * bank_rows, np.float32)
    similarities = torch.full((num_queries, k), -torch.inf)
    indices = torch.full((num_queries, k), -1)
    for first in make_bar(progress, range(0, bank_size, bank_rows), desc="neighbours"):
        rows = bank[first : first + bank_rows]
        padded_rows = -(-len(rows) // GROUP_SIZE) * GROUP_SIZE
        bank_block = _normalise(rows, bank_buffer[:padded_rows])  # (n, D)
        for start in range(0, num_queries, query_rows):
            block = slice(start, start + query_rows)
            query_block = _normalise(queries[block], query_buffer[: len(similarities[block])])
            shape = (len(query_block), len(bank_block))  # (m, n)
            products = product_buffer[: shape[0] * shape[1]].reshape(shape)
            np.dot(query_block, bank_block.T, out=products)
            products[:, len(rows) :] = -np.inf  # padding is never a neighbour
            _merge_block(torch.from_numpy(products), first, similarities[block], indices[block])
    return similarities.numpy(), indices.numpy()


def classify_neighbours(
    similarities: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> NDArray[np.int64]:
    """Predict classes by a vote of the neighbours, weighted exp(similarity / temperature).

    Args:
        similarities: similarities of the neighbours (Q, k).
        labels: classes of the neighbours (Q, k).
        num_classes: number of classes K.
        temperature: a lower value gives the nearest neighbours more weight.

    Returns:
        The class with the most votes (Q,).
    """
    predicted = np.empty(len(labels), np.int64)
    rows = max(1, BUFFER_BYTES // (8 * num_classes))  # so that the votes (rows, K) fit the block
    for start in range(0, len(labels), rows):
        block = slice(start, start + rows)
        weights = np.exp(similarities[block].astype(np.float64) / temperature)  # (rows, k)
        # A single bincount for all queries, each with its own range of K slots.
        slots = labels[block] + num_classes * np.arange(len(weights))[:, None]
        votes = np.bincount(slots.ravel(), weights.ravel(), num_classes * len(weights))
        predicted[block] = votes.reshape(len(weights), num_classes).argmax(1)
    return predicted


def _normalise(vectors: NDArray[Any], buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    """L2-normalise vectors into the buffer, and fill the rest of it with zeros.

    If the vectors are already normalised and have the shape of the buffer, return them uncopied.
    """
    count = len(vectors)
    normalised = torch.from_numpy(buffer)
    # torch converts float16 ten times as fast as numpy, but warns about read-only arrays.
    if vectors.flags.writeable:
        source = torch.from_numpy(vectors)
        if vectors.dtype == np.float32 and vectors.shape == buffer.shape:
            lengths = torch.linalg.vector_norm(source, dim=1)
            if bool(((lengths - 1).abs() < UNIT_LENGTH_TOLERANCE).all()):
                return vectors
        normalised[:count] = source
    else:
        buffer[:count] = vectors
    normalised[count:] = 0
    lengths = torch.linalg.vector_norm(normalised, dim=1, keepdim=True)
    normalised /= lengths.clamp_min(torch.finfo().tiny)  # zero vectors stay zero
    return buffer


def _merge_block(products: Tensor, first: int, similarities: Tensor, indices: Tensor) -> None:
    """Merge the products of a block into the best k so far.

    `topk` over all products would take up to a quarter of the time of the matrix product (32768
    rows, D = 768, k = 200). But few products of later blocks are among the best k, and one pass
    over group maxima, 40 times as fast as `topk`, finds them:

    1. Compute the maximum of every group of GROUP_SIZE adjacent products. This is the only step
       that reads all products. A group whose maximum is not above the bound has no candidate.
    2. The bound of a query is the lowest similarity of its best k so far. In the first block that
       is minus infinity, and every group would pass. The bound is then the k-th largest maximum: k
       groups have a maximum of at least this value, so at least k products reach it, and no product
       below it can be among the best k.
    3. The candidates are the products of the remaining groups that are above the bound.
    4. Sort the best so far together with the candidates.

    Args:
        products: cosine similarities (m, n) of m queries and n bank rows; n is a multiple of
            GROUP_SIZE.
        first: index in the bank of the first row of the block.
        similarities: the best so far (m, k) in descending order; updated in place.
        indices: rows in the bank of the best so far (m, k); updated in place.
    """
    num_queries, k = similarities.shape
    # With at least 2k groups, the k-th largest maximum excludes about half of them or more. Halving
    # keeps the size a divisor of n; with groups of size 1, every product is its own maximum.
    group_size = GROUP_SIZE
    while group_size > 1 and products.shape[1] < 2 * k * group_size:
        group_size //= 2
    grouped = products.view(num_queries, -1, group_size)  # (m, n / size, size)
    maxima = grouped.amax(2)
    bound = similarities[:, -1]
    rows, groups = (maxima > bound[:, None]).nonzero(as_tuple=True)
    if len(rows) > k * num_queries and maxima.shape[1] >= k:  # the bound excludes little: step 2
        kth_maximum = maxima.topk(k).values[:, -1]
        # The next smaller float, because candidates are above the bound and this maximum is one.
        bound = bound.maximum(kth_maximum.nextafter(kth_maximum.new_tensor(-torch.inf)))
        rows, groups = (maxima > bound[:, None]).nonzero(as_tuple=True)
    group_products = grouped[rows, groups]  # (groups that pass, size)
    passed, offsets = (group_products > bound[rows, None]).nonzero(as_tuple=True)
    if not len(passed):
        return
    # One entry for each candidate. `nonzero` lists them by query, then in the order of the bank.
    values, rows = group_products[passed, offsets], rows[passed]
    columns = offsets + group_size * groups[passed]
    counts = rows.bincount(minlength=num_queries)  # candidates of each query
    # One row per query: the best so far, then the candidates, padded to the largest number of
    # candidates. Equal values are in bank order, and the stable sort keeps that order.
    slots = k + torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    padding = (num_queries, int(counts.max()))
    all_values = torch.cat([similarities, products.new_full(padding, -torch.inf)], 1)  # (m, k + c)
    all_indices = torch.cat([indices, indices.new_full(padding, -1)], 1)
    all_values[rows, slots] = values
    all_indices[rows, slots] = columns + first
    all_values, order = all_values.sort(dim=1, descending=True, stable=True)
    similarities.copy_(all_values[:, :k])
    indices.copy_(all_indices.gather(1, order[:, :k]))
