"""Named pipes and devices in place of files are refused, not waited for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards_support import make_shards

from swag_models.errors import ConfigError
from swag_models.hub.download import hash_file
from swag_models.inference.embeddings_file import read_embeddings
from swag_models.recipe.classes.wordnet_mapping import _list_texts
from swag_models.recipe.data.image_index import find_locations
from swag_models.recipe.data.manifest import read_manifest, verify_shards
from swag_models.recipe.data.pack import pack
from swag_models.recipe.data.urls import open_stream
from swag_models.recipe.evaluation.bias.dataset import open_grouped_images

READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("labels.parquet", lambda path: pack(path, path.parent, path.parent / "out", progress=False)),
    ("images.parquet", lambda path: list(find_locations([path]))),
    ("images.csv", lambda path: list(find_locations([path]))),
    ("groups.csv", lambda path: open_grouped_images(path, "group")),
    ("groups.jsonl", lambda path: open_grouped_images(path, "group")),
    ("groups.parquet", lambda path: open_grouped_images(path, "group")),
    ("manifest.json", read_manifest),
    ("embeddings.npy", read_embeddings),
    ("embeddings.parquet", read_embeddings),
    ("targets.txt", _list_texts),
]


@pytest.mark.parametrize(("name", "read"), READERS)
def test_a_pipe_or_device_is_refused(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="named pipe, not a regular file"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="device, not a regular file"):
        read(path)


def test_a_pipe_is_neither_hashed_nor_streamed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda: hash_file(tmp_path / "pipe"), lambda: open_stream(f"{tmp_path}/pipe")):
        with pytest.raises(OSError, match="named pipe"):
            read()


def test_folders_with_pipes(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, 8, 4)
    (folder / "shard-000000.tar").unlink()
    os.mkfifo(folder / "shard-000000.tar")
    assert [flaw.name for flaw in verify_shards(folder)] == ["shard-000000.tar"]
    labels = tmp_path / "labels"
    labels.mkdir()
    pq.write_table(pa.table({"id": ["a"]}), labels / "a.parquet")
    os.mkfifo(labels / "b.parquet")
    with pytest.raises(ConfigError, match=r"b.parquet is a named pipe"):
        pack(labels, folder, tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").glob("*.tar"))
