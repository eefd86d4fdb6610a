"""Logistic regression, compared with scikit-learn (lbfgs) on the same float32 features and C.

    python benchmarks/logistic.py [--images 50000] [--width 384] [--classes 100] [--C 0.01 0.1 1]
        [--rounds 5] [--threads 2]

Both solvers alternate in each round. Ours runs with a third of the tolerance, so that its objective
is not higher at the end. The last column is the objective computed in float64 from the weights of
each.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from swag_models.formatting import markdown_table
from swag_models.recipe.evaluation.probes.logistic_regression import fit_logistic

Fit = Callable[[float], tuple[np.ndarray, np.ndarray, int]]  # C -> weight, bias, steps


def draw_features(images: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (images, width) about as correlated as those of a network, and labels (images,)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, images)
    features = generator.standard_normal((images, width), dtype=np.float32)
    features += generator.standard_normal((classes, width), dtype=np.float32)[labels] / 8
    features *= np.linspace(1, 0.05, width, dtype=np.float32)
    rotation = np.linalg.qr(generator.standard_normal((width, width)))[0]
    features = features @ rotation.astype(np.float32)
    return features / np.sqrt((features**2).mean()), labels


def measure_objective(
    features: np.ndarray,
    labels: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    C: float,  # noqa: N803
) -> float:
    """The objective of `fit_logistic`, in float64."""
    weight, loss = weight.astype(np.float64), 0.0
    for part in np.array_split(np.arange(len(labels)), max(1, len(labels) // 10_000)):
        logits = features[part].astype(np.float64) @ weight.T + bias
        true_logits = logits[np.arange(len(part)), labels[part]]
        loss += (np.logaddexp.reduce(logits, axis=1) - true_logits).sum()
    return C * loss + 0.5 * float((weight**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--C", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    features, labels = draw_features(options.images, options.width, options.classes)

    def fit_peer(C: float) -> tuple[np.ndarray, np.ndarray, int]:  # noqa: N803
        peer = LogisticRegression(C=C, tol=options.tolerance, max_iter=1000).fit(features, labels)
        return peer.coef_, peer.intercept_, int(peer.n_iter_[0])

    def fit_ours(C: float) -> tuple[np.ndarray, np.ndarray, int]:  # noqa: N803
        tolerance = options.tolerance / 3
        ours = fit_logistic(features, labels, options.classes, C, tolerance=tolerance)
        return ours.weight, ours.bias, ours.steps

    solvers: dict[str, Fit] = {"scikit-learn": fit_peer, "ours": fit_ours}
    rows = []
    with threadpool_limits(options.threads):
        for C in options.C:  # noqa: N806
            seconds: dict[str, list[float]] = {name: [] for name in solvers}
            results = {}
            for _ in range(options.rounds):
                for name, fit in solvers.items():
                    start = time.perf_counter()
                    weight, bias, steps = fit(C)
                    seconds[name].append(time.perf_counter() - start)
                    results[name] = steps, measure_objective(features, labels, weight, bias, C)
            base = statistics.median(seconds["scikit-learn"])
            for name, times in seconds.items():
                median, (steps, objective) = statistics.median(times), results[name]
                spread = f"{median:.2f} ({min(times):.2f} to {max(times):.2f})"
                row = [f"{C:g}", name, spread, f"{median / base:.2f}", steps, f"{objective:.3f}"]
                rows.append(row)
    header = ["C", "solver", "seconds, median (min to max)", "/ scikit-learn", "steps", "objective"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
