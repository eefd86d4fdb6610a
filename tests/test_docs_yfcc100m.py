"""Every command of docs/yfcc100m.md runs, on a small table in YFCC100M's format."""

from __future__ import annotations

import bz2
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from slurm_support import install_slurm
from test_docs import ROOT, blocks
from wordnet_support import has_wordnet

from benchmarks.yfcc100m import format_row, serve, write_table

DOCUMENT = (ROOT / "docs" / "yfcc100m.md").read_text()
TAGS = ["dog", "dogs", "rose", "caf\u00e9", "red panda", "nothingofthekind", "boat", "instagood"]
# Numbers for a table of 24 photos instead of millions, and for two CPUs instead of GPUs.
SMALLER = {
    "vit_b16_hashtags": "vit_nano_hashtags",
    " --min-images 100": "",
    "--memory 16GB": "--memory 1GB",
    "-o shards\n": "-o shards --shard-size 6\n",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "--gpus 16": "--gpus 2 --gpus-per-node 1",
    "--set epochs=10": "--set steps=2 --set batch_size=8 --set engine.workers=0",
}
GONE, DAMAGED = 3, 7  # photos


def make_input(folder: Path, address: str) -> None:
    """A table in two files and editions, with its companion; the photos; and a table of URLs."""
    draw = random.Random(0)
    parts: list[list[str]] = [[], []]
    lines = ["url,tags"]
    for number in range(24):
        url, tags = f"{address}/{number}.jpg", [*draw.sample(TAGS, 3), "tree"]
        columns = (23, 25)[number % 2]
        row = format_row(str(6185218911 + number), url, tags, columns, number=number)
        parts[number % 2].append(row)
        lines.append(f'{url},"{",".join(tags)}"')
        size = (400 + number, 300)
        if number == DAMAGED:
            (folder / "served" / f"{number}.jpg").write_text("<html>")
        elif number != GONE:
            image = Image.effect_noise(size, 50).convert("RGB")
            image.save(folder / "served" / f"{number}.jpg", quality=75 + number % 20)
    parts[0] += [format_row("1", f"{address}/video", ["dog"], marker="1"), "a\tmalformed\trow"]
    write_table(folder / "yfcc100m_dataset-1", parts[1])
    text = "".join(f"{row}\n" for row in parts[0])
    (folder / "yfcc100m_dataset-0.bz2").write_bytes(bz2.compress(text.encode()))
    (folder / "yfcc100m_hash").write_text("6185218911\t00000000000000000000000000000000\n")
    (folder / "photos.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(folder / "served" / "0.jpg", folder / "photo.jpg")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()
    server = serve(tmp_path / "served")
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def install_img2dataset(folder: Path) -> None:
    """Write a stand-in, unless img2dataset is installed."""
    if not shutil.which("img2dataset"):
        script = ROOT / "tests" / "recipe" / "img2dataset.py"
        (folder / "img2dataset").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        (folder / "img2dataset").chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(not has_wordnet(), reason="needs WordNet 3.0")
def test_the_commands_run_one_after_the_other(address: str, tmp_path: Path) -> None:
    make_input(tmp_path, address)
    programs = tmp_path / "programs"
    programs.mkdir()
    environment = install_slurm(programs) | {"PYTHONPATH": str(ROOT)}
    install_img2dataset(programs)
    output = ""
    for block in blocks("sh", DOCUMENT):
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        done = subprocess.run(
            ["bash", "-ec", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, block + done.stderr
        output += done.stdout + done.stderr
    manifest = json.loads((tmp_path / "curated" / "manifest.json").read_text())
    assert manifest["posts"]["kept"] == 24
    assert manifest["posts"]["rejected"] == {"a video": 1, "wrong number of columns": 1}
    assert pq.read_table(tmp_path / "curated" / "urls.parquet").num_rows == 24
    for folder, kind in (("shards", "id"), ("my-shards", "url")):
        packed = json.loads((tmp_path / folder / "manifest.json").read_text())
        assert (packed["joined"], packed["unlabelled"]) == ({kind: 22}, 0), folder
        assert packed["rejects"] == {"no image": 2}, "one is gone, one is damaged"
        shard = tmp_path / folder / packed["shards"][0]["name"]
        assert shard.stat().st_size == packed["shards"][0]["bytes"]
    assert "labels found: 22 by url" in output
    assert re.search(r"shards +[\d,]+ images/s per CPU core, measured on this machine", output)
    assert ": fits on H100 80 GB" in output
    for run in ("yfcc", "yfcc16"):
        assert (tmp_path / "runs" / run / "model" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("img2dataset"), reason="needs img2dataset, in another venv")
def test_the_stand_in_writes_what_img2dataset_writes(address: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.rename(tmp_path / "served", tmp_path / "a" / "served")
    os.symlink(tmp_path / "a" / "served", tmp_path / "served")
    make_input(tmp_path / "a", address)
    import pyarrow as pa

    urls = [f"{address}/{number}.jpg" for number in range(8)]
    table = pa.table({"id": [str(number) for number in range(8)], "url": urls})
    pq.write_table(table, tmp_path / "urls.parquet")
    options = "--url_list urls.parquet --input_format parquet --url_col url --image_size 256 "
    options += "--resize_mode keep_ratio --resize_only_if_bigger True --output_format files "
    options += '--save_additional_columns ["id"] --processes_count 1 --thread_count 4'
    script = str(ROOT / "tests" / "recipe" / "img2dataset.py")
    records = []
    for folder, program in (("real", ["img2dataset"]), ("own", [sys.executable, script])):
        command = [*program, *options.split(), "--output_folder", folder]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        files = sorted(
            path.relative_to(tmp_path / folder) for path in (tmp_path / folder).rglob("*")
        )
        rows = pq.read_table(tmp_path / folder / "00000.parquet").to_pylist()
        names = ("id", "url", "key", "status")
        loose = json.loads((tmp_path / folder / "00000" / "000000000.json").read_text())
        with Image.open(tmp_path / folder / "00000" / "000000000.jpg") as image:
            size = image.size
        records.append(
            (
                files,
                sorted([row[name] for name in names] for row in rows),
                [loose[name] for name in names],
                size,
            )
        )
    assert records[0] == records[1]
