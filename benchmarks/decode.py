"""CPU time to make a model's input from a JPEG: scaled decoding, full decoding and torchvision's.

    python benchmarks/decode.py [--size 224] [--rounds 9]

Photo-like JPEGs are generated in memory. In each round all ways in turn read each of them once, with
one thread: `Transform` with full decoding and Pillow's resizing, which is the reference; the same
with scaled decoding, as in `embed`; both with the resizing of `fast=True`, where the CPU has it; and
torchvision's `decode_jpeg` with its resizing of tensors. CPU time counts. The deviation is from the
reference, as a mean of absolute differences of normalised values.
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from embed import make_images
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from swag_models.formatting import markdown_table
from swag_models.image_decoding import read_image
from swag_models.preprocess import Transform
from swag_models.spec import Preprocess

SIZES = ((4000, 3000), (1920, 1280), (500, 375))
REFERENCE = "full, Pillow (reference)"


def make_reader(transform: Transform) -> Callable[[bytes], Tensor]:
    return lambda content: transform(read_image(io.BytesIO(content), None, transform.decode))


def list_ways(preprocess: Preprocess) -> dict[str, Callable[[bytes], Tensor]]:
    """Return the ways to read an image by their names."""
    reference, fast = Transform(preprocess), Transform(preprocess, vectorised=True)

    def read_with_torchvision(content: bytes) -> Tensor:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return reference(decode_jpeg(data, ImageReadMode.RGB))

    return {
        REFERENCE: make_reader(reference),
        "scaled, Pillow (embed)": make_reader(Transform(preprocess, scaled=True)),
        "full, torch": make_reader(fast),
        "scaled, torch (fast)": make_reader(Transform(preprocess, vectorised=True, scaled=True)),
        "torchvision decode_jpeg": read_with_torchvision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224, help="side of the input in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ways = list_ways(Preprocess(image_size=options.size))
    rows = []
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            (path,) = make_images(Path(folder), 1, width, height)
            content = path.read_bytes()
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, read in ways.items():
                start = time.process_time()
                read(content)
                times[way].append(1000 * (time.process_time() - start))
        reference = ways[REFERENCE](content)
        for way, read in ways.items():
            ratios = [full / own for full, own in zip(times[REFERENCE], times[way])]
            rows.append(
                (
                    f"{width} x {height}, {len(content) // 1000} KB",
                    way,
                    f"{statistics.median(times[way]):.1f} ({min(times[way]):.1f})",
                    f"{statistics.median(ratios):.2f}",
                    f"{min(times[REFERENCE]) / min(times[way]):.2f}",
                    f"{(read(content) - reference).abs().mean():.4f}",
                )
            )
    titles = ("image", "way", "CPU ms, median (min)", "reference / this", "of minima", "deviation")
    print(markdown_table(titles, rows))


if __name__ == "__main__":
    main()
