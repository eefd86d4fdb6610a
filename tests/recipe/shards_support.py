"""Labelled images and shards for the tests of packing and reading."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_support import make_pixels, write_tar
from PIL import Image

from swag_models.recipe.data.pack import pack

COUNT = 60

Label = tuple[Sequence[int], float]  # classes and repeat factor


def encode_jpeg(seed: int, side: int = 8, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(make_pixels(seed, side, side)).save(file, "JPEG", **options)
    return file.getvalue()


def write_labels(path: Path, labels: Mapping[str, Label]) -> Path:
    """Write labels.parquet as the curation does."""
    rows = [
        {"id": name, "classes": list(classes), "repeat": repeat}
        for name, (classes, repeat) in sorted(labels.items())
    ]
    columns = [("id", pa.string()), ("classes", pa.list_(pa.int32())), ("repeat", pa.float64())]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), path)
    return path


def make_labels(count: int) -> dict[str, Label]:
    """Make labels of images "0000" and so on; higher classes are rarer and repeated more often."""
    draw = random.Random(0)
    labels: dict[str, Label] = {}
    for number in range(count):
        classes = sorted({min(int(draw.expovariate(0.5)), 9) for _ in range(draw.randint(1, 3))})
        labels[f"{number:04d}"] = classes, 0.5 + max(classes) / 2 + draw.randrange(4) / 4
    return labels


def make_images(folder: Path, names: Sequence[str]) -> Path:
    """Write small JPEGs with different pixels into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").write_bytes(encode_jpeg(int(name)))
    return folder


def make_shards(folder: Path, count: int, shard_size: int) -> Path:
    """Pack `count` images into shards."""
    labels = make_labels(count)
    pack(
        write_labels(folder / "labels.parquet", labels),
        [make_images(folder / "images", list(labels))],
        folder / "shards",
        shard_size=shard_size,
        processes=1,
        progress=False,
    )
    return folder / "shards"


def write_bare_shards(folder: Path, labels: Mapping[str, Label], shards: int) -> list[str]:
    """Write shards of samples without images, for tests of only the order."""
    folder.mkdir(parents=True, exist_ok=True)
    names, paths = sorted(labels, key=hash_name), []
    for number in range(shards):
        members = {}
        for name in names[number::shards]:
            record = {"id": name, "classes": list(labels[name][0]), "repeat": labels[name][1]}
            members[f"{name}.json"] = json.dumps(record).encode()
        paths.append(str(write_tar(folder / f"bare-{number:03d}.tar", members)))
    return paths


def hash_name(name: str) -> float:
    return random.Random(name).random()


def read_bytes(folder: Path) -> dict[str, bytes]:
    """Read the content of every file in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pack_images(folder: Path, images: Any, labels: Any = None, **options: Any) -> dict[str, Any]:
    """Pack images with these labels, or those of `make_labels`, into `folder/shards`."""
    path = write_labels(folder / "labels.parquet", make_labels(COUNT) if labels is None else labels)
    return pack(path, images, folder / "shards", **{"processes": 1, "progress": False, **options})
