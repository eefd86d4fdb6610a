"""Images per second of `embed`, compared with its bounds: the model alone, and Pillow alone.

    python benchmarks/embed.py [--model vit_b16] [--images 2000] [--rounds 5] [--fast]

JPEGs of 500 x 500 pixels are generated in a temporary folder. These alternate: embedding them all
into a .npy file; the model alone, on the same number of batches of ready inputs; and Pillow alone,
decoding, converting and resizing each image to the model's input size, with one thread per CPU. On
a CPU the last two need the same cores: together they can reach the rate of one after the other.
The weights are random, which takes the same time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import swag_models
from swag_models.checkpoint import write_state_dict
from swag_models.inference.embed import write_embeddings
from swag_models.inference.predict import Embedder
from swag_models.runtime import count_cpus

SIDE = 500  # pixels


def make_images(folder: Path, count: int, width: int = SIDE, height: int = SIDE) -> list[Path]:
    """Photo-like JPEGs: smooth colours with some noise; of 500 x 500 pixels, about 90 KB each."""
    random = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for path in paths:
        smooth = Image.fromarray(random.integers(0, 256, (60, 60, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(smooth) + random.normal(0, 6, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=88)
    return paths


def decode(path: Path, size: int) -> None:
    with Image.open(path) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_b16")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / "weights.safetensors"
        write_state_dict(
            swag_models.load_model(options.model, pretrained=False).state_dict(), weights
        )
        (folder / "jpegs").mkdir()
        paths = make_images(folder / "jpegs", options.images)
        embedder = Embedder(options.model, weights=weights, fast=options.fast)
        size, batch = embedder.preprocess.preprocess.size[0], embedder.batch_size
        pixels = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
        pool = ThreadPoolExecutor(count_cpus())

        def embed() -> None:
            write_embeddings(embedder, paths, folder / "out.npy", progress=False)
            (folder / "out.npy").unlink()

        def run_model() -> None:
            for _ in range(options.images // batch):
                embedder._infer(pixels, 0)

        ways: dict[str, Callable[[], object]] = {
            "embed": embed,
            "model alone": run_model,
            "Pillow alone": lambda: list(pool.map(lambda path: decode(path, size), paths)),
        }
        for _ in range(2):  # the number of images to come: compiles now, if that pays off
            embedder._infer(pixels, options.images)
        embedder._infer(pixels, 0)
        counts = {
            "embed": len(paths),
            "model alone": options.images // batch * batch,
            "Pillow alone": len(paths),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, run in ways.items():
                rates[way].append(counts[way] / seconds(run))
    median = {way: statistics.median(rate) for way, rate in rates.items()}
    bound = min(("model alone", "Pillow alone"), key=lambda way: median[way])
    cells = " | ".join(
        f"{median[way]:.1f} ({min(rate):.1f} to {max(rate):.1f})" for way, rate in rates.items()
    )
    setting = f"{options.model}{', fast' if options.fast else ''}, {options.images} JPEGs"
    both = 1 / (1 / median["model alone"] + 1 / median["Pillow alone"])
    print(
        "| model | embed, images/s | model alone | Pillow alone | embed / slower of the two | embed / one after the other |"
    )
    print("|---|---|---|---|---|---|")
    print(
        f"| {setting} | {cells} | {median['embed'] / median[bound]:.2f} ({bound}) | {median['embed'] / both:.2f} |"
    )


if __name__ == "__main__":
    main()
