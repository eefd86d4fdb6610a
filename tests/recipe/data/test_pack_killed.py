"""Packing that was killed is resumed and writes the same bytes as an uninterrupted run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from fetch_support import wait_until
from image_support import make_command
from shards_support import (
    COUNT,
    encode_jpeg,
    make_images,
    make_labels,
    pack_images,
    read_bytes,
    write_labels,
)

from swag_models.errors import OutputError
from swag_models.recipe.data.pack import pack


def start_command(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = make_command(
        "recipe",
        "pack",
        "--labels",
        folder / "labels.parquet",
        "--images",
        folder / "images",
        "-o",
        folder / "shards",
    )
    return subprocess.Popen(
        [*command, "--quiet", *options],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_writes_the_same_bytes(tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.parquet", make_labels(40))
    (tmp_path / "images").mkdir()
    for name in make_labels(40):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(encode_jpeg(int(name), 400))
    options = ["--shard-size", "2", "--processes", "2", "--resize", "100"]
    process = start_command(tmp_path, *options)
    try:
        wait_until(lambda: len(list(tmp_path.glob("shards/*.tar"))) >= 3)
        process.kill()
        process.wait()
        wait_until(lambda: not is_alive(process.pid))
    finally:
        if is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*.tar")}
    assert 3 <= len(before) < 20, "it was killed in the middle"
    assert not (tmp_path / "shards" / "manifest.json").exists()
    assert start_command(tmp_path, *options).wait() == 0
    unchanged = Counter(path.stat().st_mtime_ns == time for path, time in before.items())
    assert unchanged[False] <= 2, "only shards that had no record yet are written again"
    whole = tmp_path / "whole"
    pack(
        tmp_path / "labels.parquet",
        [tmp_path / "images"],
        whole,
        shard_size=2,
        image_short_side=100,
        progress=False,
        processes=1,
    )
    assert read_bytes(whole) == read_bytes(tmp_path / "shards")
    assert not (tmp_path / "shards.work").exists()


def test_a_killed_worker_ends_the_run_and_finished_shards_are_kept(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", list(make_labels(COUNT)))

    def kill() -> None:
        wait_until(lambda: list(tmp_path.glob("shards/*.tar")))
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(OutputError, match="a process was killed, perhaps for lack of memory"):
        pack_images(tmp_path, [images], shard_size=1, processes=2)
    thread.join()
    assert (tmp_path / "shards.work" / "job.json").exists()
    assert pack_images(tmp_path, [images], shard_size=1)["count"] == COUNT


def test_a_damaged_shard_of_an_earlier_run_is_written_again(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", list(make_labels(COUNT)))
    pack_images(tmp_path, [images], shard_size=16)
    whole = read_bytes(tmp_path / "shards")
    (tmp_path / "shards").rename(tmp_path / "done")
    process = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_MANIFEST, str(tmp_path), str(images)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    (tmp_path / "shards" / "shard-000001.tar").write_bytes(b"")
    (tmp_path / "shards" / "shard-000002.tar").unlink()
    pack_images(tmp_path, [images], shard_size=16)
    assert read_bytes(tmp_path / "shards") == whole


KILLED_BEFORE_MANIFEST = """
import os, signal, sys
from pathlib import Path
from swag_models.recipe.data import pack
folder, images = map(Path, sys.argv[1:])
pack._finish_output = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # as if the power failed
options = {"shard_size": 16, "processes": 1, "progress": False}
pack.pack(folder / "labels.parquet", [images], folder / "shards", **options)
"""
