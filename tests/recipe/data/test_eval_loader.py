"""An evaluation sees every sample once over any number of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import to_bytes
from image_support import write_images, write_tar
from shards_support import encode_jpeg, make_labels, make_shards

from swag_models.errors import ConfigError
from swag_models.recipe.config import Engine
from swag_models.recipe.data.eval_loader import EvalLoader, open_eval_loader
from swag_models.recipe.data.loader import Loader
from swag_models.recipe.data.pack import pack
from swag_models.recipe.data.train_loader import open_train_loader
from swag_models.recipe.limits import MIN_WORKER_LIMIT, WORKERS_PER_CPU
from swag_models.runtime import count_cpus

# torch forks its workers; threads that earlier tests left running do not matter to them
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes"),
    pytest.mark.usefixtures("one_thread"),
]


def open_loader(data: Any, rank: int = 0, world_size: int = 1, **options: Any) -> EvalLoader:
    defaults = {"batch_size": 4, "workers": 0, "rank": rank, "world_size": world_size}
    return open_eval_loader(data, to_bytes, **{**defaults, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "animals"
    for name, count in (("cat", 5), ("dog", 8)):
        write_images(root / name, count, height=8, width=8)
    return root


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 22, 4)


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    files = sorted(map(str, folder.rglob("*.png")))
    rows = datasets.Dataset.from_dict(
        {"image": files, "label": [int("dog" in path) for path in files]}
    )
    rows = rows.cast_column("image", datasets.Image()).cast_column(
        "label", datasets.ClassLabel(names=["cat", "dog"])
    )
    datasets.DatasetDict({"train": rows.select([0]), "test": rows}).save_to_disk(
        str(folder.parent / "saved")
    )
    return folder.parent / "saved"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["folder", "dataset", "packed"])
def test_every_image_is_seen_once_over_all_ranks(
    kind: str, workers: int, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    expected = {
        name: labels
        for batch in open_loader(data)
        for name, labels in zip(batch.ids, batch.classes)
    }
    if kind == "packed":
        assert expected == {name: tuple(classes) for name, (classes, _) in make_labels(22).items()}
    else:
        assert Counter(expected.values()) == {(0,): 5, (1,): 8}
    for world_size in (2,) if workers else (1, 2, 3):
        loaders = [
            open_loader(data, rank, world_size, workers=workers) for rank in range(world_size)
        ]
        for _ in range(2):
            rank_batches = [list(loader) for loader in loaders]
            assert Counter(
                name for batches in rank_batches for batch in batches for name in batch.ids
            ) == Counter(expected.keys())
            assert sum(loader.seen for loader in loaders) == loaders[0].samples == len(expected)
        assert all(
            torch.is_tensor(batch.images) and len(batch.images) <= 4
            for batches in rank_batches
            for batch in batches
        )


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_every_pass_is_the_same_also_after_one_that_was_left_early(
    kind: str, request: pytest.FixtureRequest
) -> None:
    loader = open_loader(request.getfixturevalue(kind), workers=1)
    first = [batch.ids for batch in loader]
    assert next(iter(loader)).ids == first[0]
    assert [batch.ids for batch in loader] == first


def test_broken_images_are_counted_and_not_replaced(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "root" / "cat", 9, height=8, width=8)
    for path in paths[2:7]:
        path.write_bytes(b"")
    ranks = [open_loader(tmp_path / "root", rank, 2, batch_size=2) for rank in range(2)]
    names = [name for rank in ranks for batch in rank for name in batch.ids]
    assert sorted(names) == [f"cat/000{number}.png" for number in (0, 1, 7, 8)]
    for _ in range(2):
        for rank in ranks:
            list(rank)
        assert sum(rank.seen + rank.skipped.total() for rank in ranks) == 9


def test_broken_images_in_shards_are_counted_in_every_pass(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "x.tar", {"0.jpg": encode_jpeg(0), "0.cls": b"0", "1.jpg": b"", "1.cls": b"1"}
    )
    loader = open_loader(shard)
    for _ in range(2):
        assert [batch.ids for batch in loader] == [["0"]]
        assert (loader.seen, loader.skipped.total(), loader.samples) == (1, 1, None)


def test_a_tar_beside_the_folders_of_classes_is_ignored(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 2, height=8, width=8)
    write_tar(tmp_path / "cat.tar", {"0.jpg": encode_jpeg(0)})
    assert open_loader(tmp_path).class_names == ("cat",)
    (tmp_path / "cut").mkdir()
    write_tar(tmp_path / "cut" / "shard-000000.tar", {})
    with pytest.raises(ConfigError, match=r"has no manifest.json: packing was not finished"):
        open_loader(tmp_path / "cut")


def test_classes_are_numbered_as_those_of_the_model(folder: Path) -> None:
    batches = list(open_loader(folder, classes=["dog", "cat"], batch_size=13))
    assert Counter(batches[0].classes) == {(1,): 5, (0,): 8}
    with pytest.raises(ConfigError, match="has classes that the model does not have: cat"):
        open_loader(folder, classes=["dog"])
    with pytest.raises(ConfigError, match="invalid batch_size 0"):
        open_loader(folder, batch_size=0)


def test_more_workers_than_the_cpus_keep_busy_are_refused(tmp_path: Path) -> None:
    limit = max(MIN_WORKER_LIMIT, WORKERS_PER_CPU * count_cpus())
    expected = rf"{limit + 1}; allowed: {limit} or less on a machine with {count_cpus()} CPUs$"
    options: dict[str, Any] = {"batch_size": 2, "rank": 0, "world_size": 1}
    for call in (
        lambda: open_eval_loader(tmp_path, to_bytes, workers=limit + 1, **options),
        lambda: Loader(tmp_path, batch_size=2, workers=limit + 1),
        lambda: open_train_loader(
            tmp_path, to_bytes, seed=0, engine=Engine(workers=limit + 1), **options
        ),
        lambda: pack(tmp_path, tmp_path, tmp_path / "out", processes=limit + 1),
    ):
        with pytest.raises(ConfigError, match=expected):
            call()
