"""Images per second of reading training shards, against plain webdataset on the same shards.

    python benchmarks/reader.py [--images 1000] [--rounds 5] [--workers 0 2] [--batch 64]

JPEGs of 500 x 500 pixels are packed in a temporary folder. In each round both readers in turn read
all of them once, with a shuffle buffer of the same size: decoding only; and decoding,
RandomResizedCrop to 224 px, a flip and a batch of bytes.
"""

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset as wds
from embed import make_images, seconds
from torchvision.transforms import v2

from swag_models.formatting import markdown_table
from swag_models.recipe.data.loader import Decode, Loader
from swag_models.recipe.data.pack import pack

BUFFER_SIZE = 1000  # samples
SHARDS = 16
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "decode": lambda image: torch.tensor(image.size),
    "decode, crop to 224, flip": v2.Compose(
        [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    ),
}


def make_shards(folder: Path, count: int) -> Path:
    """Pack images, each to be seen once in an epoch."""
    names = [path.stem for path in make_images(folder, count)]
    table = pa.table({"id": names, "classes": [[0]] * count, "repeat": [1.0] * count})
    pq.write_table(table, folder / "labels.parquet")
    pack(
        folder / "labels.parquet",
        [folder],
        folder / "shards",
        shard_size=-(-count // SHARDS),
        progress=False,
    )
    return folder / "shards"


def read_with_loader(
    shards: Path, transform: Callable[[Any], Any], workers: int, batch: int
) -> Iterable[Any]:
    return Loader(shards, Decode(transform), batch_size=batch, workers=workers, buffer=BUFFER_SIZE)


def read_with_webdataset(
    shards: Path, transform: Callable[[Any], Any], workers: int, batch: int
) -> Iterable[Any]:
    urls = sorted(map(str, shards.glob("*.tar")))
    data = wds.WebDataset(urls, shardshuffle=len(urls), workersplitter=wds.split_by_worker)
    data = (
        data.shuffle(BUFFER_SIZE)
        .decode("pilrgb")
        .to_tuple("jpg", "json")
        .map_tuple(transform, lambda label: label["classes"])
    )
    return wds.WebLoader(data.batched(batch), batch_size=None, num_workers=workers)


PEER = "plain webdataset"
READERS = {PEER: read_with_webdataset, "swag_models": read_with_loader}


def count_images(reader: Iterable[Any]) -> int:
    return sum(len(images) for images, _ in reader)


def measure(
    shards: Path, transform: Callable[[Any], Any], workers: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each round, by reader."""
    readers = {
        name: functools.partial(make, shards, transform, workers, options.batch)
        for name, make in READERS.items()
    }
    # Also warms up both.
    assert {count_images(make()) for make in readers.values()} == {options.images}
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(options.rounds):  # in turn, so that both meet the same load of the machine
        for name, make in readers.items():
            times[name].append(seconds(lambda make=make: count_images(make())))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        shards = make_shards(Path(name), options.images)
        assert json.loads((shards / "manifest.json").read_text())["count"] == options.images
        for work, transform in TRANSFORMS.items():
            for workers in options.workers:
                times = measure(shards, transform, workers, options)
                baseline = statistics.median(times[PEER])
                for reader, round_times in times.items():
                    median = statistics.median(round_times)
                    rate, fastest, slowest = (
                        options.images / time
                        for time in (median, min(round_times), max(round_times))
                    )
                    rates = f"{rate:.0f} ({slowest:.0f} to {fastest:.0f})"
                    rows.append((work, workers, reader, rates, f"{baseline / median:.2f}"))
    header = ("work", "workers", "reader", "images/s, median (min to max)", f"/ {PEER}")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
