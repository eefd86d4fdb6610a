"""Memory and time of a training step with and without gradient checkpointing.

    python benchmarks/checkpointing.py [--arch vit_b16 ...] [--batch 16] [--device cpu]

Memory is the peak of one step beyond the model, its gradients and the batch: as the profiler counts
tensors on the CPU, as the allocator counts it on a GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

import swag_models

STEPS = 3


def train_step(model: torch.nn.Module, images: torch.Tensor) -> None:
    model(images).square().mean().backward()


def measure_peak(work: Callable[[], None], device: torch.device) -> float:
    """Peak memory of the work beyond what is allocated before, in MiB."""
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    alive = peak = 0
    for event in record.profiler.kineto_results.events():  # by time
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak / 2**20


def measure_seconds(model: torch.nn.Module, images: torch.Tensor) -> float:
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        train_step(model, images)
        if images.device.type != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=["vit_b16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print("| architecture | batch | MiB without | with | ratio | seconds without | with | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for arch in options.arch:
        model = swag_models.load_model(arch, pretrained=False, device=options.device).train()
        images = torch.randn(options.batch, 3, 224, 224, device=options.device)
        train_step(model, images)  # gradients are allocated
        memory, seconds = {}, {}
        for enable in (False, True):
            model.set_grad_checkpointing(enable)
            memory[enable] = measure_peak(lambda: train_step(model, images), images.device)  # noqa: B023  (called at once)
            seconds[enable] = measure_seconds(model, images)
        cells = [
            f"{memory[False]:.0f}",
            f"{memory[True]:.0f}",
            f"{memory[True] / memory[False]:.2f}",
        ]
        cells += [
            f"{seconds[False]:.2f}",
            f"{seconds[True]:.2f}",
            f"{seconds[True] / seconds[False]:.2f}",
        ]
        print(f"| {arch} | {options.batch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
