"""A feed gives the same batches to any number of ranks and workers, and after any interruption."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import crop_randomly, to_bytes
from image_support import make_pixels, write_tar
from PIL import Image
from shards_support import encode_jpeg, make_labels, make_shards
from torchvision.datasets import ImageFolder

from swag_models.errors import ConfigError
from swag_models.hub.download import hash_file
from swag_models.recipe.config import Engine
from swag_models.recipe.data.collate import Batch
from swag_models.recipe.data.stream import count_copies
from swag_models.recipe.data.train_loader import TrainLoader, merge_states, open_train_loader

# torch forks its workers; that a test before this one left a thread does not matter to them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes"),
    pytest.mark.usefixtures("one_thread"),
]
CLASSES = {"cat": 9, "dog": 7, "emu": 5}
COUNT = sum(CLASSES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("folder") / "animals")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    return make_dataset(folder)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 48, 4)


def make_folder(root: Path) -> Path:
    numbers = itertools.count()
    for name, count in CLASSES.items():
        for place in range(count):
            path = root / name / ("deep" if place % 2 else "") / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make_pixels(next(numbers), 10, 12)).save(path)
    (root / ".hidden").mkdir()
    (root / "notes.txt").write_text("no class")
    return root


def make_dataset(folder: Path) -> Path:
    """The folder's pictures as a Hugging Face dataset of two splits, in torchvision's order, which ours is."""
    datasets = pytest.importorskip("datasets")
    pictures = ImageFolder(
        str(folder), is_valid_file=lambda path: path.endswith(".png"), allow_empty=True
    )
    names = sorted(CLASSES)
    files = sorted(path for path, _ in pictures.samples)
    rows = {
        "image": files,
        "label": [names.index(Path(path).relative_to(folder).parts[0]) for path in files],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": whole, "test": whole.select(range(3))}).save_to_disk(
        str(folder.parent / "saved")
    )
    return folder.parent / "saved"


def feed(data: Any, rank: int = 0, world_size: int = 1, **options: Any) -> TrainLoader:
    engine = Engine(
        **{
            "workers": 0,
            "buffer": 20,
            **{key: options.pop(key) for key in ("workers", "lanes") if key in options},
        }
    )
    defaults = {
        "transform": crop_randomly,
        "batch_size": 8,
        "seed": 3,
        "rank": rank,
        "world_size": world_size,
    }
    return open_train_loader(data, engine=engine, **{**defaults, **options})


def take(feed: TrainLoader, count: int) -> list[Batch]:
    return list(itertools.islice(feed, count))


def spell(batches: list[Batch]) -> list[Any]:
    """Batches as values that can be compared, pixels included."""
    return [(batch.ids, batch.classes, batch.images.numpy().tobytes()) for batch in batches]


def take_together(feeds: list[TrainLoader], count: int) -> list[Any]:
    """What all ranks see in each step, put together."""
    together = []
    for step in zip(*(take(each, count) for each in feeds)):
        ids, classes, pixels = zip(*spell(list(step)))
        together.append(
            (list(itertools.chain(*ids)), list(itertools.chain(*classes)), b"".join(pixels))
        )
    return together


def round_trip(feeds: list[TrainLoader]) -> dict[str, Any]:
    """The state of all ranks, as a checkpoint brings it back."""
    return merge_states([json.loads(json.dumps(each.state_dict())) for each in feeds])


@pytest.mark.parametrize("kind", ["folder", "dataset", "packed"])
def test_all_ranks_together_see_the_same_batches_however_many_they_are(
    kind: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    alone = spell(take(feed(data, lanes=4), 12))
    assert len({batch for _, _, batch in alone}) == 12
    for world_size in (2, 4):
        assert (
            take_together([feed(data, rank, world_size, lanes=4) for rank in range(world_size)], 12)
            == alone
        )
    assert spell(take(feed(data, lanes=4, seed=4), 1)) != alone[:1]


@pytest.mark.parametrize("kind", ["folder", "dataset"])
def test_the_number_of_workers_changes_nothing_of_pictures_with_an_index(
    kind: str, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    assert spell(take(feed(data, workers=2), 6)) == spell(take(feed(data), 6))


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("folder", 0), ("folder", 2), ("dataset", 0), ("packed", 0), ("packed", 2)],
)
def test_a_resumed_feed_is_the_uninterrupted_one(
    kind: str, workers: int, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    total = spell(take(feed(data, workers=workers, lanes=2), 15))
    first = feed(data, workers=workers, lanes=2)
    before = take(first, 7)
    state = round_trip([first])
    assert spell(take(first, 3)) == total[7:10], "a `for` goes on where the last one was left"
    again = feed(data, workers=workers, lanes=2)
    again.load_state_dict(state)
    assert spell(before) + spell(take(again, 8)) == total
    again.load_state_dict(state)
    assert spell(take(again, 2)) == total[7:9], "a feed under way can be set back"
    again.close()
    assert spell(take(again, 2)) == total[9:11], "and goes on after it was closed"


def test_close_ends_the_processes(folder: Path, packed: Path) -> None:
    before = set(multiprocessing.active_children())
    for data in (folder, packed):
        under_way = feed(data, workers=1)
        take(under_way, 2)
        assert len(set(multiprocessing.active_children()) - before) == 1
        under_way.close()
        assert set(multiprocessing.active_children()) == before
        take(under_way, 1)
        del (
            under_way
        )  # nothing else may hold it: workers that garbage collection ends take seconds each
        assert set(multiprocessing.active_children()) == before


def test_an_epoch_has_every_picture_once_and_the_next_in_another_order(folder: Path) -> None:
    ids = [name for batch in take(feed(folder, batch_size=7), 9) for name in batch.ids]
    epochs = [ids[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == sorted(set(ids)) for epoch in epochs)
    assert len(set(ids)) == COUNT
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_folder_is_what_torchvision_makes_of_it(folder: Path) -> None:
    peer = ImageFolder(
        str(folder), is_valid_file=lambda path: path.endswith(".png"), allow_empty=True
    )
    shown = [name for name in peer.classes if not name.startswith(".")]
    whole = feed(folder, transform=to_bytes, batch_size=COUNT)
    assert whole.class_names == tuple(shown)
    assert (whole.num_classes, whole.samples) == (3, COUNT)
    (batch,) = take(whole, 1)
    expected = {
        str(Path(path).relative_to(folder)): (peer.classes[label], image)
        for (path, label), (image, _) in zip(peer.samples, peer)
    }
    assert set(batch.ids) == set(expected)
    for name, classes, image in zip(batch.ids, batch.classes, batch.images):
        assert (shown[classes[0]], len(classes)) == (expected[name][0], 1)
        assert torch.equal(image, to_bytes(expected[name][1]))


def test_a_dataset_on_disk_is_the_folder_it_was_made_from(folder: Path, dataset: Path) -> None:
    (of_folder,), whole = (
        take(feed(folder, transform=to_bytes, batch_size=COUNT), 1),
        feed(dataset, batch_size=COUNT, transform=to_bytes),
    )
    (of_dataset,) = take(whole, 1)
    pixels = [
        {image.numpy().tobytes(): each for image, each in zip(b.images, b.classes)}
        for b in (of_folder, of_dataset)
    ]
    assert pixels[0] == pixels[1]
    assert sorted(of_dataset.ids, key=int) == [str(row) for row in range(COUNT)]
    assert whole.class_names == ("cat", "dog", "emu")
    assert {key: whole.facts[key] for key in ("kind", "name", "samples", "classes")} == {
        "kind": "dataset",
        "name": "saved/train",
        "samples": COUNT,
        "classes": 3,
    }
    assert feed(dataset / "test").samples == 3


def test_a_dataset_may_hold_bytes_lists_of_classes_and_no_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [encode_jpeg(number) for number in range(4)], "label": [[0], [1, 4], [], [2]]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
    whole = feed(tmp_path / "rows", batch_size=4, transform=to_bytes)
    (batch,) = take(whole, 1)
    assert dict(zip(batch.ids, batch.classes)) == {"0": (0,), "1": (1, 4), "2": (), "3": (2,)}
    assert (whole.num_classes, whole.class_names) == (5, None)
    for rows, message in (
        ({"image": [b""], "tag": [1]}, "has no column label, but image, tag; rename one with"),
        (
            {"image": [b""], "label": ["cat"]},
            "row 0 of .* has label 'cat'; allowed: integers from 0 on",
        ),
        ({"image": [b"", b""], "label": [1, -1]}, "row 1 of .* has label -1; allowed"),
    ):
        shutil.rmtree(tmp_path / "rows")
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
        with pytest.raises(ConfigError, match=message):
            feed(tmp_path / "rows")


def test_shards_are_fed_as_often_as_their_repeat_factors_say(packed: Path) -> None:
    labels, seen = make_labels(48), Counter[str]()
    expected = Counter(
        {
            name: copies
            for name, (_, repeat) in labels.items()
            if (copies := count_copies(name, repeat, 0, 3))
        }
    )
    whole = feed(packed, batch_size=1, transform=to_bytes)
    for batch in itertools.islice(whole, expected.total()):
        assert batch.classes == [tuple(labels[batch.ids[0]][0])]
        seen.update(batch.ids)
    assert seen == expected
    manifest = json.loads((packed / "manifest.json").read_text())
    assert (whole.num_classes, whole.class_names, whole.samples) == (
        manifest["num_classes"],
        None,
        round(manifest["samples"]),
    )
    assert whole.facts == {
        "kind": "shards",
        "name": "shards",
        "samples": whole.samples,
        "classes": whole.num_classes,
        "sha256": hash_file(packed / "manifest.json"),
    }
    assert take(feed(f"{packed}/*.tar", batch_size=1), 1), "without the manifest too"
    assert feed(f"{packed}/*.tar").num_classes is None


def test_ranks_may_become_fewer_and_more_in_the_middle_of_shards(packed: Path) -> None:
    total = take_together([feed(packed, rank, 2, lanes=2) for rank in range(2)], 15)
    pair = [feed(packed, rank, 2) for rank in range(2)]
    seen = take_together(pair, 5)
    one = feed(packed)
    one.load_state_dict(round_trip(pair))
    seen += spell(take(one, 5))
    pair = [feed(packed, rank, 2) for rank in range(2)]
    for each in pair:
        each.load_state_dict(round_trip([one]))
    assert seen + take_together(pair, 5) == total


def test_lanes_that_do_not_fit_begin_the_next_epoch_with_a_warning(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    three = [feed(packed, rank, 3, batch_size=6) for rank in range(3)]
    take_together(three, 20)
    state = round_trip(three)
    epoch = max(position[0] for lane in state["lanes"].values() for position in lane["positions"])
    assert epoch >= 1
    pair = [feed(packed, rank, 2, batch_size=6, transform=to_bytes) for rank in range(2)]
    with caplog.at_level(logging.WARNING, "swag_models"):
        for each in pair:
            each.load_state_dict(state)
    assert (
        f"the state has 3 lanes, this loader has 2 for 2 ranks: it starts with epoch {epoch + 1}"
        in caplog.text
    )
    expected = sum(
        count_copies(name, repeat, epoch + 1, 3) for name, (_, repeat) in make_labels(48).items()
    )
    ids = [
        name
        for batch in zip(*(take(each, expected // 6 // 2) for each in pair))
        for part in batch
        for name in part.ids
    ]
    copies = {
        name: count_copies(name, repeat, epoch + 1, 3)
        for name, (_, repeat) in make_labels(48).items()
    }
    assert all(count <= copies[name] for name, count in Counter(ids).items()), "of that epoch alone"
    with pytest.raises(
        ConfigError,
        match="the state has 1 of 3 lanes; merge the states of all ranks with merge_states",
    ):
        feed(packed, batch_size=6, lanes=2).load_state_dict(three[0].state_dict())
    with pytest.raises(ConfigError, match="the state has no lane 1; merge"):
        feed(packed, 1, 3, batch_size=6).load_state_dict(three[0].state_dict())


def test_shards_go_on_with_as_many_workers_as_before(
    packed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    total = spell(take(feed(packed, workers=2), 8))
    first = feed(packed, workers=2)
    before = spell(take(first, 4))
    again = feed(packed, workers=1)
    with caplog.at_level(logging.WARNING, "swag_models"):
        again.load_state_dict(round_trip([first]))
    assert "shards are read by 2 workers instead of 1" in caplog.text
    assert before + spell(take(again, 4)) == total


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_counted_and_the_next_takes_its_place(
    workers: int, tmp_path: Path
) -> None:
    root = make_folder(tmp_path / "animals")
    order = [name for batch in take(feed(root, batch_size=COUNT), 2) for name in batch.ids]
    broken = order[4:6]
    for name in broken:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    feeds = [feed(root, rank, 2, batch_size=6, workers=workers) for rank in range(2)]
    steps = list(zip(*(take(each, COUNT // 3) for each in feeds)))  # two epochs
    ids = [name for step in steps for part in step for name in part.ids]
    assert all(len(part.images) == 3 for step in steps for part in step)
    expected = [
        next(name for name in order[place:] if name not in broken) for place in range(2 * COUNT - 1)
    ]
    assert ids[: len(expected)] == expected
    skipped = feeds[0].skipped + feeds[1].skipped
    assert skipped.total() == 4, "once in every epoch"
    assert {message.partition(" cannot be read: ")[0] for message in skipped} == {
        str(root / name) for name in broken
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_all_broken_is_an_error_in_a_line(workers: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(3):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(
            ConfigError,
            match=r"^100 images of .* in a row cannot be read; the last: .*Pillow can read$",
        ):
            take(feed(tmp_path, workers=workers), 1)


def test_a_broken_picture_in_a_shard_is_counted_and_a_strange_class_refused(tmp_path: Path) -> None:
    members = {}
    for number in range(6):
        members |= {
            f"{number}.jpg": encode_jpeg(number)[: 60 if number == 2 else None],
            f"{number}.cls": str(number).encode(),
        }
    shard = write_tar(tmp_path / "x.tar", members)
    whole = feed(shard, batch_size=5, lanes=1, transform=to_bytes, classes=list("abcdef"))
    for batch in take(whole, 2):
        assert sorted(batch.ids) == ["0", "1", "3", "4", "5"]
    assert whole.skipped.total() in (1, 2)
    assert (whole.num_classes, whole.class_names, whole.samples) == (6, tuple("abcdef"), None)
    with pytest.raises(ConfigError, match=r"^5 in .*x\.tar has class 5; allowed: 0 to 4$"):
        take(feed(shard, batch_size=6, classes=list("abcde")), 1)


def test_classes_go_to_the_places_that_a_model_has_for_them(folder: Path, dataset: Path) -> None:
    head = ["emu", "yak", "cat", "dog"]
    for data in (folder, dataset):
        whole = feed(data, classes=head, batch_size=COUNT, transform=to_bytes)
        assert (whole.num_classes, whole.class_names) == (4, tuple(head))
        (batch,) = take(whole, 1)
        assert Counter(batch.classes) == {(2,): 9, (3,): 7, (0,): 5}
        with pytest.raises(
            ConfigError,
            match=r"has classes that the model does not have: cat, emu; its 2 classes begin with dog, yak",
        ):
            feed(data, classes=["dog", "yak"])
        with pytest.raises(
            ConfigError, match="has classes that the model has more than once: cat; its 4"
        ):
            feed(data, classes=["cat", "dog", "emu", "cat"])


def test_what_is_no_data_or_cannot_be_divided_is_refused_in_a_line(
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
        (tmp_path / "none", {}, "none is not there; allowed: packed shards, "),
        (tmp_path / "file.zip", {}, "file.zip is a file; allowed: packed shards, "),
        (
            tmp_path / "flat",
            {},
            "flat has cat.png; allowed: packed shards, a sub-folder of images for each class, or",
        ),
        (tmp_path / "empty", {}, "no image in "),
        (tmp_path / "unfinished", {}, "packing was not finished"),
        (tmp_path / "odd", {}, "odd has no split train, but dev; give "),
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
            "12 shards are too few for 16 lanes; use fewer lanes or pack smaller shards",
        ),
        (packed, {"classes": ["a"]}, "classes; the model has 1"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            feed(data, **options)
        assert "\n" not in str(caught.value)


def test_a_state_of_other_data_is_refused(folder: Path, packed: Path) -> None:
    with pytest.raises(
        ConfigError, match="the state has seed 3, this loader has 4; resume with the same data"
    ):
        feed(folder, seed=4).load_state_dict(feed(folder).state_dict())
    with pytest.raises(ConfigError, match="the state has kind 'folder', this loader has 'shards'"):
        feed(packed).load_state_dict(feed(folder).state_dict())
    with pytest.raises(ConfigError, match="the state has seed 3, this loader has 4"):
        feed(packed, seed=4).load_state_dict(feed(packed).state_dict())
    with pytest.raises(ConfigError, match="the state has batch_size 8, this loader has 4"):
        feed(packed, batch_size=4).load_state_dict(feed(packed).state_dict())


def test_the_generator_of_training_is_left_alone(folder: Path, packed: Path) -> None:
    expected = torch.rand(4, generator=torch.Generator().manual_seed(5))
    for data in (folder, packed):
        for workers in (0, 1):
            torch.manual_seed(5)
            take(feed(data, workers=workers), 2)
            assert torch.equal(torch.rand(4), expected)


def test_a_dataset_without_its_package_says_what_to_install(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError,
        match=r"^a Hugging Face dataset needs datasets; install it with: pip install 'datasets'$",
    ):
        feed(dataset)
