"""The examples that use embeddings work as described."""

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
SLOW = ("nearest", "ray_embed")  # to import

pytestmark = pytest.mark.usefixtures("one_thread")


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run an example in a new process without network access."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = {**os.environ, "SWAG_MODELS_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def write_scenes(folder: Path, per_class: int) -> list[Path]:
    """Write held-out images of eight classes as files `<class>-<number>.png`."""
    folder.mkdir()
    images, class_names = render_scenes(32 * per_class)
    for number, (image, class_name) in enumerate(zip(images, class_names)):
        if class_name in NAMES[:8]:
            image.save(folder / f"{class_name}-{number:03}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", ["sklearn_probe.py", "nearest.py", "ray_embed.py"])
def test_an_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    "name", ["serve_onnx.py", *(pytest.param(f"{x}.py", marks=pytest.mark.slow) for x in SLOW)]
)
def test_without_arguments_an_example_says_how_it_is_used(name: str) -> None:
    process = run_example(name)
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.splitlines()[-1].startswith(f"usage: python examples/{name} ")


@pytest.mark.slow
def test_scikit_learn_learns_classes_from_embeddings() -> None:
    process = run_example("sklearn_probe.py")
    assert (process.returncode, process.stderr) == (0, "")
    matches = re.findall(
        r"^(\w+) ([\d.]+)% of 320 held-out images from 192 features$", process.stdout, re.MULTILINE
    )
    assert [name for name, _ in matches] == ["linear", "nearest"]
    assert min(float(accuracy) for _, accuracy in matches) >= 5 * 100 / 32, "of guessing"


@pytest.mark.slow
def test_nearest_neighbours_have_the_class_of_the_query(tmp_path: Path) -> None:
    files = write_scenes(tmp_path / "scenes", 12)
    file = tmp_path / "scenes.parquet"
    assert (
        main(["embed", str(tmp_path / "scenes"), "--model", NANO, "-o", str(file), "--quiet"]) == 0
    )
    query = write_file(tmp_path / "query.png", files[50].read_bytes())
    process = run_example("nearest.py", file, query, NANO)
    assert (process.returncode, process.stderr) == (0, "")
    lines = [line.split(None, 1) for line in process.stdout.splitlines()]
    assert lines.pop() == ["copy", str(files[50])], "itself"
    vectors = torch.nn.functional.normalize(Embedder(NANO)(files).vectors)
    expected = (vectors @ vectors[50]).topk(6).indices.tolist()[1:]
    assert [name for _, name in lines] == [str(files[index]) for index in expected]
    cosines = [float(cosine) for cosine, _ in lines]
    assert cosines == sorted(cosines, reverse=True)
    process = run_example("nearest.py", file, write_file(tmp_path / "broken.png", b""))
    assert (process.returncode, process.stdout) == (1, "")
    assert (
        process.stderr.splitlines()[-1]
        == f"{tmp_path}/broken.png is not an image that Pillow can read"
    )


@pytest.mark.slow
def test_ray_embeds_a_folder(tmp_path: Path) -> None:
    files = write_scenes(tmp_path / "scenes", 10)
    write_file(tmp_path / "scenes" / "broken.png", b"")
    process = run_example("ray_embed.py", tmp_path / "scenes", tmp_path / "rows")
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith(f"80 embeddings in {tmp_path / 'rows'}\n")
    assert f"skipped: {tmp_path}/scenes/broken.png is not an image" in process.stderr
    assert "Traceback" not in process.stderr
    table = pyarrow.parquet.read_table(tmp_path / "rows").sort_by("name")
    assert table["name"].to_pylist() == [str(file) for file in files]
    expected = Embedder(NANO)(files).vectors.numpy()
    difference = np.stack(table["embedding"].to_numpy()) - expected
    assert np.abs(difference).mean() <= 0.02 * expected.std()  # because fast=True may use bfloat16
