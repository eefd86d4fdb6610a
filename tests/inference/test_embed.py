"""Embeddings in a file: equal to those of the model, in one file or in parts that are merged."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from image_support import (
    NANO,
    encode_image,
    list_names,
    make_pixels,
    make_spec,
    write_file,
    write_images,
    write_tar,
)

from swag_models.errors import ConfigError
from swag_models.inference import embeddings_file
from swag_models.inference.embed import (
    EmbedSummary,
    merge_embeddings,
    write_embeddings,
)
from swag_models.inference.embeddings_file import read_embeddings
from swag_models.inference.predict import Embedder

pytestmark = pytest.mark.usefixtures("one_thread")

SUFFIXES = pytest.mark.parametrize("suffix", [".parquet", ".npy"])


@pytest.fixture(scope="module")
def embedder(one_thread: None) -> Embedder:
    return Embedder(NANO, batch_size=4, workers=2)


@SUFFIXES
def test_the_file_contains_what_the_embedder_returns(
    embedder: Embedder, tmp_path: Path, suffix: str
) -> None:
    paths = write_images(tmp_path / "images", 10)
    paths.insert(3, tmp_path / "missing.png")
    expected = embedder(paths)
    summary = write_embeddings(embedder, paths, tmp_path / f"x{suffix}", progress=False)
    assert summary == EmbedSummary(tmp_path / f"x{suffix}", 10, expected.skipped)
    embeddings = read_embeddings(tmp_path / f"x{suffix}")
    assert torch.equal(embeddings.vectors, expected.vectors)
    assert (embeddings.names, embeddings.skipped) == (expected.names, expected.skipped)
    names_file = ["x.json"] if suffix == ".npy" else []
    assert list_names(tmp_path) == sorted(["images", f"x{suffix}", *names_file]), (
        "no other file remains"
    )


def test_other_libraries_read_the_file(embedder: Embedder, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 5)
    expected = embedder(paths).vectors.numpy()
    for suffix in (".parquet", ".npy"):
        write_embeddings(embedder, paths, tmp_path / f"x{suffix}", progress=False)
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[96]"
    assert table["name"].to_pylist() == [str(path) for path in paths]
    metadata = json.loads(table.schema.metadata[b"swag_models"])
    assert (
        metadata.items()
        >= {"model": NANO, "width": 96, "dtype": "float32", "images": 5, "skipped": []}.items()
    )
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert np.array_equal(np.stack(frame["embedding"]), expected)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected)
    names = json.loads((tmp_path / "x.json").read_text())
    assert names["names"] == frame["name"].tolist()
    assert names["swag_models"] == metadata


def test_row_groups_have_a_limited_size(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_file, "ROW_GROUP_SIZE", 4)
    paths = write_images(tmp_path / "images", 10)
    write_embeddings(embedder, paths, tmp_path / "x.parquet", progress=False)
    parquet = pyarrow.parquet.read_metadata(tmp_path / "x.parquet")
    assert [parquet.row_group(group).num_rows for group in range(parquet.num_row_groups)] == [
        4,
        4,
        2,
    ]
    assert torch.equal(read_embeddings(tmp_path / "x.parquet").vectors, embedder(paths).vectors)


@SUFFIXES
@pytest.mark.parametrize("count", [0, 3])
def test_a_file_without_rows_can_be_read(
    embedder: Embedder, tmp_path: Path, suffix: str, count: int
) -> None:
    missing = [tmp_path / f"{number}.jpg" for number in range(count)]
    summary = write_embeddings(embedder, missing, tmp_path / f"x{suffix}", progress=False)
    assert (summary.rows, [image.name for image in summary.skipped]) == (
        0,
        [str(path) for path in missing],
    )
    embeddings = read_embeddings(summary.path)
    assert embeddings.vectors.shape == (0, 96)
    assert (embeddings.names, embeddings.skipped) == ([], summary.skipped)
    raw = np.load(summary.path) if suffix == ".npy" else pyarrow.parquet.read_table(summary.path)
    assert len(raw) == 0


FOREIGN = {
    "x.parquet": b"not parquet",
    "x.npy": b"not numpy",
    "x.json": b'{"names": []}',
    "y.json": b"[1, 2]",
    "z.json": b"\xff",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_with_other_content_is_rejected_and_kept(
    embedder: Embedder, tmp_path: Path, name: str
) -> None:
    path = write_file(tmp_path / name, FOREIGN[name])
    output = path.with_suffix(".npy") if path.suffix == ".json" else path
    with pytest.raises(ConfigError, match=r"was not written by swag-models embed: .+"):
        write_embeddings(embedder, write_images(tmp_path / "images", 2), output, progress=False)
    assert path.read_bytes() == FOREIGN[name]
    assert list_names(tmp_path) == ["images", name]
    message = "does not exist" if name == "x.npy" else "was not written"
    with pytest.raises(ConfigError, match=rf"{message}.* swag-models embed"):
        read_embeddings(output)


def test_images_in_memory_are_identified_by_their_pixels(
    embedder: Embedder, tmp_path: Path
) -> None:
    pixels, other_pixels = (
        np.stack([make_pixels(seed) for seed in seeds]) for seeds in ((0, 1), (0, 2))
    )
    images: list[Any] = [
        pixels,
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        np.zeros((0, 2), np.uint8),
    ]
    first = write_embeddings(embedder, images, tmp_path / "x.npy", progress=False)
    assert (first.rows, [image.reason for image in first.skipped]) == (
        4,
        ["image 4 cannot be read: it has no pixels"],
    )
    assert write_embeddings(embedder, images, tmp_path / "x.npy", progress=False) == first
    with pytest.raises(ConfigError, match="contains other embeddings"):
        write_embeddings(embedder, [other_pixels, *images[1:]], tmp_path / "x.npy", progress=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.csv", "unknown suffix of {folder}/x.csv; allowed: .parquet or .npy"),
        ("x", "unknown suffix of {folder}/x; allowed: .parquet or .npy"),
        ("no/x.npy", "{folder}/no is not a folder; create it, or choose another one for x.npy"),
    ],
)
def test_an_invalid_output_is_rejected_in_one_line(
    embedder: Embedder, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        write_embeddings(embedder, [], tmp_path / name)
    assert str(caught.value) == message.format(folder=tmp_path)
    assert list_names(tmp_path) == []


@SUFFIXES
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_merged_parts_equal_the_file_of_one_process(
    embedder: Embedder, tmp_path: Path, suffix: str, world_size: int
) -> None:
    paths = write_images(tmp_path / "images", 4 * 6)  # whole batches for 1, 2 and 3 processes
    paths[3].write_bytes(b"")
    paths[20] = tmp_path / "missing.png"
    reference = write_embeddings(embedder, paths, tmp_path / f"whole{suffix}", progress=False)
    parts = [
        write_embeddings(
            embedder,
            paths,
            tmp_path / f"x{suffix}",
            rank=rank,
            world_size=world_size,
            progress=False,
        ).path
        for rank in range(world_size)
    ]
    if world_size > 1:
        assert [part.name for part in parts] == [
            f"x-{r:05d}-of-{world_size:05d}{suffix}" for r in range(world_size)
        ]
    merged = merge_embeddings(parts[::-1], tmp_path / f"merged{suffix}")
    assert (merged.rows, merged.skipped) == (22, reference.skipped)
    embeddings, expected = read_embeddings(merged.path), read_embeddings(reference.path)
    assert embeddings.names == expected.names
    assert torch.allclose(embeddings.vectors, expected.vectors, rtol=0, atol=1e-5)
    if world_size < 7:
        assert merged.path.read_bytes() == reference.path.read_bytes()
    assert not list(tmp_path.glob("*.work"))


def test_there_can_be_more_parts_than_images(embedder: Embedder, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 2)
    summaries = [
        write_embeddings(
            embedder, paths, tmp_path / "x.parquet", rank=rank, world_size=5, progress=False
        )
        for rank in range(5)
    ]
    assert sorted(summary.rows for summary in summaries) == [0, 0, 0, 1, 1]
    merged = merge_embeddings(
        [summary.path for summary in summaries], tmp_path / "merged.npy"
    )  # in another format
    assert torch.allclose(read_embeddings(merged.path).vectors, embedder(paths).vectors, atol=1e-5)


def test_parts_that_are_incomplete_or_of_different_runs_are_not_merged(
    embedder: Embedder, tmp_path: Path
) -> None:
    paths = write_images(tmp_path / "images", 6)

    def write(name: str, images: list[Path], rank: int, world_size: int = 2) -> Path:
        return write_embeddings(
            embedder, images, tmp_path / name, rank=rank, world_size=world_size, progress=False
        ).path

    first, second = (write("x.npy", paths, rank) for rank in range(2))
    other = write("y.npy", paths[:4], 1)
    copy = Path(shutil.copy(first, tmp_path / "copy.npy"))
    shutil.copy(first.with_suffix(".json"), tmp_path / "copy.json")
    existing = write_file(tmp_path / "exists.npy", b"")
    gone, output = tmp_path / "gone.npy", tmp_path / "merged.npy"
    cases: list[tuple[list[Path], Path, str]] = [
        ([first], output, r"1 of 2 parts passed; missing: part-00001-of-00002\.npy"),
        ([first, other], output, "are from different runs; pass the parts of one run"),
        ([first, second, copy], output, "3 of 2 parts passed; pass each part once"),
        ([first, second], existing, "exists.json is missing; delete it or choose"),
        ([first, gone], output, r"gone\.json does not exist; swag-models embed writes it"),
        ([first, second], tmp_path / "no" / "x.npy", "is not a folder; create it"),
        ([first, second], tmp_path / "x.txt", "allowed: .parquet"),
    ]
    for parts, target, message in cases:
        with pytest.raises(ConfigError, match=message):
            merge_embeddings(parts, target)
    assert not output.exists()
    assert existing.read_bytes() == b""
    assert (
        merge_embeddings([second, first, second], output).rows == 6
    )  # the same path twice is one part


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (1, 1), (0, 0)])
def test_a_rank_out_of_range_is_rejected(
    embedder: Embedder, tmp_path: Path, rank: int, world_size: int
) -> None:
    message = f"invalid rank {rank}: allowed with world_size {world_size}: 0 to {world_size - 1}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        write_embeddings(embedder, [], tmp_path / "x.npy", rank=rank, world_size=world_size)


@pytest.mark.parametrize("family", ["vit", "regnet"])
def test_images_in_shards_are_embedded_by_every_family(family: str, tmp_path: Path) -> None:
    spec, weights = make_spec(family, tmp_path)
    shards = [
        write_tar(
            tmp_path / f"{shard}.tar", {f"{n}.png": encode_image(10 * shard + n) for n in range(4)}
        )
        for shard in (1, 2)
    ]
    small = Embedder(spec, weights=weights, batch_size=3)
    summary = write_embeddings(small, f"{tmp_path}/*.tar", tmp_path / "x.npy", progress=False)
    embeddings = read_embeddings(summary.path)
    assert embeddings.names == [f"{shard}/{number}.png" for shard in shards for number in range(4)]
    assert torch.equal(embeddings.vectors, small(shards).vectors)
    fast = Embedder(spec, weights=weights, fast=True, dtype="float32", batch_size=3)
    if family == "regnet":  # folded batch norms are other weights
        with pytest.raises(ConfigError, match="contains other embeddings"):
            write_embeddings(fast, f"{tmp_path}/*.tar", tmp_path / "x.npy", progress=False)
