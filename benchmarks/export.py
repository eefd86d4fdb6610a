"""Deviation and speed of exported ONNX in onnxruntime, compared with the eager model.

    python benchmarks/export.py [--arch vit_b16 ...] [--rounds 5] [--int8]

Backbones of full size with random weights, 224 px; both alternate on the same batch, on all cores.
Deviations are those of the export report: on noise, constants, black and white, in units of the
standard deviation of the eager output. `--int8` adds int8, calibrated on noise.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image

import swag_models
from swag_models import export

BATCHES = {
    "vit_b16": 8,
    "vit_l16": 4,
    "vit_h14": 2,
    "regnety_16gf": 8,
    "regnety_32gf": 4,
    "regnety_128gf": 2,
}


def write_noise(folder: Path, count: int = 32) -> Path:
    """Write a folder of noise images."""
    folder.mkdir()
    for index, pixels in enumerate(
        np.random.default_rng(0).integers(256, size=(count, 64, 64, 3), dtype=np.uint8)
    ):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@torch.inference_mode()
def measure(arch: str, rounds: int, dtypes: list[str], folder: Path) -> None:
    count, model, spec = (
        BATCHES[arch],
        swag_models.load_model(arch, pretrained=False),
        swag_models.get_spec(arch),
    )
    reports, runs = {}, {"eager": model}
    for dtype in dtypes:
        images_folder = folder / "images" if dtype == "int8" else None
        report = export.export_model(
            model, folder / f"{dtype}.onnx", spec=spec, dtype=dtype, images=images_folder
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # it ignores OMP_NUM_THREADS
        session = onnxruntime.InferenceSession(report.path, options)
        reports[dtype] = report
        runs[dtype] = lambda images, session=session: session.run(None, {"images": images.numpy()})
    images = torch.randn(count, 3, 224, 224)
    times: dict[str, list[float]] = {side: [] for side in runs}
    for turn in range(rounds + 1):  # the first is not counted
        for side, run in runs.items():
            start = time.perf_counter()
            run(images)
            if turn:
                times[side].append(time.perf_counter() - start)
    for dtype, report in reports.items():
        eager, exported = (count / statistics.median(times[side]) for side in ("eager", dtype))
        ratios = sorted(ours / theirs for ours, theirs in zip(times["eager"], times[dtype]))
        cells = [
            arch,
            dtype,
            f"{report.size / 2**20:.0f}",
            f"{report.max_deviation:.1e}",
            f"{report.mean_deviation:.1e}",
            count,
        ]
        cells += [
            f"{eager:.2f}",
            f"{exported:.2f}",
            f"{exported / eager:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        ]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", nargs="+", default=["vit_b16", "regnety_16gf"], choices=list(BATCHES)
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--int8", action="store_true")
    options = parser.parse_args()
    print(
        "| architecture | dtype | MiB | largest deviation | mean | batch | eager, images/s | onnxruntime | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for arch in options.arch:
        with tempfile.TemporaryDirectory() as folder:
            write_noise(Path(folder) / "images")
            measure(
                arch, options.rounds, ["float32", *(["int8"] if options.int8 else [])], Path(folder)
            )


if __name__ == "__main__":
    main()
