"""Losses on sparse targets against `F.cross_entropy` with one label, forward and backward.

    python benchmarks/loss.py [--classes 27000] [--batch 64 256] [--rounds 15] [--threads 1]
        [--device cpu]

The logits are given. All losses take turns in each round. Memory is the peak beyond the logits,
including their gradient: as the profiler counts it on the CPU, as the allocator counts it on a GPU.
The rows "targets" make the targets too. The last rows are losses of torch and timm with dense
targets, which are made in every step, since a loader gives labels as lists.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from checkpointing import measure_peak
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor

from swag_models.recipe.config import Objective
from swag_models.recipe.training.losses import Targets, compute_losses, make_targets

Loss = Callable[[Tensor], Tensor]


def make_losses(classes: int, batch: int, device: str) -> dict[str, Loss]:
    generator = random.Random(0)
    samples = [generator.sample(range(classes), generator.randint(1, 5)) for _ in range(batch)]
    label = torch.tensor([sample[0] for sample in samples], device=device)
    soft, binary = (
        make_targets(samples, kind, classes).to(device) for kind in ("softmax", "sigmoid")
    )
    weights = [generator.uniform(0.5, 10) for _ in range(classes)]
    asl = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=0, clip=0.05)

    def densify(targets: Targets, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits).scatter_add_(1, *targets)

    return {
        "F.cross_entropy, one label": lambda logits: F.cross_entropy(logits, label),
        "softmax, 1 to 5 classes": lambda logits: compute_losses(
            Objective("softmax"), logits, soft
        ).mean(),
        "softmax, targets": lambda logits: compute_losses(
            Objective("softmax"), logits, make_targets(samples, "softmax", classes).to(device)
        ).mean(),
        "softmax, targets weighted by idf": lambda logits: compute_losses(
            Objective(weighting="idf"),
            logits,
            make_targets(samples, "softmax", classes, weights).to(device),
        ).mean(),
        "softmax, smoothed": lambda logits: compute_losses(
            Objective("softmax", 0.1), logits, soft
        ).mean(),
        "sigmoid, 1 to 5 classes": lambda logits: compute_losses(
            Objective("sigmoid"), logits, binary
        ).mean(),
        "asymmetric, 1 to 5 classes": lambda logits: compute_losses(
            Objective("asymmetric"), logits, binary
        ).mean(),
        "F.cross_entropy, dense": lambda logits: F.cross_entropy(logits, densify(soft, logits)),
        "F.binary_cross_entropy_with_logits, dense": lambda logits: (
            F.binary_cross_entropy_with_logits(logits, densify(binary, logits))
        ),
        "timm's AsymmetricLossMultiLabel, dense": lambda logits: asl(
            logits, densify(binary, logits)
        ),
    }


def step(loss: Loss, logits: Tensor) -> None:
    logits.grad = None
    loss(logits).backward()
    if logits.is_cuda:
        torch.cuda.synchronize()


def measure_seconds(loss: Loss, logits: Tensor) -> float:
    start = time.perf_counter()
    step(loss, logits)
    return time.perf_counter() - start


def measure_memory(loss: Loss, logits: Tensor) -> float:
    """Peak memory of a step, in MiB."""
    logits.grad = None
    return measure_peak(lambda: step(loss, logits), logits.device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=27_000)
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        "| batch | loss | ms, median (min to max) | / one label | MiB | / one label |\n"
        "|---|---|---|---|---|---|"
    )
    for batch in options.batch:
        logits = torch.randn(batch, options.classes, device=options.device, requires_grad=True)
        losses = make_losses(options.classes, batch, options.device)
        times: dict[str, list[float]] = {name: [] for name in losses}
        for loss in losses.values():
            step(loss, logits)
        for _ in range(options.rounds):
            for name, loss in losses.items():
                times[name].append(1e3 * measure_seconds(loss, logits))
        peaks = {name: measure_memory(loss, logits) for name, loss in losses.items()}
        base_time = statistics.median(times["F.cross_entropy, one label"])
        base_peak = peaks["F.cross_entropy, one label"]
        for name, measured in times.items():
            median = statistics.median(measured)
            cells = [
                f"{batch}",
                name,
                f"{median:.2f} ({min(measured):.2f} to {max(measured):.2f})",
                f"{median / base_time:.2f}",
                f"{peaks[name]:.1f}",
                f"{peaks[name] / base_peak:.2f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
