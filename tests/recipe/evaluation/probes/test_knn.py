"""Neighbours are exact, whatever the blocks, and vote as scikit-learn's do.

Axes: N features of the bank, Q queries, D width, k neighbours.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.probes.knn import GROUP, classify_neighbours, find_neighbours

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(count: int, width: int = 24, seed: int = 0, dtype: Any = np.float32) -> Any:
    return (np.random.default_rng(seed).standard_normal((count, width)) * 3).astype(dtype)


def search(bank: Any, queries: Any, k: int) -> tuple[Any, Any]:
    """By force, in float64."""
    one, two = (
        each.astype(np.float64) / np.linalg.norm(each.astype(np.float64), axis=1, keepdims=True)
        for each in (bank, queries)
    )
    products = two @ one.T
    places = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, places, 1), places


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("count", "k"), [(5000, 20), (5000, 200), (GROUP + 1, 65), (3, 2), (1000, 1000)]
)
def test_neighbours_are_those_of_brute_force(count: int, k: int, dtype: Any) -> None:
    bank, queries = draw(count, dtype=dtype), draw(37, seed=1, dtype=dtype)
    expected, where = search(bank, queries, k)
    for memory in (1, 4 * 24 * 700, 2**26):
        similarities, places = find_neighbours(bank, queries, k, memory=memory)
        np.testing.assert_allclose(similarities, expected, atol=1e-6)
        assert (places == where).mean() > 0.999
        assert all(len(set(each)) == k for each in places.tolist())


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_a_bank_in_order_of_similarity_is_searched_as_well(order: str) -> None:
    query = draw(1)
    bank = draw(4000, seed=1)
    bank = bank[
        np.argsort(
            search(bank, query, 4000)[1][0]
            if order == "rising"
            else -search(bank, query, 4000)[1][0]
        )
    ]
    similarities, places = find_neighbours(bank, query, 50, memory=4 * 24 * 256)
    expected, where = search(bank, query, 50)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    assert (places == where).all()


def test_among_equals_the_first_is_nearer() -> None:
    bank = np.repeat(np.eye(4, dtype=np.float32), 300, axis=0)
    similarities, places = find_neighbours(bank, bank[[0, 600]], 30, memory=4 * 4 * 128)
    assert places.tolist() == [list(range(30)), list(range(600, 630))]
    assert (similarities == 1).all()
    nothing = find_neighbours(np.zeros((200, 4), np.float32), bank[:1], 3)
    assert nothing[1].tolist() == [[0, 1, 2]]
    assert (nothing[0] == 0).all()


def test_a_mapped_bank_is_never_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", draw(40_000, 64, dtype=np.float16))
    queries, limit = draw(50, 64, seed=1), 2**17
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "bank.npy", mmap_mode=mode)
        tracemalloc.start()
        similarities, _ = find_neighbours(mapped, queries, 5, memory=limit)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * limit < mapped.nbytes
        np.testing.assert_allclose(similarities, search(mapped, queries, 5)[0], atol=1e-6)


def test_votes_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    pixels, digits = load_digits(return_X_y=True)
    train, test = slice(0, 1200), slice(1200, None)
    similarities, places = find_neighbours(
        pixels[train].astype(np.float32), pixels[test].astype(np.float32), 40
    )
    for k in (1, 10, 40):
        peer = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07)
        )
        expected = peer.fit(pixels[train], digits[train]).predict(pixels[test])
        found = classify_neighbours(similarities[:, :k], digits[train][places[:, :k]], 10)
        assert (found == expected).mean() > 0.998
        assert (found == digits[test]).mean() > 0.9


def test_what_is_nearer_has_more_votes() -> None:
    labels = np.array([[2, 0, 0]])
    assert classify_neighbours(np.array([[0.9, 0.8, 0.8]], np.float32), labels, 3).tolist() == [2]
    assert classify_neighbours(np.array([[0.9, 0.88, 0.88]], np.float32), labels, 3).tolist() == [0]


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_there_are_no_features_for_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}; allowed: 1 to 3"):
        find_neighbours(draw(3), draw(1), k)
