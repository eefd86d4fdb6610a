"""Logistic regression against scikit-learn's (lbfgs), on the same float32 features, with the same C.

    python benchmarks/logistic.py [--pictures 50000] [--width 384] [--classes 100] [--C 0.01 0.1 1] [--rounds 5] [--threads 2]

Both take turns in each round. Ours has a third of the tolerance, so as to end no higher: the objective, recomputed in
float64 from what each gives, is in the last column.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic

Fit = Callable[[], tuple[Any, Any, int]]


def draw(pictures: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (pictures, width) about as correlated as a network's, and labels."""
    chance = np.random.default_rng(0)
    labels = chance.integers(0, classes, pictures)
    vectors = chance.standard_normal((pictures, width), dtype=np.float32)
    vectors += chance.standard_normal((classes, width), dtype=np.float32)[labels] / 8
    vectors *= np.linspace(1, 0.05, width, dtype=np.float32)
    vectors = vectors @ np.linalg.qr(chance.standard_normal((width, width)))[0].astype(np.float32)
    return vectors / np.sqrt((vectors**2).mean()), labels


def measure_objective(
    vectors: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float
) -> float:
    weight, total = weight.astype(np.float64), 0.0
    for part in np.array_split(np.arange(len(labels)), max(1, len(labels) // 10_000)):
        logits = vectors[part].astype(np.float64) @ weight.T + bias
        total += (
            np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(part)), labels[part]]
        ).sum()
    return strength * total + 0.5 * float((weight**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--C", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    vectors, labels = draw(options.pictures, options.width, options.classes)

    def fit_peer(strength: float) -> tuple[Any, Any, int]:
        peer = LogisticRegression(C=strength, tol=options.tolerance, max_iter=1000).fit(
            vectors, labels
        )
        return peer.coef_, peer.intercept_, int(peer.n_iter_[0])

    def fit_ours(strength: float) -> tuple[Any, Any, int]:
        ours = fit_logistic(
            vectors, labels, options.classes, strength, tolerance=options.tolerance / 3
        )
        return ours.weight, ours.bias, ours.steps

    print(
        "| C | solver | seconds, median (min to max) | / scikit-learn | steps | objective |\n|---|---|---|---|---|---|"
    )
    with threadpool_limits(options.threads):
        for strength in options.C:
            times: dict[str, list[float]] = {"scikit-learn": [], "ours": []}
            ends = {}
            for _ in range(options.rounds):
                for name, fit in (("scikit-learn", fit_peer), ("ours", fit_ours)):
                    start = time.perf_counter()
                    weight, bias, steps = fit(strength)
                    times[name].append(time.perf_counter() - start)
                    ends[name] = (
                        f"{steps} | {measure_objective(vectors, labels, weight, bias, strength):.3f}"
                    )
            base = statistics.median(times["scikit-learn"])
            for name, spent in times.items():
                cells = f"{statistics.median(spent):.2f} ({min(spent):.2f} to {max(spent):.2f})"
                print(
                    f"| {strength:g} | {name} | {cells} | {statistics.median(spent) / base:.2f} | {ends[name]} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
