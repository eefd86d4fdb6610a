"""Nearest neighbours are exact for all block sizes; their votes equal scikit-learn's.

Axes: N features of the bank, Q queries, D feature width, k neighbours.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.probes.knn import (
    GROUP_SIZE,
    classify_neighbours,
    find_neighbours,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def draw_features(count: int, width: int = 24, seed: int = 0, dtype: Any = np.float32) -> Any:
    return (np.random.default_rng(seed).standard_normal((count, width)) * 3).astype(dtype)


def normalise(vectors: Any) -> Any:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search_brute_force(bank: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """Return similarities and indices (Q, k), computed in float64 with a full sort."""
    products = normalise(queries) @ normalise(bank).T
    indices = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, indices, 1), indices


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("count", "k"), [(5000, 20), (5000, 200), (GROUP_SIZE + 1, 65), (3, 2), (1000, 1000)]
)
def test_neighbours_equal_brute_force(count: int, k: int, dtype: Any) -> None:
    bank, queries = draw_features(count, dtype=dtype), draw_features(37, seed=1, dtype=dtype)
    expected, expected_indices = search_brute_force(bank, queries, k)
    for memory in (1, 4 * 24 * 700, 2**26):
        similarities, indices = find_neighbours(bank, queries, k, memory=memory)
        np.testing.assert_allclose(similarities, expected, atol=1e-6)
        # float32 rounding may swap neighbours that are almost equally similar.
        assert (indices == expected_indices).mean() > 0.999
        assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_sorted_bank_is_searched_correctly(order: str) -> None:
    """In a bank sorted by rising similarity, all rows of each block beat the best so far."""
    query = draw_features(1)
    bank = draw_features(4000, seed=1)
    falling = search_brute_force(bank, query, 4000)[1][0]
    bank = bank[falling[::-1] if order == "rising" else falling]
    similarities, indices = find_neighbours(bank, query, 50, memory=4 * 24 * 256)
    expected, expected_indices = search_brute_force(bank, query, 50)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    # Similarities differ by at least 1e-5, so float32 rounding does not swap them.
    assert (indices == expected_indices).all()


def test_equal_similarities_keep_the_order_of_the_bank() -> None:
    bank = np.repeat(np.eye(4, dtype=np.float32), 300, axis=0)
    similarities, indices = find_neighbours(bank, bank[[0, 600]], 30, memory=4 * 4 * 128)
    assert indices.tolist() == [list(range(30)), list(range(600, 630))]
    assert (similarities == 1).all()


def test_zero_features_have_similarity_zero() -> None:
    similarities, indices = find_neighbours(
        np.zeros((200, 4), np.float32), np.eye(1, 4, dtype=np.float32), 3
    )
    assert indices.tolist() == [[0, 1, 2]]
    assert (similarities == 0).all()


def test_mapped_bank_is_read_in_blocks(tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", draw_features(40_000, 64, dtype=np.float16))
    queries, memory = draw_features(50, 64, seed=1), 2**17
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "bank.npy", mmap_mode=mode)
        tracemalloc.start()
        similarities, _ = find_neighbours(mapped, queries, 5, memory=memory)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * memory < mapped.nbytes
        expected, _ = search_brute_force(mapped, queries, 5)
        np.testing.assert_allclose(similarities, expected, atol=1e-6)


def test_votes_equal_scikit_learn() -> None:
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    pixels, digits = load_digits(return_X_y=True)
    train, test = slice(0, 1200), slice(1200, None)
    similarities, indices = find_neighbours(
        pixels[train].astype(np.float32), pixels[test].astype(np.float32), 40
    )
    for k in (1, 10, 40):
        peer = KNeighborsClassifier(
            k,
            metric="cosine",
            algorithm="brute",
            weights=lambda distances: np.exp((1 - distances) / 0.07),
        )
        expected = peer.fit(pixels[train], digits[train]).predict(pixels[test])
        predicted = classify_neighbours(similarities[:, :k], digits[train][indices[:, :k]], 10)
        assert (predicted == expected).mean() > 0.998
        assert (predicted == digits[test]).mean() > 0.9


def test_nearer_neighbours_have_larger_votes() -> None:
    labels = np.array([[2, 0, 0]])
    assert classify_neighbours(np.array([[0.9, 0.8, 0.8]], np.float32), labels, 3).tolist() == [2]
    assert classify_neighbours(np.array([[0.9, 0.88, 0.88]], np.float32), labels, 3).tolist() == [0]


@pytest.mark.parametrize("k", [0, 4])
def test_invalid_k_is_rejected(k: int) -> None:
    with pytest.raises(ConfigError, match=f"invalid k {k}: allowed 1 to 3"):
        find_neighbours(draw_features(3), draw_features(1), k)
