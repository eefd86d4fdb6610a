"""The examples that put embeddings to use do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from image_support import ROOT, render_scenes, write_file

from studies.scenes.things import NAMES
from swag_models.cli import main
from swag_models.inference.predict import Embedder

NANO = "regnety_nano_hashtags"

pytestmark = pytest.mark.usefixtures("one_thread")


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """An example in a process of its own, without a network."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = {**os.environ, "SWAG_MODELS_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def write_scenes(folder: Path, per_thing: int) -> list[Path]:
    """Held-out pictures of eight things as files `<thing>-<number>.png`."""
    folder.mkdir()
    pictures, things = render_scenes(32 * per_thing)
    for number, (picture, thing) in enumerate(zip(pictures, things)):
        if thing in NAMES[:8]:
            picture.save(folder / f"{thing}-{number:03}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", ["sklearn_probe.py", "nearest.py", "ray_embed.py"])
def test_an_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= 40


@pytest.mark.slow
def test_scikit_learn_reads_things_from_embeddings() -> None:
    done = run_example("sklearn_probe.py")
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(
        r"^(\w+) ([\d.]+)% of 320 held-out images from 192 features$", done.stdout, re.MULTILINE
    )
    assert [name for name, _ in found] == ["linear", "nearest"]
    assert min(float(accuracy) for _, accuracy in found) >= 5 * 100 / 32, "of guessing"


@pytest.mark.slow
def test_the_nearest_neighbours_of_a_picture_are_like_it(tmp_path: Path) -> None:
    files = write_scenes(tmp_path / "scenes", 12)
    file = tmp_path / "scenes.parquet"
    assert (
        main(["embed", str(tmp_path / "scenes"), "--model", NANO, "-o", str(file), "--quiet"]) == 0
    )
    query = write_file(tmp_path / "query.png", files[50].read_bytes())
    done = run_example("nearest.py", file, query, NANO)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  ", 1) for line in done.stdout.splitlines()]
    assert lines[0] == ["1.0000", str(files[50])], "itself"
    vectors = torch.nn.functional.normalize(Embedder(NANO)(files).vectors)
    expected = (vectors @ vectors[50]).topk(5).indices.tolist()
    assert [name for _, name in lines] == [str(files[index]) for index in expected]
    cosines = [float(cosine) for cosine, _ in lines]
    assert cosines == sorted(cosines, reverse=True)
    done = run_example("nearest.py", file, write_file(tmp_path / "broken.png", b""))
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.splitlines()[-1]
        == f"{tmp_path}/broken.png is not an image that Pillow can read"
    )


@pytest.mark.slow
def test_ray_embeds_a_folder(tmp_path: Path) -> None:
    files = write_scenes(tmp_path / "scenes", 10)
    write_file(tmp_path / "scenes" / "broken.png", b"")
    done = run_example("ray_embed.py", tmp_path / "scenes", tmp_path / "rows")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"80 embeddings in {tmp_path / 'rows'}\n")
    assert f"skipped: {tmp_path}/scenes/broken.png is not an image" in done.stderr
    assert "Traceback" not in done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "rows").sort_by("name")
    assert table["name"].to_pylist() == [str(file) for file in files]
    expected = Embedder(NANO)(files).vectors.numpy()
    difference = np.stack(table["embedding"].to_numpy()) - expected
    assert np.abs(difference).mean() <= 0.02 * expected.std()  # fast, and so perhaps in bfloat16
