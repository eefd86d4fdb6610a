"""How time and memory grow with the size of the work: fitted exponents.

    python benchmarks/growth.py [--only NAME ...] [--quick] [--again] [--report]

Each point is measured in a process of its own, by CPU time on one thread: the least of several
calls, and the peak of memory of the first above that of the imports and the input. Points are stored in
growth.json when they are finished, and an interrupted run is resumed by the same command. At the
end, the table in README.md and growth.png are written; --report writes only those. --quick measures
the three smallest sizes and prints the table instead.

An exponent of 1 means that twice the work takes twice as long. It is fitted by least squares to the
logarithms, with a 95% interval by Student's t. Constant costs lower it at small sizes, so `last` is
the exponent between the two largest sizes alone.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]  # scripts of this folder import each other
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read by numpy

from growth_report import Label, write_report, write_table
from results import describe_machine, run_git

from swag_models.atomic import write_json

RESULTS = FOLDER / "growth.json"
MIN_SECONDS = 0.2  # of CPU time of one measurement; shorter calls are repeated

Work = Callable[[], object]


@dataclass(frozen=True)
class Series:
    """A kind of work in several sizes.

    Attributes:
        what: the work.
        unit: what the sizes count.
        sizes: ascending.
        prepare: size and an empty folder -> the work.
        rounds: number of measurements of each size.
        cause: why an exponent is above 1; empty if none is.
    """

    what: str
    unit: str
    sizes: tuple[int, ...]
    prepare: Callable[[int, Path], Work]
    rounds: int = 3
    cause: str = ""


def build_vit(depth: int, width: int, image_size: int, merge_tokens: int = 0) -> Any:
    """A ViT with random weights and patches of 16 pixels, as `load_model` returns it."""
    import swag_models
    from swag_models.architectures import ViTConfig
    from swag_models.spec import Preprocess

    config = ViTConfig(
        patch_size=16, depth=depth, width=width, num_heads=width // 64, mlp_width=4 * width
    )
    spec = replace(
        swag_models.get_spec("vit_b16_in1k"),
        name="vit_growth",
        config=config,
        preprocess=Preprocess(image_size),
        num_classes=10,
        classes=None,
        sources=(),
    )
    return swag_models.load_model(spec, pretrained=False, merge_tokens=merge_tokens).eval()


def prepare_load(depth: int, folder: Path) -> Work:
    """Load a model of `depth` blocks of 1.8 million parameters, and read all weights."""
    import torch

    import swag_models
    from swag_models import publish

    publish.save(build_vit(depth, 384, 224), folder / "model", license="apache-2.0")

    def load() -> None:
        model = swag_models.load_model(str(folder / "model"))
        with torch.inference_mode():  # mapped weights are read when they are used
            sum(float(parameter.sum()) for parameter in model.parameters())

    return load


def prepare_batch(batch: int, folder: Path) -> Work:
    """Run a small ViT on a batch at 224 pixels."""
    return prepare_images(batch, 224, 0)


def prepare_size(tokens: int, folder: Path) -> Work:
    """Run a small ViT on one image with this number of patches."""
    return prepare_images(1, 16 * math.isqrt(tokens), 0)


def prepare_merged(tokens: int, folder: Path) -> Work:
    """The same, with half of the tokens merged over all blocks."""
    return prepare_images(1, 16 * math.isqrt(tokens), tokens // 16)


def prepare_images(batch: int, image_size: int, merge_tokens: int) -> Work:
    import torch

    model = build_vit(8, 192, image_size, merge_tokens)
    images = torch.randn(batch, 3, image_size, image_size)

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def prepare_curation(rows: int, folder: Path) -> Work:
    """Curate posts with 5 hashtags each."""
    from curate import make_posts

    from swag_models.recipe.curation.curate import curate

    make_posts(folder / "posts.parquet", rows, os.environ.get("WORDNET_FOLDER"))

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            curate(
                [folder / "posts.parquet"],
                Path(output) / "curated",
                wordnet=os.environ.get("WORDNET_FOLDER"),
                memory="4GB",
                threads=1,
                progress=False,
            )

    return run


def prepare_neighbours(features: int, folder: Path) -> Work:
    """Find the 20 nearest of a gallery for 256 queries, width 256."""
    import numpy as np

    from swag_models.recipe.evaluation.probes.knn import find_neighbours

    generator = np.random.default_rng(0)
    bank, queries = (
        generator.standard_normal((count, 256), np.float32) for count in (features, 256)
    )
    for vectors in (bank, queries):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return lambda: find_neighbours(bank, queries, 20)


def prepare_index(shards: int, folder: Path) -> Work:
    """Open the manifest of packed shards and order them for an epoch."""
    from studies.scale.data_plan import DataPlan, write_manifest
    from swag_models.recipe.data.shard_list import order_shards
    from swag_models.recipe.data.sources import open_source

    path = write_manifest(DataPlan(images=shards * 10_000, shards=shards), folder)

    def run() -> None:
        source = open_source(path.as_uri())
        order_shards.cache_clear()
        order_shards(len(source.urls), 0, 0)

    return run


ATTENTION = "exact attention compares every token with every other"
SERIES = {
    "load": Series(
        "load a saved ViT", "blocks of 1.8M parameters", (4, 8, 16, 32, 64), prepare_load
    ),
    "batch": Series("ViT forward, 224 px", "images", (1, 2, 4, 8, 16, 32, 64), prepare_batch),
    "resolution": Series(
        "ViT forward, one image",
        "patches",
        (196, 400, 784, 1600, 3136),
        prepare_size,
        cause=ATTENTION,
    ),
    "merged": Series(
        "the same, half of the tokens merged",
        "patches",
        (196, 400, 784, 1600, 3136),
        prepare_merged,
        cause=f"{ATTENTION}, and so does the search for similar ones",
    ),
    "curation": Series(
        "curate posts",
        "posts",
        (100_000, 200_000, 400_000, 800_000),
        prepare_curation,
        rounds=1,
    ),
    "neighbours": Series(
        "20 nearest neighbours, 256 queries",
        "gallery features",
        (10_000, 20_000, 40_000, 80_000, 160_000, 320_000),
        prepare_neighbours,
    ),
    "index": Series(
        "open and order shards",
        "shards",
        (10_000, 20_000, 40_000, 80_000, 160_000, 320_000),
        prepare_index,
        rounds=2,
    ),
}
LABELS = {name: Label(series.what, series.unit, series.cause) for name, series in SERIES.items()}


def measure_point(name: str, size: int) -> dict[str, float]:
    """Measure one size in this process: CPU seconds of a call, and MiB above the input."""
    from studies.scale.data_plan import read_memory

    series = SERIES[name]
    with tempfile.TemporaryDirectory() as folder:
        work = series.prepare(size, Path(folder))
        # Writing 5 resets the peak (man 5 proc), so that it is not that of the preparation.
        Path("/proc/self/clear_refs").write_text("5")
        before, start = read_memory("VmRSS"), time.process_time()
        work()
        first, peak = time.process_time() - start, read_memory("VmHWM")
        seconds = [first] if series.rounds == 1 else []
        for _ in range(series.rounds if series.rounds > 1 else 0):
            calls, start = 0, time.process_time()
            while not calls or time.process_time() - start < MIN_SECONDS:
                work()
                calls += 1
            seconds.append((time.process_time() - start) / calls)
    return {"size": size, "seconds": min(seconds), "mib": max(0.0, peak - before)}


def run_point(name: str, size: int) -> dict[str, float]:
    """Measure one size in a new process, which shares the imports of this one."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(measure_point(name, size)))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} of size {size} failed with exit code {process.exitcode}")
    point: dict[str, float] = queue.get()
    return point


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--quick", action="store_true", help="the three smallest sizes; print only")
    parser.add_argument("--again", action="store_true", help="measure finished points again")
    parser.add_argument("--report", action="store_true", help="write only the table and the plot")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.quick else {}
    if not options.report:
        import torch  # before the processes start

        import swag_models.recipe.training.trainer  # noqa: F401

        torch.set_num_threads(1)
        machine = describe_machine()
        entry = results.setdefault(machine.name, {"machine": asdict(machine), "series": {}})
        entry |= {
            "date": time.strftime("%Y-%m-%d"),
            "commit": run_git("rev-parse", "--short", "HEAD"),
        }
        for name in options.only:
            points = entry["series"].setdefault(name, {})
            for size in SERIES[name].sizes[: 3 if options.quick else None]:
                if options.again or str(size) not in points:
                    points[str(size)] = run_point(name, size)
                    print(name, points[str(size)], file=sys.stderr, flush=True)
                    if not options.quick:
                        write_json(RESULTS, results, indent=1)
    if options.quick:
        print(write_table(results, LABELS))
    else:
        write_report(results, LABELS)


if __name__ == "__main__":
    main()
