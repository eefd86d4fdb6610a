"""Features are the model's own, kept once for each model and data, and whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import make_digits
from torch import Tensor

from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model
from swag_models.recipe.evaluation.probes.features import extract_features, hash_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def candidate() -> EvaluatedModel:
    return open_evaluated_model("vit_nano_hashtags")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("features") / "digits", 60)


def look(folder: Path) -> list[str]:
    """What is there but for locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(("dtype", "near"), [("float16", 1e-3), ("float32", 1e-5)])
def test_features_are_those_of_the_model(
    dtype: Any, near: float, candidate: EvaluatedModel, digits: Path, tmp_path: Path
) -> None:
    features = extract_features(candidate, digits, tmp_path, dtype=dtype, batch_size=7)
    assert isinstance(features.vectors, np.memmap)
    assert (features.vectors.shape, features.vectors.dtype) == ((60, 96), dtype)
    assert features.class_names == tuple(f"digit {digit}" for digit in range(10))
    for number in (0, 33, 59):
        name = features.names[number]
        with Image.open(digits / name) as image:
            expected = candidate.embed(candidate.fit(image.convert("RGB"))[None])[0].numpy()
        np.testing.assert_allclose(features.vectors[number], expected, rtol=near, atol=near)
        assert name.startswith(f"digit {features.labels[number]}/")
    assert len(set(features.names)) == 60


def test_what_is_there_is_not_computed_again(
    candidate: EvaluatedModel, digits: Path, tmp_path: Path
) -> None:
    data, cache = make_digits(tmp_path / "data", 20), tmp_path / "cache"
    extract_features(candidate, data, cache)
    [first] = look(cache)
    before = (cache / first / "vectors.npy").stat()
    again = extract_features(candidate, data, cache, batch_size=3)
    after = (cache / first / "vectors.npy").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.vectors.shape == (20, 96)
    extract_features(candidate, data, cache, dtype="float32")
    extract_features(open_evaluated_model("vit_nano_hashtags", image_size=32), data, cache)
    make_digits(data, 1, first=20)
    assert len(extract_features(candidate, data, cache).names) == 21
    extract_features(
        candidate, data, cache, classes=[f"digit {digit}" for digit in reversed(range(10))]
    )
    assert len(look(cache)) == 5
    assert first in look(cache)


def test_pictures_of_equal_names_and_sizes_are_told_apart(
    candidate: EvaluatedModel, tmp_path: Path
) -> None:
    def paint(folder: str, *shades: int) -> Path:
        for number, shade in enumerate(shades):
            path = tmp_path / folder / "class" / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(path)
            os.utime(path, (number, number))
        return tmp_path / folder

    def ask(data: Any) -> list[float]:
        features = extract_features(candidate, data, tmp_path / "cache", dtype="float32")
        return [float(each) for each in features.vectors[:, 0]]

    first, second = ask(paint("first", 0, 90)), ask(paint("second", 180, 250))
    assert not set(first) & set(second)
    (tmp_path / "link").symlink_to("first")
    assert ask(tmp_path / "link") == first
    assert len(look(tmp_path / "cache")) == 2
    picture = paint("first", 200, 90) / "class" / "0.bmp"
    os.utime(picture, (9, 9))  # changed in place, to the same size
    assert ask(tmp_path / "first")[0] != first[0]


def test_shards_of_equal_names_and_sizes_are_told_apart(tmp_path: Path) -> None:
    shards = [tmp_path / name / "0.tar" for name in "ab"]
    for shard in shards:
        shard.parent.mkdir()
        shard.write_bytes(shard.parent.name.encode() * 8)
        os.utime(shard, (1, 1))
    assert hash_state(shards[0]) != hash_state(shards[1])
    assert hash_state("https://example.com/{0..9}.tar") != hash_state(
        "https://example.com/{0..8}.tar"
    )


def test_workers_change_nothing(candidate: EvaluatedModel, digits: Path, tmp_path: Path) -> None:
    alone = extract_features(candidate, digits, tmp_path / "alone")
    helped = extract_features(candidate, digits, tmp_path / "helped", workers=1)
    assert alone.names == helped.names
    assert (alone.vectors == helped.vectors).all()


def test_broken_pictures_are_left_out_and_told(candidate: EvaluatedModel, tmp_path: Path) -> None:
    data = make_digits(tmp_path / "data", 12)
    (data / "digit 3" / "3.png").write_bytes(b"no picture")
    for _ in range(2):
        features = extract_features(candidate, data, tmp_path / "cache")
        assert len(features.names) == len(features.labels) == len(features.vectors) == 11
        assert "digit 3/3.png" not in features.names
        assert [("3.png" in message, count) for message, count in features.skipped.items()] == [
            (True, 1)
        ]


def test_what_float16_cannot_hold_is_refused_and_leaves_nothing(
    digits: Path, tmp_path: Path
) -> None:
    large = open_evaluated_model("vit_nano_hashtags")

    def enlarge(module: Any, given: Any, features: Tensor) -> Tensor:
        return features * 1e6

    [norm] = [
        module for module in large.network.modules() if isinstance(module, torch.nn.LayerNorm)
    ][-1:]
    norm.register_forward_hook(enlarge)
    with pytest.raises(ConfigError, match="float16 ends at 65504: keep features as float32"):
        extract_features(large, digits, tmp_path)
    assert look(tmp_path) == []
    assert np.abs(extract_features(large, digits, tmp_path, dtype="float32").vectors).max() > 65504


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(
    candidate: EvaluatedModel, tmp_path: Path
) -> None:
    data, cache = make_digits(tmp_path / "data", 300), tmp_path / "cache"
    process = multiprocessing.get_context("forkserver").Process(target=_extract, args=(data, cache))
    process.start()
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 1000 for path in cache.glob(".*.tmp/vectors.npy")):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        process.join()
    finally:
        process.kill()
    assert process.exitcode == -9
    [left] = look(cache)
    assert left.endswith(".tmp")
    found = extract_features(candidate, data, cache)
    assert look(cache) == [left[1:].removesuffix(".tmp")]
    assert len(found.names) == 300
    assert (found.vectors == extract_features(candidate, data, tmp_path / "other").vectors).all()


def _extract(data: Path, cache: Path) -> None:
    torch.set_num_threads(1)
    extract_features(open_evaluated_model("vit_nano_hashtags"), data, cache, batch_size=8)
