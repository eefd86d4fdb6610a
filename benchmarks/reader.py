"""The reader of training shards against plain webdataset on the same shards: images per second.

    python benchmarks/reader.py [--pictures 1000] [--rounds 5] [--workers 0 2] [--batch 64]

JPEGs of 500 x 500 pixels are packed in a temporary folder. In each round both take turns to read them all once, with a shuffle
buffer of as many samples: decoding alone, and decoding, RandomResizedCrop to 224 px, a flip and a batch of bytes.
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

from swag_models.recipe.data.loader import Decode, Loader
from swag_models.recipe.data.pack import pack

BUFFER = 1000  # samples
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "decode": lambda image: torch.tensor(image.size),
    "decode, crop to 224, flip": v2.Compose(
        [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    ),
}


def make_shards(folder: Path, count: int) -> Path:
    """16 shards of these pictures, each to be seen once in an epoch."""
    names = [path.stem for path in make_images(folder, count)]
    table = pa.table({"id": names, "classes": [[0]] * count, "repeat": [1.0] * count})
    pq.write_table(table, folder / "labels.parquet")
    pack(
        folder / "labels.parquet",
        [folder],
        folder / "shards",
        shard_size=-(-count // 16),
        progress=False,
    )
    return folder / "shards"


def read_ours(
    shards: Path, transform: Callable[[Any], Any], workers: int, batch: int
) -> Iterable[Any]:
    return Loader(shards, Decode(transform), batch_size=batch, workers=workers, buffer=BUFFER)


def read_plain(
    shards: Path, transform: Callable[[Any], Any], workers: int, batch: int
) -> Iterable[Any]:
    urls = sorted(map(str, shards.glob("*.tar")))
    data = wds.WebDataset(urls, shardshuffle=len(urls), workersplitter=wds.split_by_worker)
    data = (
        data.shuffle(BUFFER)
        .decode("pilrgb")
        .to_tuple("jpg", "json")
        .map_tuple(transform, lambda label: label["classes"])
    )
    return wds.WebLoader(data.batched(batch), batch_size=None, num_workers=workers)


READERS = {"plain webdataset": read_plain, "swag_models": read_ours}


def count(reader: Iterable[Any]) -> int:
    return sum(len(images) for images, _ in reader)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| work | workers | reader | images/s, median (min to max) | / plain webdataset |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        shards = make_shards(Path(name), options.pictures)
        assert json.loads((shards / "manifest.json").read_text())["count"] == options.pictures
        for work, transform in TRANSFORMS.items():
            for workers in options.workers:
                readers = {
                    reader: functools.partial(make, shards, transform, workers, options.batch)
                    for reader, make in READERS.items()
                }
                times: dict[str, list[float]] = {reader: [] for reader in readers}
                assert {count(make()) for make in readers.values()} == {options.pictures}
                for _ in range(options.rounds):
                    for reader, make in readers.items():
                        times[reader].append(seconds(lambda make=make: count(make())))
                base = statistics.median(times["plain webdataset"])
                for reader, spent in times.items():
                    rate, fastest, slowest = (
                        options.pictures / each
                        for each in (statistics.median(spent), min(spent), max(spent))
                    )
                    ratio = base / statistics.median(spent)
                    print(
                        f"| {work} | {workers} | {reader} | {rate:.0f} ({slowest:.0f} to {fastest:.0f}) | {ratio:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
