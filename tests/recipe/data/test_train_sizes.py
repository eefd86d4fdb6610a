"""Training images of several sizes: one per step, drawn by seed and step, in every process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from loader_support import make_folder, open_loader, take
from shards_support import make_shards

from swag_models.recipe.augmentation import Augment
from swag_models.recipe.data.loader import Decode, Loader
from swag_models.recipe.data.stream import hash_seed
from swag_models.recipe.data.train_loader import merge_states
from swag_models.recipe.data.transforms import Augmentation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]
SIZES = (8, 16, 24)
DRAWN = [SIZES[hash_seed(3, "size", step) % 3] for step in range(12)]
MIXED = Augmentation(Augment(sizes=SIZES), 12, seed=3)


@pytest.fixture(scope="module", params=["folder", "packed"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        return make_folder(folder / "animals")
    return make_shards(folder, 48, 4)


def open_mixed(data: Path, rank: int = 0, world_size: int = 1, **options: Any) -> Any:
    return open_loader(data, rank, world_size, transform=MIXED, **options)


def list_sizes(batches: list[Any]) -> list[int]:
    assert all(batch.images.shape[2] == batch.images.shape[3] for batch in batches)
    return [batch.images.shape[3] for batch in batches]


def test_each_size_is_drawn_equally_often_and_a_seed_changes_the_order() -> None:
    assert len(set(DRAWN)) == 3
    counts = Counter(MIXED.at_step(step).image_size for step in range(3000))
    assert all(abs(counts[size] - 1000) < 120 for size in SIZES)  # over 4 standard deviations
    other = Augmentation(Augment(sizes=SIZES), 12, seed=4)
    assert [other.at_step(step).image_size for step in range(12)] != DRAWN
    plain = Augmentation(Augment(), 12, seed=3)
    assert plain.at_step(5) is plain


def test_all_images_of_a_step_have_its_size(data: Path) -> None:
    batches = take(open_mixed(data), 12)
    assert list_sizes(batches) == DRAWN
    fixed = {
        size: take(open_loader(data, transform=Augmentation(Augment(), size)), 12) for size in SIZES
    }
    for step, (size, batch) in enumerate(zip(DRAWN, batches)):
        assert torch.equal(batch.images, fixed[size][step].images)  # the crops are the same


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_lanes_and_workers_do_not_change_the_size_of_a_step(data: Path, workers: int) -> None:
    for rank in range(2):
        loader = open_mixed(data, rank, 2, workers=workers)
        assert list_sizes(take(loader, 5)) == DRAWN[:5]
        assert list_sizes(take(loader, 4)) == DRAWN[5:9]
        loader.close()
    assert list_sizes(take(open_mixed(data, lanes=2, workers=workers), 9)) == DRAWN[:9]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_loader_continues_with_the_size_of_its_step(data: Path, workers: int) -> None:
    loader = open_mixed(data, workers=workers)
    take(loader, 5)
    state = merge_states([loader.state_dict()])
    expected = take(loader, 6)
    resumed = open_mixed(data, workers=workers)
    resumed.load_state_dict(state)
    batches = take(resumed, 6)
    assert list_sizes(batches) == DRAWN[5:11]
    for batch, twin in zip(batches, expected):
        assert torch.equal(batch.images, twin.images)
    for each in (loader, resumed):
        each.close()


def test_another_number_of_lanes_keeps_the_step(data: Path) -> None:
    loaders = [open_mixed(data, rank, 2) for rank in range(2)]
    for loader in loaders:
        take(loader, 4)
    resumed = open_mixed(data, lanes=1)
    resumed.load_state_dict(merge_states([loader.state_dict() for loader in loaders]))
    assert list_sizes(take(resumed, 5)) == DRAWN[4:9]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_decoder_knows_the_step_over_all_passes(tmp_path: Path, workers: int) -> None:
    class ReadStep(Decode):
        def __call__(self, sample: dict[str, Any]) -> Any:
            return sample["step"], sample["classes"]

    shards = make_shards(tmp_path, 48, 4)
    loader = Loader(shards, ReadStep(), batch_size=4, steps=3, workers=workers)
    steps = [batch[0] for _ in range(3) for batch in loader]
    assert steps == [[step] * 4 for step in range(9)]
