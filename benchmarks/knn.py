"""Exact nearest neighbours, compared with `IndexFlatIP` of faiss-cpu on features of length 1.

    python benchmarks/knn.py [--features 1000000] [--width 768] [--queries 512] [--k 20 200]
        [--rounds 5] [--threads 2]

Both searches alternate in each round. Ours checks that features have length 1, which faiss assumes.
The memory is the peak of the process during our search, less what bank and queries take. faiss
stores a copy of the bank in addition.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from swag_models.formatting import markdown_table
from swag_models.recipe.evaluation.probes.knn import find_neighbours


def draw_features(count: int, width: int, seed: int) -> np.ndarray:
    """Random features (count, width) of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    # In parts, as a copy of the whole bank would raise the peak that is measured.
    for part in np.array_split(vectors, max(1, count // 10_000)):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def measure_seconds(search: Callable[[], object]) -> float:
    start = time.perf_counter()
    search()
    return time.perf_counter() - start


def read_peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    import faiss  # here, because the runner measures the others without it

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
    bank = draw_features(options.features, options.width, seed=0)
    queries = draw_features(options.queries, options.width, seed=1)
    memory_before = read_peak()
    find_neighbours(bank, queries, max(options.k))
    memory = read_peak() - memory_before
    index = faiss.IndexFlatIP(options.width)
    index.add(bank)
    rows = []
    for k in options.k:
        searches = {
            "faiss": lambda k=k: index.search(queries, k),
            "ours": lambda k=k: find_neighbours(bank, queries, k),
        }
        same = (searches["faiss"]()[1] == searches["ours"]()[1]).mean()
        seconds: dict[str, list[float]] = {name: [] for name in searches}
        for _ in range(options.rounds):
            for name, search in searches.items():
                seconds[name].append(measure_seconds(search))
        base = statistics.median(seconds["faiss"])
        for name, times in seconds.items():
            median = statistics.median(times)
            spread = f"{median:.2f} ({min(times):.2f} to {max(times):.2f})"
            rows.append([k, name, spread, f"{median / base:.2f}", f"{same:.5f}"])
    header = ["k", "search", "seconds, median (min to max)", "/ faiss", "same neighbours"]
    print(markdown_table(header, rows))
    print(f"\nOurs takes {memory:.0f} MiB in addition to a bank of {bank.nbytes / 2**20:.0f} MiB.")


if __name__ == "__main__":
    main()
