"""The data plan of a run at full scale, simulated without images.

The manifest, the order of the shards, the streams and the lanes are those of the library. Only the
content of shards is generated. What is checked:

- over all streams of all ranks, every shard occurs exactly once in an epoch;
- in whole streams, every copy of every image occurs exactly once: the sum of hashes of image,
  epoch and copy is compared with the sum over the repeat factors;
- a run that is resumed with other numbers of ranks has the same batches.

The first two together say that every image occurs as often as its repeat factor says.
"""

import hashlib
import json
import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swag_models.recipe.config import Engine
from swag_models.recipe.data import stream as stream_module
from swag_models.recipe.data.shard_list import ShardList, order_shards
from swag_models.recipe.data.shards import Sample
from swag_models.recipe.data.sources import ShardSource, open_source
from swag_models.recipe.data.stream import Position, ShardStream, count_copies, hash_seed
from swag_models.recipe.data.train_loader import merge_states, open_train_loader

MEAN_REPEAT = 5 / 3.6  # samples of an epoch per image: Singh et al. 2022
MAX_REPEAT = 100.0
SUM_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class DataPlan:
    """Sizes of a simulation.

    Attributes:
        images: number of images.
        shards: number of shards.
        ranks: numbers of ranks that the run uses in turn; each is a divisor of the largest, which
            is the number of lanes.
        workers: worker processes per rank.
        batch_size: samples per step of all ranks.
        window: shards that are shuffled together.
        buffer: samples in the shuffle buffer of each stream.
        streams: number of streams that are read completely.
        steps: steps with each number of ranks.
        seed: seed of the order.
    """

    images: int = 3_600_000_000
    shards: int = 360_000
    ranks: tuple[int, ...] = (128, 1024, 256)
    workers: int = 8
    batch_size: int = 8192
    window: int = 4
    buffer: int = 2000
    streams: int = 1
    steps: int = 30
    seed: int = 0


def simulate(plan: DataPlan, folder: Path) -> dict[str, Any]:
    """Simulate a data plan.

    Args:
        plan: its sizes.
        folder: where the manifest is written.

    Returns:
        The sizes; CPU seconds and MiB of each step; and the quality of the shuffling.
    """
    path = write_manifest(plan, folder)
    # A new process, whose peak of memory is that of reading alone.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        index, urls = pool.submit(measure_index, path.as_uri(), plan.seed).result()
    with generated_shards(plan):
        return {
            "plan": asdict(plan),
            "index": index,
            "epoch": check_epochs(plan, urls),
            "streams": check_streams(plan, urls),
            "resume": check_resume(plan, urls),
        }


def write_manifest(plan: DataPlan, folder: Path) -> Path:
    """Write the manifest of packed shards without the shards; return its path."""
    path, count = folder / "manifest.json", plan.images // plan.shards
    facts = {
        "format": 1,
        "versions": {},
        "parameters": {"seed": 0},
        "labels_sha256": "0" * 64,
        "num_classes": 27_000,
        "count": count * plan.shards,
        "bytes": count * plan.shards * 50_000,
        "samples": count * plan.shards * MEAN_REPEAT,
        "unlabelled": 0,
        "rejects": {},
    }
    # The format of `pack`, without the time that json takes for millions of entries.
    entry = (
        '\n  {\n   "name": "shard-%06d.tar",\n   "count": %d,\n   "bytes": %d,\n'
        '   "sha256": "%s"\n  }'
    )
    with path.open("w") as file:
        file.write(json.dumps(facts, indent=1).removesuffix("\n}") + ',\n "shards": [')
        for number in range(plan.shards):
            digest = hashlib.sha256(b"%d" % number).hexdigest()
            file.write("," * (number > 0) + entry % (number, count, count * 50_000, digest))
        file.write("\n ]\n}\n")
    return path


def measure_index(url: str, seed: int) -> tuple[dict[str, float], ShardList]:
    """Measure reading a manifest and ordering its shards, in this process.

    Args:
        url: URL of the manifest.
        seed: seed of the order.

    Returns:
        CPU seconds and MiB in addition to those of the imports: the peak, and what is kept; and
        the shards.
    """
    imported, start = read_memory(), time.process_time()
    source = open_source(url)
    opened = time.process_time()
    assert isinstance(source, ShardSource)
    peak = read_memory("VmHWM")
    names = source.urls.names_sha256
    order = order_shards(len(source.urls), seed, 0)
    ordered = time.process_time()
    facts = {
        "shards": len(source.urls),
        "manifest_mib": Path(url.removeprefix("file://")).stat().st_size / 2**20,
        "open_seconds": opened - start,
        "open_peak_mib": peak - imported,
        "order_seconds": ordered - opened,
        "order_peak_mib": max(peak, read_memory("VmHWM")) - imported,
        "kept_mib": (len(pickle.dumps(source.urls)) + order.nbytes + len(names)) / 2**20,
    }
    return facts, source.urls


def read_memory(name: str = "VmRSS") -> float:
    """Return the resident memory of this process in MiB: now, or with VmHWM its peak."""
    # Not getrusage, whose peak includes that of the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


@contextmanager
def generated_shards(plan: DataPlan) -> Iterator[None]:
    """Generate the content of shards within the `with` block, instead of reading it."""
    read = partial(generate_shard, count=plan.images // plan.shards)
    with mock.patch.object(stream_module, "read_shard", read):
        yield


def generate_shard(url: str, count: int) -> Iterator[Sample]:
    """Yield the samples of a shard, with one image of a single pixel.

    The repeat factors follow a power law, as 1 / sqrt(frequency of a hashtag) does: a share of
    c / r^2 of the images has one above r. With c = MEAN_REPEAT - 1 their mean is MEAN_REPEAT.

    Args:
        url: its URL, which ends with `shard-NUMBER.tar`.
        count: number of samples.
    """
    number = int(url.rpartition("-")[2].removesuffix(".tar"))
    random = Random(number).random
    for index in range(number * count, (number + 1) * count):
        repeat = math.sqrt((MEAN_REPEAT - 1) / max(random(), 1e-12))
        repeat = round(min(max(repeat, 1.0), MAX_REPEAT) * 65536) / 65536
        label = b'{"id": "%d", "classes": [%d], "repeat": %r}' % (index, index % 27_000, repeat)
        yield {"__key__": str(index), "__url__": url, "json": label, "png": PIXEL}


def _encode_pixel() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "png")
    return buffer.getvalue()


PIXEL = _encode_pixel()


def check_epochs(plan: DataPlan, urls: ShardList) -> dict[str, float]:
    """Check that all streams together have every shard once, in two epochs and for all ranks.

    Returns:
        CPU seconds of listing the shards of all streams, and the numbers of shards of a stream.
    """
    start, lengths = time.process_time(), list[int]()
    for epoch in range(2):
        for world_size in plan.ranks:
            counts = np.zeros(len(urls), np.uint8)
            for rank in range(world_size):
                stream = make_stream(plan, urls, rank, world_size)
                for worker in range(plan.workers):
                    shards = stream.list_shards(worker, epoch)
                    np.add.at(counts, shards, 1)
                    if world_size == max(plan.ranks):
                        lengths.append(len(shards))
            if not (counts == 1).all():
                raise AssertionError(f"a shard is not read exactly once by {world_size} ranks")
    return {
        "seconds": time.process_time() - start,
        "min_shards": min(lengths),
        "max_shards": max(lengths),
        # At the end of an epoch, a stream with fewer shards has begun the next one.
        "next_epoch_share": 1 - min(lengths) * len(lengths) / sum(lengths),
    }


def make_stream(plan: DataPlan, urls: ShardList, rank: int, world_size: int) -> ShardStream:
    """Make the streams of a rank."""
    return ShardStream(
        urls=urls,
        decode=lambda sample: sample,
        collate=list,
        batch_size=plan.batch_size // world_size,
        seed=plan.seed,
        rank=rank,
        world_size=world_size,
        streams=plan.workers,
        window=plan.window,
        buffer=plan.buffer,
        repeat=None,
        classes=None,
        skip_broken=False,
    )


def check_streams(plan: DataPlan, urls: ShardList) -> dict[str, float]:
    """Check whole streams of an epoch sample by sample, and measure how well they are shuffled.

    Returns:
        The number of samples, CPU seconds for each million of them, and the measures of
        `measure_order`.
    """
    world_size, seconds, sizes = max(plan.ranks), 0.0, list[int]()
    measured = list[dict[str, float]]()
    for number in range(plan.streams):
        # Streams from the whole range, with every number of a worker.
        rank, worker = number * world_size // plan.streams, number % plan.workers
        stream = make_stream(plan, urls, rank, world_size)
        order, total, start = list[int](), 0, time.process_time()
        for sample, _ in stream.draw_samples(worker, Position(0), 1, Counter()):
            order.append(int(sample["id"]))
            total += sample["seed"]
        seconds += time.process_time() - start
        sizes.append(len(order))
        expected = sum_copies(plan, [urls[shard] for shard in stream.list_shards(worker, 0)])
        if (len(order), total & SUM_BITS) != expected:
            raise AssertionError(f"stream {worker} of rank {rank} has other copies of its images")
        measured.append(measure_order(np.array(order), plan))
    means = {name: float(np.mean([each[name] for each in measured])) for name in measured[0]}
    return {"samples": sum(sizes), "seconds_per_million": seconds / sum(sizes) * 1e6, **means}


def sum_copies(plan: DataPlan, urls: Sequence[str]) -> tuple[int, int]:
    """Return the number of copies of all images of shards, and the sum of hashes of the copies."""
    number, total = 0, 0
    for url in urls:
        for sample in generate_shard(url, plan.images // plan.shards):
            label = json.loads(sample["json"])
            copies = count_copies(label["id"], label["repeat"], 0, plan.seed)
            number += copies
            total += sum(hash_seed(plan.seed, 0, label["id"], copy) for copy in range(copies))
    return number, total & SUM_BITS


def measure_order(images: np.ndarray, plan: DataPlan) -> dict[str, float]:
    """Measure the shuffling of one stream.

    Args:
        images: number of each sample's image, in order, (samples,).
        plan: the sizes.

    Returns:
        `shard_span`: samples of the stream between the first and the last of a shard, median;
        `shards_per_batch`: number of shards in the batch of a rank, mean; `copy_gap`: samples of
        the stream between two copies of an image, median, and `copy_gap_99` that 99% are below;
        `copies_per_batch`: share of samples with another copy in the batch of a rank.
    """
    shards = images // (plan.images // plan.shards)
    # Stable, so that positions of one value are ascending.
    order = np.argsort(images, kind="stable")
    gaps = np.diff(order)[np.diff(images[order]) == 0]
    by_shard = np.argsort(shards, kind="stable")
    starts = np.flatnonzero(np.diff(shards[by_shard], prepend=-1))
    ends = np.append(starts[1:], len(by_shard)) - 1
    size = max(1, plan.batch_size // max(plan.ranks))
    whole = len(images) // size * size
    batches, images = shards[:whole].reshape(-1, size), images[:whole].reshape(-1, size)
    return {
        "shard_span": float(np.median(by_shard[ends] - by_shard[starts] + 1)),
        "shards_per_batch": float((np.diff(np.sort(batches), axis=1) != 0).sum(1).mean() + 1),
        "copy_gap": float(np.median(gaps)),
        "copy_gap_99": float(np.quantile(gaps, 0.99)),
        "copies_per_batch": float((np.diff(np.sort(images), axis=1) == 0).mean()),
    }


class SeedImage:
    """A transform that returns the seed of the sample, which no other sample has: uint8 (8,)."""

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.tensor(list(torch.initial_seed().to_bytes(8, "big")), dtype=torch.uint8)


def check_resume(plan: DataPlan, urls: ShardList) -> dict[str, float]:
    """Check that a run with other numbers of ranks in turn has the batches of one with a constant
    number.

    Only the lanes that the first rank of the smallest number of ranks has are read.

    Returns:
        The number of samples, and bytes of the state of all lanes as JSON.
    """
    lanes, fewest = max(plan.ranks), min(plan.ranks)
    engine = Engine(workers=0, lanes=lanes, buffer=plan.buffer)
    open_rank: Callable[..., Any] = partial(
        open_train_loader,
        urls,
        SeedImage(),
        batch_size=plan.batch_size,
        seed=plan.seed,
        engine=engine,
    )

    def take(loaders: list[Any], steps: int) -> bytes:
        digest = hashlib.sha256()
        for _ in range(steps):
            for loader in loaders:
                digest.update(next(iter(loader)).images.numpy().tobytes())
        return digest.digest()

    constant = [open_rank(rank=0, world_size=fewest)]
    expected = [take(constant, plan.steps) for _ in plan.ranks]
    received, state = list[bytes](), None
    for world_size in plan.ranks:
        loaders = [
            open_rank(rank=rank, world_size=world_size) for rank in range(world_size // fewest)
        ]
        for loader in loaders:
            if state:
                loader.load_state_dict(state)
        received.append(take(loaders, plan.steps))
        state = json.loads(json.dumps(merge_states([each.state_dict() for each in loaders])))
    if received != expected:
        raise AssertionError("a run with other numbers of ranks has other batches")
    assert state
    samples = len(plan.ranks) * plan.steps * plan.batch_size // fewest
    lane_bytes = len(json.dumps(state["lanes"])) / len(state["lanes"])
    return {"samples": samples, "state_bytes": lane_bytes * lanes}
