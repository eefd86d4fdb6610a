"""Time from a model's name to the vectors of one batch, in new processes: uncompiled, compiled, and
with the compiled code of an earlier process.

    python benchmarks/compiled_cache.py [--model NAME ...] [--batch N] [--rounds N]

Weights are random. Times are those of the process from the call on, without importing torch; CPU
time is the sum over threads, and one thread is used. `next batch` is the median of five.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROCESS = """
import json, os, sys, time
import torch
from swag_models.inference import Embedder
torch.set_num_threads(1)
name, weights, batch, compile = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] != "uncompiled"
images = list(torch.randint(0, 256, (batch, 3, 256, 256), dtype=torch.uint8))
wall, cpu = time.perf_counter(), time.process_time()
children = sum(os.times()[2:4])
embedder = Embedder(name, weights=weights, fast=True, compile=compile, batch_size=batch)
embedder(images)
first = time.perf_counter() - wall
compilers = sum(os.times()[2:4]) - children
used = time.process_time() - cpu + compilers
times = []
for _ in range(5):
    cpu = time.process_time()
    embedder(images)
    times.append(time.process_time() - cpu)
print(json.dumps([first, used, sorted(times)[2]]))
"""
SAVE = """
import sys
import swag_models
from safetensors.torch import save_file
model = swag_models.load_model(sys.argv[1], pretrained=False)
save_file(model.state_dict(), sys.argv[2])
"""


def run(code: str, *arguments: object, cache: Path) -> str:
    """The standard output of a new process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"SWAG_MODELS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def measure(name: str, batch: int, rounds: int) -> None:
    """Print a row for each way."""
    with tempfile.TemporaryDirectory() as folder:
        cache, weights = Path(folder, "cache"), Path(folder, "weights.safetensors")
        run(SAVE, name, weights, cache=cache)
        times: dict[str, list[list[float]]] = {"compiled": [], "uncompiled": [], "stored code": []}
        # "compiled" once, because it takes long; it stores the code
        for way in ["compiled", *("uncompiled", "stored code") * rounds]:
            output = run(PROCESS, name, weights, batch, way, cache=cache)
            times[way].append(json.loads(output))
        (path,) = cache.glob("*/*.aoti.pt2")
        for way, results in times.items():
            wall, cpu, later = (statistics.median(column) for column in zip(*results))
            fastest = min(result[0] for result in results)
            print(
                f"| {name} | {way} | {wall:.1f} ({fastest:.1f}) | {cpu:.2f} | {later:.3f} | "
                f"{path.stat().st_size / 1e6:.0f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", nargs="+", default=["vit_nano_hashtags", "regnety_nano_hashtags", "vit_b16"]
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| model | way | first batch, s (fastest) | CPU s | next batch, CPU s | file, MB |")
    print("|---|---|---|---|---|---|")
    for name in options.model:
        measure(name, options.batch, options.rounds)


if __name__ == "__main__":
    main()
