"""Features equal those of the model; the cache contains all of them or none."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_digits
from torch import Tensor

from swag_models.errors import CacheError, ConfigError
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import extract_features, hash_file_states
from swag_models.resumable import WorkFolder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def model() -> EvaluatedModel:
    return open_evaluated_model("vit_nano_hashtags")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("features") / "digits", 60)


def list_files(cache: Path) -> list[str]:
    """List the names of all files in the folders of a cache, without locks."""
    return sorted(path.name for path in cache.glob("*/*") if path.name != ".lock")


def list_folders(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-5)])
def test_features_equal_those_of_the_model(
    dtype: Any, tolerance: float, model: EvaluatedModel, digits: Path, tmp_path: Path
) -> None:
    features = extract_features(model, digits, tmp_path, dtype=dtype, batch_size=7)
    assert isinstance(features.vectors, np.memmap)
    assert (features.vectors.shape, features.vectors.dtype) == ((60, 96), dtype)
    assert features.class_names == tuple(f"digit {digit}" for digit in range(10))
    for index in (0, 33, 59):
        name = features.names[index]
        with Image.open(digits / name) as image:
            expected = model.embed(model.fit(image.convert("RGB"))[None])[0].numpy()
        np.testing.assert_allclose(
            features.vectors[index], expected, rtol=tolerance, atol=tolerance
        )
        assert name.startswith(f"digit {features.labels[index]}/")
    assert len(set(features.names)) == 60


def test_cached_features_are_not_computed_again(model: EvaluatedModel, tmp_path: Path) -> None:
    data, cache = make_digits(tmp_path / "data", 20), tmp_path / "cache"
    extract_features(model, data, cache)
    [first] = list_folders(cache)
    before = (first / "vectors.npy").stat()
    again = extract_features(model, data, cache, batch_size=3)
    after = (first / "vectors.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.vectors.shape == (20, 96)
    extract_features(model, data, cache, dtype="float32")
    extract_features(open_evaluated_model("vit_nano_hashtags", image_size=32), data, cache)
    make_digits(data, 1, first=20)
    assert len(extract_features(model, data, cache).names) == 21
    reversed_classes = [f"digit {digit}" for digit in reversed(range(10))]
    extract_features(model, data, cache, classes=reversed_classes)
    assert len(list_folders(cache)) == 5
    assert first in list_folders(cache)


def test_images_of_equal_names_and_sizes_are_distinguished(
    model: EvaluatedModel, tmp_path: Path
) -> None:
    def write_images(folder: str, *shades: int) -> Path:
        for number, shade in enumerate(shades):
            path = tmp_path / folder / "class" / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(path)
            os.utime(path, (number, number))
        return tmp_path / folder

    def extract(data: Any) -> list[float]:
        features = extract_features(model, data, tmp_path / "cache", dtype="float32")
        return [float(value) for value in features.vectors[:, 0]]

    first, second = extract(write_images("first", 0, 90)), extract(write_images("second", 180, 250))
    assert not set(first) & set(second)
    (tmp_path / "link").symlink_to("first")
    assert extract(tmp_path / "link") == first
    assert len(list_folders(tmp_path / "cache")) == 2
    changed = write_images("first", 200, 90) / "class" / "0.bmp"
    os.utime(changed, (9, 9))  # other content of the same size
    assert extract(tmp_path / "first")[0] != first[0]


def test_shards_of_equal_names_and_sizes_are_distinguished(tmp_path: Path) -> None:
    shards = [tmp_path / name / "0.tar" for name in "ab"]
    for shard in shards:
        shard.parent.mkdir()
        shard.write_bytes(shard.parent.name.encode() * 8)
        os.utime(shard, (1, 1))
    assert hash_file_states(shards[0]) != hash_file_states(shards[1])
    assert hash_file_states("https://example.com/{0..9}.tar") != hash_file_states(
        "https://example.com/{0..8}.tar"
    )


def test_workers_do_not_change_features(
    model: EvaluatedModel, digits: Path, tmp_path: Path
) -> None:
    alone = extract_features(model, digits, tmp_path / "alone")
    with_worker = extract_features(model, digits, tmp_path / "worker", workers=1)
    assert alone.names == with_worker.names
    assert (alone.vectors == with_worker.vectors).all()


def test_broken_images_are_left_out_and_counted(model: EvaluatedModel, tmp_path: Path) -> None:
    data = make_digits(tmp_path / "data", 12)
    (data / "digit 3" / "3.png").write_bytes(b"no image")
    for _ in range(2):  # computed, then read from the cache
        features = extract_features(model, data, tmp_path / "cache")
        assert len(features.names) == len(features.labels) == len(features.vectors) == 11
        assert "digit 3/3.png" not in features.names
        [(message, count)] = features.skipped.items()
        assert "3.png" in message
        assert count == 1


def test_float16_overflow_is_rejected_and_nothing_is_cached(digits: Path, tmp_path: Path) -> None:
    model = open_evaluated_model("vit_nano_hashtags")

    def enlarge(module: Any, inputs: Any, features: Tensor) -> Tensor:
        return features * 1e6

    norms = [module for module in model.network.modules() if isinstance(module, torch.nn.LayerNorm)]
    norms[-1].register_forward_hook(enlarge)
    with pytest.raises(
        ConfigError, match="the maximum of float16 is 65504: store features as float32"
    ):
        extract_features(model, digits, tmp_path)
    assert list_files(tmp_path) == []
    features = extract_features(model, digits, tmp_path, dtype="float32")
    assert np.abs(features.vectors).max() > 65504


def test_unwritable_cache_is_reported(model: EvaluatedModel, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be written: .*; choose another cache folder"):
        extract_features(model, digits, tmp_path / "file")


@pytest.mark.parametrize("damaged", ["vectors.npy", "labels.npy", "facts.json"])
def test_incomplete_cache_is_computed_again(
    damaged: str, model: EvaluatedModel, digits: Path, tmp_path: Path
) -> None:
    expected = np.array(extract_features(model, digits, tmp_path).vectors)
    [folder] = list_folders(tmp_path)
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[: len(content) // 2])
    assert (extract_features(model, digits, tmp_path).vectors == expected).all()
    if damaged == "facts.json":  # the times of the other two files are new
        assert json.loads((folder / damaged).read_text()).keys() == json.loads(content).keys()
    else:
        assert (folder / damaged).read_bytes() == content


def test_second_process_waits_for_the_first(
    model: EvaluatedModel, digits: Path, tmp_path: Path
) -> None:
    """The lock of this thread simulates a process that extracts the same features."""
    expected = np.array(extract_features(model, digits, tmp_path).vectors)
    [folder] = list_folders(tmp_path)
    (folder / "facts.json").unlink()
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(extract_features(model, digits, tmp_path))
    )
    with WorkFolder(folder):
        thread.start()
        thread.join(timeout=2)
        assert thread.is_alive()
        assert not (folder / "facts.json").exists()
    thread.join(timeout=60)
    assert (results[0].vectors == expected).all()


@pytest.mark.slow
def test_killed_process_leaves_no_cache_that_looks_complete(
    model: EvaluatedModel, tmp_path: Path
) -> None:
    data, cache = make_digits(tmp_path / "data", 300), tmp_path / "cache"
    process = multiprocessing.get_context("forkserver").Process(target=_extract, args=(data, cache))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 1000 for path in cache.glob("*/.vectors.npy.tmp")):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.join()
    finally:
        process.kill()
    assert process.exitcode == -9
    assert list_files(cache) == [".vectors.npy.tmp"]
    features = extract_features(model, data, cache)
    assert list_files(cache) == ["facts.json", "labels.npy", "vectors.npy"]
    assert len(features.names) == 300
    other = extract_features(model, data, tmp_path / "other")
    assert (features.vectors == other.vectors).all()


def _extract(data: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    extract_features(open_evaluated_model("vit_nano_hashtags"), data, cache, batch_size=8)
