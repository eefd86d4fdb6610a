"""The order of samples depends only on the seed, not on processes or interruptions."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import decode_name, return_batch
from image_support import write_tar
from PIL import Image
from shards_support import (
    Label,
    encode_jpeg,
    hash_name,
    make_labels,
    make_shards,
    write_bare_shards,
)

from swag_models.errors import ConfigError, ImageError, ShardError
from swag_models.recipe.data.loader import Decode, Loader
from swag_models.recipe.data.shards import find_shards
from swag_models.recipe.data.stream import count_copies

# torch forks its workers; threads that earlier tests left running do not matter to them
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

COUNT = 120
LABELS = make_labels(COUNT)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards without images."""
    return write_bare_shards(tmp_path_factory.mktemp("bare"), LABELS, 10)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 40, 8)


def open_loader(shards: Any, **options: Any) -> Loader:
    return Loader(
        shards,
        **{
            "decode": decode_name,
            "batch_size": 7,
            "collate": return_batch,
            "window": 2,
            "buffer": 20,
            **options,
        },
    )


def list_samples(batches: Any) -> list[tuple[str, int, int]]:
    return [sample for batch in batches for sample in batch]


def count_names(labels: dict[str, Label], epoch: int, seed: int = 0) -> Counter[str]:
    copies = {name: count_copies(name, repeat, epoch, seed) for name, (_, repeat) in labels.items()}
    return Counter({name: number for name, number in copies.items() if number})


def test_an_epoch_has_every_sample_as_often_as_its_repeat_factor(bare: list[str]) -> None:
    loader = open_loader(bare)
    for epoch in range(3):
        samples = list_samples(loader)
        assert Counter(name for name, _, _ in samples) == count_names(LABELS, epoch)
        assert {sample_epoch for _, sample_epoch, _ in samples} == {epoch}
        assert len({number for _, _, number in samples}) == len(samples), (
            "random numbers differ, between copies too"
        )
    assert loader.epoch == 3


def test_epochs_are_reproducible_and_differ_from_each_other(bare: list[str]) -> None:
    first, second, other = open_loader(bare), open_loader(bare), open_loader(bare, seed=1)
    epochs = [list(first) for _ in range(2)]
    assert epochs == [list(second) for _ in range(2)]
    names = [[name for name, _, _ in list_samples(batches)] for batches in [*epochs, other]]
    assert names[0] != names[1] != names[2] != names[0]


def test_the_buffer_shuffles_samples_and_copies(bare: list[str]) -> None:
    names = [name for name, _, _ in list_samples(open_loader(bare, buffer=10_000, window=10))]
    assert sum(before == after for before, after in itertools.pairwise(names)) < len(names) / 10, (
        "copies are apart"
    )
    first_half, second_half = names[: len(names) // 2], names[len(names) // 2 :]
    shard_of = {name: number % 10 for number, name in enumerate(sorted(LABELS, key=hash_name))}
    assert (
        {shard_of[name] for name in first_half}
        == {shard_of[name] for name in second_half}
        == set(range(10))
    )


def test_the_number_of_copies_has_the_expected_mean_and_variance(tmp_path: Path) -> None:
    labels = make_labels(4000)
    loader = open_loader(write_bare_shards(tmp_path, labels, 16), workers=2, batch_size=256)
    for _ in range(2):
        counts = Counter(
            number for name, _, _ in list_samples(loader) for number in labels[name][0]
        )
        for number in range(10):
            repeats = [repeat for classes, repeat in labels.values() if number in classes]
            expected, variance = (
                math.fsum(repeats),
                math.fsum(repeat % 1 * (1 - repeat % 1) for repeat in repeats),
            )
            assert abs(counts[number] - expected) <= 3 * math.sqrt(variance)


RANK = """
import json, sys
from decoding import decode_name, return_batch
from swag_models.recipe.data.loader import Loader

if __name__ == "__main__":
    options = {"batch_size": 7, "collate": return_batch, "window": 2, "buffer": 20, "workers": 2}
    loader = Loader(json.loads(sys.argv[1]), decode_name, **options)
    print(json.dumps([[sample for batch in loader for sample in batch] for _ in range(2)]))
"""


@pytest.mark.slow
def test_two_ranks_of_two_workers_see_the_epoch_of_one_process(
    bare: list[str], tmp_path: Path
) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    ranks = []
    for rank in range(2):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": ":".join(sys.path)}
        command = [sys.executable, str(tmp_path / "rank.py"), json.dumps(bare)]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    first, second = (json.loads(process.communicate()[0]) for process in ranks)
    alone = open_loader(bare, rank=0, world_size=1)
    for epoch in range(2):
        assert first[epoch]
        assert second[epoch]
        together = sorted(map(tuple, first[epoch] + second[epoch]))
        assert together == sorted(list_samples(alone)), "copies and their random numbers included"


def check_resumed(make: Any, total: list[Any], stop: int) -> None:
    """Stop after `stop` batches, resume in a new loader, and compare with all batches."""
    loader = make()
    before = list(itertools.islice(iterate_forever(loader), stop))
    state = json.loads(json.dumps(loader.state_dict()))
    loader = make()
    loader.load_state_dict(state)
    after = list(itertools.islice(iterate_forever(loader), len(total) - stop))
    assert before + after == total


def iterate_forever(loader: Loader) -> Iterator[Any]:
    while True:
        yield from loader


@pytest.mark.parametrize("steps", ["exact", 13])
def test_a_resumed_stream_equals_the_uninterrupted_one(steps: Any, bare: list[str]) -> None:
    total = list(itertools.islice(iterate_forever(open_loader(bare, steps=steps)), 50))
    assert {epoch for batch in total for _, epoch, _ in batch} == {0, 1}
    for stop in range(0, 51, 2 if steps == "exact" else 5):
        check_resumed(lambda: open_loader(bare, steps=steps), total, stop)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize(
    ("workers", "steps"), [(1, "exact"), (2, 13), pytest.param(3, "exact", marks=pytest.mark.slow)]
)
def test_a_resumed_stream_of_workers_equals_the_uninterrupted_one(
    workers: int, steps: Any, bare: list[str]
) -> None:
    shards = (
        bare[:4] if workers == 3 else bare
    )  # three workers end an epoch of four shards at different times
    make = lambda: open_loader(shards, steps=steps, workers=workers, prefetch_factor=3)  # noqa: E731
    total = list(itertools.islice(iterate_forever(make()), 45))
    epoch = next(
        number
        for number, batch in enumerate(total)
        if any(sample_epoch for _, sample_epoch, _ in batch)
    )
    for stop in (1, 5, epoch - 2, epoch - 1, epoch) if workers == 3 else (5, epoch):
        check_resumed(make, total, stop)


@pytest.mark.parametrize(
    "context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
)  # every process imports torch again
def test_a_loader_can_be_reset_and_a_pass_left_early(context: str, bare: list[str]) -> None:
    total = list(itertools.islice(iterate_forever(open_loader(bare, workers=2)), 45))
    loader = open_loader(bare, workers=2, persistent_workers=True, multiprocessing_context=context)
    start = loader.state_dict()
    assert list(itertools.islice(iterate_forever(loader), 45)) == total
    loader.load_state_dict(start)
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == 5:
            break
    middle = loader.state_dict()
    batches += list(itertools.islice(iterate_forever(loader), 40))
    assert batches == total, "a `for` resumes where the last one ended"
    loader.load_state_dict(middle)
    assert list(itertools.islice(iterate_forever(loader), 40)) == total[5:45]


def test_all_ranks_take_the_same_number_of_steps_and_lose_no_sample(packed: Path) -> None:
    expected = 0.0
    loaders = [
        open_loader(packed, steps="expected", batch_size=5, rank=rank, world_size=2)
        for rank in range(2)
    ]
    _, manifest = find_shards(packed)
    assert manifest is not None
    expected = manifest["samples"]
    rank_passes = [[list(loader) for _ in range(6)] for loader in loaders]
    assert (
        {len(batches) for passes in rank_passes for batches in passes}
        == {int(expected // 10)}
        == {len(loaders[0])}
    )
    first = [
        sample
        for passes in rank_passes
        for batches in passes
        for sample in list_samples(batches)
        if sample[1] == 0
    ]
    assert Counter(name for name, _, _ in first) == count_names(make_labels(40), 0), (
        "streams end their epochs by themselves"
    )


def test_the_global_generator_of_torch_is_not_changed(bare: list[str]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    for workers in (0, 1):
        torch.manual_seed(3)
        list(open_loader(bare, workers=workers))
        assert torch.equal(torch.rand(4), expected)


def test_the_state_of_another_stream_is_rejected(bare: list[str]) -> None:
    state = open_loader(bare).state_dict()
    for options, message in {
        ("seed", 1): "the state has seed 0, this loader has 1",
        ("workers", 2): "the state has workers 1, this loader has 2",
        ("world_size", 2): "the state has world_size 1, this loader has 2",
        ("window", 3): "the state has window 2, this loader has 3",
        ("steps", 5): "the state has exact True, this loader has False",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)):
            open_loader(bare, **dict([options])).load_state_dict(state)
    with pytest.raises(ConfigError, match="the state has rank 0, this loader has 1"):
        open_loader(bare, rank=1, world_size=2).load_state_dict(
            open_loader(bare, rank=0, world_size=2).state_dict()
        )
    with pytest.raises(ConfigError, match="the state has shards "):
        open_loader(bare[:-1]).load_state_dict(state)


def test_the_default_decoder_returns_images_and_classes(packed: Path) -> None:
    labels = make_labels(40)
    names_by_pixels = {
        Image.open(packed.parent / "images" / f"{name}.jpg").tobytes(): name for name in labels
    }
    ((images, classes),) = list(Loader(packed, batch_size=1000))
    names = [names_by_pixels[image.tobytes()] for image in images]
    assert Counter(names) == count_names(labels, 0)
    assert classes == [tuple(labels[name][0]) for name in names]


def test_random_transforms_do_not_depend_on_the_number_of_workers(packed: Path) -> None:
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(6), v2.RandomHorizontalFlip(), v2.ToImage()])
    rows = []
    for workers in (0, 2):
        images = [
            image
            for batch, _ in Loader(packed, Decode(transform), batch_size=4, workers=workers)
            for image in batch
        ]
        assert images[0].shape == (3, 6, 6)
        rows.append(sorted(image.numpy().tobytes() for image in images))
    assert rows[0] == rows[1]
    assert len(set(rows[0])) > len(rows[0]) * 0.9


def test_repeat_factors_can_be_changed_without_packing_again(packed: Path) -> None:
    loader = open_loader(packed, repeat=len)
    assert Counter(name for name, _, _ in list_samples(loader)) == Counter(
        {name: len(classes) for name, (classes, _) in make_labels(40).items()}
    )
    with pytest.raises(
        ConfigError, match="steps 'expected' needs the manifest and repeat factors of packed shards"
    ):
        open_loader(packed, repeat=len, steps="expected")


def test_shards_of_other_tools_are_read(tmp_path: Path) -> None:
    members = {}
    for number in range(6):
        members |= {
            f"00000000{number}.jpg": encode_jpeg(number),
            f"00000000{number}.cls": str(number % 3).encode(),
        }
    shard = write_tar(tmp_path / "wds.tar", members)
    ((images, classes),) = list(Loader(shard, batch_size=10))
    assert len(images) == 6
    assert sorted(classes) == [(0,), (0,), (1,), (1,), (2,), (2,)]
    record = json.dumps({"key": "00042", "caption": "a #cat", "exif": "{}"}).encode()
    downloaded = write_tar(
        tmp_path / "img2dataset.tar",
        {"00042.jpg": encode_jpeg(0), "00042.json": record, "00042.txt": b"a #cat"},
    )
    loader = Loader(downloaded, batch_size=1, classes=lambda sample: [len(sample["txt"])])
    assert [classes for _, classes in loader] == [[(6,)]]
    with pytest.raises(
        ConfigError,
        match=r"00042 in .*img2dataset\.tar has no classes; pass a function",
    ):
        list(Loader(downloaded, batch_size=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_errors_that_name_them_or_are_counted(
    workers: int, tmp_path: Path
) -> None:
    def write_shard(name: str, numbers: Any, content: Any = encode_jpeg) -> Path:
        members = {}
        for number in numbers:
            members |= {f"{number}.jpg": content(number), f"{number}.cls": b"0"}
        return write_tar(tmp_path / name, members)

    good_shard, cut_shard = write_shard("good.tar", range(5)), write_shard("cut.tar", range(5, 10))
    cut_shard.write_bytes(cut_shard.read_bytes()[: 512 * 12])
    bad_shard = write_shard("bad.tar", [10], lambda number: encode_jpeg(number)[:-60])
    with pytest.raises(ImageError, match=r"^10 in .*bad\.tar cannot be read: .*$"):
        list(Loader([good_shard, bad_shard], batch_size=2, workers=workers))
    with pytest.raises(
        ShardError, match=r"^shard .*cut\.tar cannot be read: unexpected end of data$"
    ):
        list(Loader([good_shard, cut_shard], batch_size=2, workers=workers))
    loader = Loader(
        [good_shard, cut_shard, bad_shard], batch_size=2, workers=workers, skip_broken=True
    )
    assert sum(len(images) for images, _ in loader) == 5 + 1, (
        "one sample of the truncated shard is complete"
    )
    assert sorted(loader.skipped.values()) == [1, 1]
    assert "\n" not in "".join(loader.skipped)


def test_an_error_is_raised_again_and_does_not_end_the_epoch(tmp_path: Path) -> None:
    shard = write_tar(
        tmp_path / "bad.tar", {"x.jpg": encode_jpeg(0), "x.cls": b"0", "y.jpg": b"", "y.cls": b"0"}
    )
    for workers in (0, 1):
        loader = Loader(shard, batch_size=1, workers=workers)
        for _ in range(2):
            with pytest.raises(ImageError, match="y in "):
                list(loader)


def test_invalid_arguments_are_rejected_in_one_line(bare: list[str]) -> None:
    for options, message in [
        ({"batch_size": 0}, "invalid batch_size 0: allowed: 1 or more"),
        ({"buffer": 0}, "invalid buffer 0: allowed: 1 or more"),
        ({"rank": 2, "world_size": 2}, "invalid rank 2: with world_size 2 allowed 0 to 1"),
        ({"steps": 0}, "invalid steps 0: allowed 'exact', 'expected'"),
        ({"steps": "all"}, "invalid steps 'all': allowed 'exact', 'expected'"),
        ({"steps": "expected"}, "steps 'expected' needs the manifest"),
        (
            {"steps": 3, "rank": 0, "world_size": 6, "workers": 2},
            "too few shards, 10, for 6 ranks x 2 workers",
        ),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            open_loader(bare, **options)
    with pytest.raises(ConfigError, match=r"no sample in 100 epochs of 2 shards, .*bare-00"):
        list(open_loader(bare[:2], steps=1, repeat=lambda classes: 0))
    assert list(open_loader(bare[:2], repeat=lambda classes: 0)) == []
    with pytest.raises(TypeError, match="known only at its end"):
        len(open_loader(bare))


INVALID_LABELS = (
    b"", b"[", b"[]", b"\xff", b"[" * 100_000, b'{"classes": 1}', b'{"classes": ["1"]}',
    b'{"classes": [1.5]}', b'{"classes": [true]}', b'{"classes": [-1]}', b'{"classes": [1e400]}',
    b'{"classes": [' + b"9" * 30 + b"]}", b'{"classes": null, "repeat": 1}',
    b'{"classes": [1], "repeat": "2"}', b'{"classes": [1], "repeat": NaN}',
    b'{"classes": [1], "repeat": -1}', b'{"classes": [1], "repeat": 1e400}',
    b'{"classes": [1], "repeat": 1000001}',
)  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_with_an_invalid_label_are_counted_or_refused(workers: int, tmp_path: Path) -> None:
    members = {
        "good.json": b'{"classes": [1]}',
        "good.jpg": encode_jpeg(0),
        "z.jpg": b"",
        "z.cls": b"x",
    }
    bad = {f"{n}.json": label for n, label in enumerate(INVALID_LABELS) if b"null" not in label}
    path = write_tar(tmp_path / "x.tar", {**members, **bad})
    loader = Loader(str(path), batch_size=4, workers=workers, skip_broken=True)
    ((images, classes),) = list(loader)
    assert (len(images), classes) == (1, [(1,)])
    assert sum(loader.skipped.values()) == len(bad) + 1
    assert all("has an invalid label: " in reason for reason in loader.skipped)
    for label in INVALID_LABELS:
        path = write_tar(tmp_path / "y.tar", {"a.json": label})
        with pytest.raises((ImageError, ConfigError), match=r"^a in .*y\.tar has (an invalid|no)"):
            list(Loader(str(path), batch_size=4))
