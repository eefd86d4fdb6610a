"""Training batches do not depend on the numbers of ranks and workers or on interruptions."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import to_bytes
from image_support import write_tar
from loader_support import COUNT, make_dataset, make_folder, open_loader, take
from shards_support import encode_jpeg, make_labels, make_shards

from swag_models.errors import ConfigError
from swag_models.hub.download import hash_file
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.stream import count_copies
from swag_models.recipe.data.train_loader import TrainLoader, merge_states

# torch forks its workers; threads that earlier tests left running do not matter to them
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("folder") / "animals")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    return make_dataset(folder)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 48, 4)


def list_values(batches: list[Batch]) -> list[Any]:
    """Convert batches, with their pixels, to values that can be compared."""
    return [(batch.ids, batch.classes, batch.images.numpy().tobytes()) for batch in batches]


def take_together(loaders: list[TrainLoader], count: int) -> list[Any]:
    """Take the batches of all ranks in each step, concatenated."""
    together = []
    for step in zip(*(take(loader, count) for loader in loaders)):
        ids, classes, pixels = zip(*list_values(list(step)))
        together.append(
            (list(itertools.chain(*ids)), list(itertools.chain(*classes)), b"".join(pixels))
        )
    return together


def save_state(loaders: list[TrainLoader]) -> dict[str, Any]:
    """Return the state of all ranks, as a checkpoint restores it."""
    return merge_states([json.loads(json.dumps(loader.state_dict())) for loader in loaders])


@pytest.mark.parametrize("kind", ["folder", "dataset", "packed"])
def test_batches_of_all_ranks_do_not_depend_on_the_number_of_ranks(
    kind: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    alone = list_values(take(open_loader(data, lanes=4), 12))
    assert len({batch for _, _, batch in alone}) == 12
    for world_size in (2, 4):
        assert (
            take_together(
                [open_loader(data, rank, world_size, lanes=4) for rank in range(world_size)], 12
            )
            == alone
        )
    assert list_values(take(open_loader(data, lanes=4, seed=4), 1)) != alone[:1]


@pytest.mark.parametrize("kind", ["folder", "dataset"])
def test_batches_of_indexed_images_do_not_depend_on_the_number_of_workers(
    kind: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    assert list_values(take(open_loader(data, workers=2), 6)) == list_values(
        take(open_loader(data), 6)
    )


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("folder", 0), ("folder", 2), ("dataset", 0), ("packed", 0), ("packed", 2)],
)
def test_a_resumed_loader_equals_the_uninterrupted_one(
    kind: str, workers: int, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    total = list_values(take(open_loader(data, workers=workers, lanes=2), 15))
    first = open_loader(data, workers=workers, lanes=2)
    before = take(first, 7)
    state = save_state([first])
    assert list_values(take(first, 3)) == total[7:10], "a `for` resumes where the last one was left"
    resumed = open_loader(data, workers=workers, lanes=2)
    resumed.load_state_dict(state)
    assert list_values(before) + list_values(take(resumed, 8)) == total
    resumed.load_state_dict(state)
    assert list_values(take(resumed, 2)) == total[7:9], "a running loader can be set back"
    resumed.close()
    assert list_values(take(resumed, 2)) == total[9:11], "and resumes after it was closed"


def test_close_ends_the_worker_processes(folder: Path, packed: Path) -> None:
    before = set(multiprocessing.active_children())
    for data in (folder, packed):
        running = open_loader(data, workers=1)
        take(running, 2)
        assert len(set(multiprocessing.active_children()) - before) == 1
        running.close()
        assert set(multiprocessing.active_children()) == before
        take(running, 1)
        # Another reference would delay the end of the workers until garbage collection.
        del running
        assert set(multiprocessing.active_children()) == before


def test_every_epoch_has_every_image_once_in_another_order(folder: Path) -> None:
    ids = [name for batch in take(open_loader(folder, batch_size=7), 9) for name in batch.ids]
    epochs = [ids[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == sorted(set(ids)) for epoch in epochs)
    assert len(set(ids)) == COUNT
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_samples_of_shards_are_repeated_by_their_factors(packed: Path) -> None:
    labels, counts = make_labels(48), Counter[str]()
    expected = Counter(
        {
            name: copies
            for name, (_, repeat) in labels.items()
            if (copies := count_copies(name, repeat, 0, 3))
        }
    )
    loader = open_loader(packed, batch_size=1, transform=to_bytes)
    for batch in itertools.islice(loader, expected.total()):
        assert batch.classes == [tuple(labels[batch.ids[0]][0])]
        counts.update(batch.ids)
    assert counts == expected
    manifest = json.loads((packed / "manifest.json").read_text())
    assert (loader.num_classes, loader.class_names, loader.samples) == (
        manifest["num_classes"],
        None,
        round(manifest["samples"]),
    )
    assert loader.facts == {
        "kind": "shards",
        "name": "shards",
        "samples": loader.samples,
        "classes": loader.num_classes,
        "sha256": hash_file(packed / "manifest.json"),
    }
    assert take(open_loader(f"{packed}/*.tar", batch_size=1), 1), "also without the manifest"
    assert open_loader(f"{packed}/*.tar").num_classes is None


def test_the_number_of_ranks_can_change_in_the_middle_of_shards(packed: Path) -> None:
    total = take_together([open_loader(packed, rank, 2, lanes=2) for rank in range(2)], 15)
    pair = [open_loader(packed, rank, 2) for rank in range(2)]
    batches = take_together(pair, 5)
    single = open_loader(packed)
    single.load_state_dict(save_state(pair))
    batches += list_values(take(single, 5))
    pair = [open_loader(packed, rank, 2) for rank in range(2)]
    for loader in pair:
        loader.load_state_dict(save_state([single]))
    assert batches + take_together(pair, 5) == total


def test_lanes_that_do_not_fit_start_the_next_epoch_with_a_warning(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = [open_loader(packed, rank, 3, batch_size=6) for rank in range(3)]
    take_together(three, 20)
    state = save_state(three)
    epoch = max(position[0] for lane in state["lanes"].values() for position in lane["positions"])
    assert epoch >= 1
    pair = [open_loader(packed, rank, 2, batch_size=6, transform=to_bytes) for rank in range(2)]
    with caplog.at_level(logging.WARNING, "swag_models"):
        for loader in pair:
            loader.load_state_dict(state)
    assert (
        f"the state has 3 lanes, this loader has 2 for 2 ranks: it starts with epoch {epoch + 1}"
        in caplog.text
    )
    expected = sum(
        count_copies(name, repeat, epoch + 1, 3) for name, (_, repeat) in make_labels(48).items()
    )
    ids = [
        name
        for step in zip(*(take(loader, expected // 6 // 2) for loader in pair))
        for batch in step
        for name in batch.ids
    ]
    copies = {
        name: count_copies(name, repeat, epoch + 1, 3)
        for name, (_, repeat) in make_labels(48).items()
    }
    assert all(count <= copies[name] for name, count in Counter(ids).items()), "of that epoch only"
    with pytest.raises(
        ConfigError,
        match="the state has 1 of 3 lanes; merge the states of all ranks with merge_states",
    ):
        open_loader(packed, batch_size=6, lanes=2).load_state_dict(three[0].state_dict())
    with pytest.raises(ConfigError, match="the state has no lane 1; merge"):
        open_loader(packed, 1, 3, batch_size=6).load_state_dict(three[0].state_dict())


def test_shards_are_resumed_with_the_number_of_workers_in_the_state(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    total = list_values(take(open_loader(packed, workers=2), 8))
    first = open_loader(packed, workers=2)
    before = list_values(take(first, 4))
    resumed = open_loader(packed, workers=1)
    with caplog.at_level(logging.WARNING, "swag_models"):
        resumed.load_state_dict(save_state([first]))
    assert "shards are read by 2 workers instead of 1" in caplog.text
    assert before + list_values(take(resumed, 4)) == total


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_counted_and_replaced_by_the_next(workers: int, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "animals")
    order = [name for batch in take(open_loader(root, batch_size=COUNT), 2) for name in batch.ids]
    broken = order[4:6]
    for name in broken:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    loaders = [open_loader(root, rank, 2, batch_size=6, workers=workers) for rank in range(2)]
    steps = list(zip(*(take(loader, COUNT // 3) for loader in loaders)))  # two epochs
    ids = [name for step in steps for batch in step for name in batch.ids]
    assert all(len(batch.images) == 3 for step in steps for batch in step)
    expected = [
        next(name for name in order[start:] if name not in broken) for start in range(2 * COUNT - 1)
    ]
    assert ids[: len(expected)] == expected
    skipped = loaders[0].skipped + loaders[1].skipped
    assert skipped.total() == 4, "once in every epoch"
    assert {message.partition(" cannot be read: ")[0] for message in skipped} == {
        str(root / name) for name in broken
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_only_broken_images_are_an_error_in_one_line(workers: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            ConfigError,
            match=r"^100 images of .* in a row cannot be read; the last: .*Pillow can read$",
        ):
            take(open_loader(tmp_path, workers=workers), 1)


def test_a_broken_image_in_a_shard_is_counted_and_an_unknown_class_rejected(tmp_path: Path) -> None:
    members = {}
    for number in range(6):
        members |= {
            f"{number}.jpg": encode_jpeg(number)[: 60 if number == 2 else None],
            f"{number}.cls": str(number).encode(),
        }
    shard = write_tar(tmp_path / "x.tar", members)
    loader = open_loader(shard, batch_size=5, lanes=1, transform=to_bytes, classes=list("abcdef"))
    for batch in take(loader, 2):
        assert sorted(batch.ids) == ["0", "1", "3", "4", "5"]
    assert loader.skipped.total() in (1, 2)
    assert (loader.num_classes, loader.class_names, loader.samples) == (6, tuple("abcdef"), None)
    with pytest.raises(ConfigError, match=r"^5 in .*x\.tar has class 5; allowed: 0 to 4$"):
        take(open_loader(shard, batch_size=6, classes=list("abcde")), 1)


def test_invalid_data_and_batch_sizes_are_rejected_in_one_line(
    folder: Path, dataset: Path, packed: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "cat.png").write_bytes(b"")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "shard-000000.tar").write_bytes(b"")
    (tmp_path / "file.zip").write_bytes(b"")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "dataset_dict.json").write_text('{"splits": ["dev"]}')
    for data, options, message in (
        (tmp_path / "none", {}, "none does not exist; allowed: packed shards, "),
        (tmp_path / "file.zip", {}, "file.zip is a file; allowed: packed shards, "),
        (
            tmp_path / "flat",
            {},
            "flat has cat.png; allowed: packed shards, a sub-folder of images for each class, ",
        ),
        (tmp_path / "empty", {}, "empty has class folders without images: "),
        (tmp_path / "unfinished", {}, "packing was not finished"),
        (tmp_path / "odd", {}, "odd has no split train; its splits are dev: give "),
        (
            folder,
            {"batch_size": 9, "world_size": 2},
            "invalid batch_size 9: allowed a positive multiple of 2 with 2 ranks, for example 8",
        ),
        (folder, {"batch_size": 0}, "invalid batch_size 0: allowed 1 or more"),
        (
            packed,
            {"lanes": 3, "world_size": 2},
            "invalid lanes 3: allowed a positive multiple of 2 with 2 ranks",
        ),
        (
            packed,
            {"lanes": 3},
            "invalid batch_size 8: allowed a positive multiple of 3 with 3 lanes, for example 9",
        ),
        (
            packed,
            {"lanes": 16, "batch_size": 16},
            "too few shards, 12, for 16 lanes; use fewer lanes or pack smaller shards",
        ),
        (packed, {"classes": ["a"]}, "classes; allowed: at most 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            open_loader(data, **options)
        assert "\n" not in str(caught.value)


def test_the_state_of_other_data_is_rejected(folder: Path, packed: Path) -> None:
    with pytest.raises(
        ConfigError, match="the state has seed 3, this loader has 4; resume with the same data"
    ):
        open_loader(folder, seed=4).load_state_dict(open_loader(folder).state_dict())
    with pytest.raises(ConfigError, match="the state has kind 'folder', this loader has 'shards'"):
        open_loader(packed).load_state_dict(open_loader(folder).state_dict())
    with pytest.raises(ConfigError, match="the state has seed 3, this loader has 4"):
        open_loader(packed, seed=4).load_state_dict(open_loader(packed).state_dict())
    with pytest.raises(ConfigError, match="the state has batch_size 8, this loader has 4"):
        open_loader(packed, batch_size=4).load_state_dict(open_loader(packed).state_dict())


def test_the_global_generator_of_torch_is_not_changed(folder: Path, packed: Path) -> None:
    expected = torch.rand(4, generator=torch.Generator().manual_seed(5))
    for data in (folder, packed):
        for workers in (0, 1):
            torch.manual_seed(5)
            take(open_loader(data, workers=workers), 2)
            assert torch.equal(torch.rand(4), expected)
