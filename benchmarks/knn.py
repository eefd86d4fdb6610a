"""Exact nearest neighbours against faiss-cpu's `IndexFlatIP`, on the same features at length 1.

    python benchmarks/knn.py [--features 1000000] [--width 768] [--queries 512] [--k 20 200] [--rounds 5] [--threads 2]

Both take turns in each round; ours looks whether lengths are 1, faiss takes it for granted. Memory is the most that the
process takes beyond bank and queries while ours searches; faiss has a copy of the bank of its own.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from swag_models.recipe.evaluation.probes.knn import find_neighbours


def draw(count: int, width: int, seed: int) -> np.ndarray:
    """Features (count, width) at length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    for part in np.array_split(vectors, max(1, count // 10_000)):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def measure_seconds(search: Callable[[], object]) -> float:
    start = time.perf_counter()
    search()
    return time.perf_counter() - start


def read_peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--k", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    bank, queries = (
        draw(options.features, options.width, 0),
        draw(options.queries, options.width, 1),
    )
    before = read_peak()
    find_neighbours(bank, queries, max(options.k))
    peak = read_peak() - before
    index = faiss.IndexFlatIP(options.width)
    index.add(bank)
    print(
        "| k | search | seconds, median (min to max) | / faiss | same neighbours |\n|---|---|---|---|---|"
    )
    for k in options.k:
        found = {"faiss": index.search(queries, k)[1], "ours": find_neighbours(bank, queries, k)[1]}
        same = (found["faiss"] == found["ours"]).mean()
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(options.rounds):
            times["faiss"].append(measure_seconds(lambda: index.search(queries, k)))  # noqa: B023
            times["ours"].append(measure_seconds(lambda: find_neighbours(bank, queries, k)))  # noqa: B023
        base = statistics.median(times["faiss"])
        for name, spent in times.items():
            cells = f"{statistics.median(spent):.2f} ({min(spent):.2f} to {max(spent):.2f})"
            print(
                f"| {k} | {name} | {cells} | {statistics.median(spent) / base:.2f} | {same:.5f} |",
                flush=True,
            )
    print(f"\nOurs takes {peak:.0f} MiB beside a bank of {bank.nbytes / 2**20:.0f} MiB.")


if __name__ == "__main__":
    main()
