"""Scenarios of webdataset's tests, on shards that this library packs and on webdataset's own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import webdataset
from image_support import make_pixels
from PIL import Image
from shards_support import make_shards
from torch.utils.data import DataLoader

COUNT, SHARD_SIZE = 24, 8

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by webdataset


def write_theirs(folder: Path) -> Path:
    """Write the same kind of samples with webdataset's own writer."""
    folder.mkdir()
    pattern = str(folder / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SHARD_SIZE, verbose=0) as writer:
        for number in range(COUNT):
            file = io.BytesIO()
            Image.fromarray(make_pixels(number, 8, 8)).save(file, "JPEG")
            writer.write({"__key__": f"{number:04d}", "jpg": file.getvalue(), "json": {"n": 1}})
    return folder


@pytest.fixture(scope="module", params=["swag_models", "webdataset"])
def urls(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards with JPEGs and JSON, as a pattern of URLs."""
    folder = tmp_path_factory.mktemp("shards") / "packed"
    if request.param == "swag_models":
        folder.mkdir()
        folder = make_shards(folder, COUNT, SHARD_SIZE)
    else:
        write_theirs(folder)
    return f"{folder}/shard-{{000000..000002}}.tar"


def open_shards(urls: str, **options: Any) -> Any:
    return webdataset.WebDataset(urls, **({"shardshuffle": False} | options))


def test_every_sample_is_read_once(urls: str) -> None:
    keys = [sample["__key__"] for sample in open_shards(urls)]
    assert len(set(keys)) == len(keys) == COUNT


def test_images_and_labels_are_decoded(urls: str) -> None:
    samples = list(open_shards(urls).decode("pil").to_tuple("jpg", "json"))
    assert len(samples) == COUNT
    assert all(image.size == (8, 8) and isinstance(label, dict) for image, label in samples)


def test_tensors_are_batched(urls: str) -> None:
    batches = list(open_shards(urls).decode("torchrgb").to_tuple("jpg").batched(8))
    assert [tuple(batch[0].shape) for batch in batches] == [(8, 3, 8, 8)] * 3


def test_samples_are_mapped_and_selected(urls: str) -> None:
    dataset = open_shards(urls).select(lambda sample: sample["__key__"].endswith("3"))
    dataset = dataset.map_dict(json=json.loads)
    assert all(isinstance(sample["json"], dict) for sample in dataset)


def test_shuffling_changes_the_order_only(urls: str) -> None:
    plain = [sample["__key__"] for sample in open_shards(urls)]
    mixed = [sample["__key__"] for sample in open_shards(urls, shardshuffle=10).shuffle(50)]
    assert mixed != plain
    assert sorted(mixed) == sorted(plain)


def test_resampled_shards_never_end(urls: str) -> None:
    dataset = open_shards(urls, resampled=True).with_epoch(3 * COUNT)
    assert len(list(dataset)) == 3 * COUNT


@pytest.mark.peers
def test_workers_share_the_shards(urls: str) -> None:
    dataset = open_shards(urls).to_tuple("__key__")
    keys = [key for (key,) in DataLoader(dataset, num_workers=2, batch_size=None)]
    assert len(set(keys)) == len(keys) == COUNT


@pytest.mark.peers
def test_datasets_reads_the_shards(urls: str) -> None:
    datasets = pytest.importorskip("datasets")
    folder = Path(urls).parent
    rows = datasets.load_dataset(
        "webdataset",
        data_files={"train": sorted(map(str, folder.glob("*.tar")))},
        split="train",
        streaming=True,
    )
    assert len({row["__key__"] for row in rows}) == COUNT


def test_webdatasets_samples_are_read_by_our_loader(tmp_path: Path) -> None:
    from swag_models.recipe.data.shards import read_shard

    folder = write_theirs(tmp_path / "theirs")
    samples = [sample for path in sorted(folder.glob("*.tar")) for sample in read_shard(str(path))]
    assert len(samples) == COUNT
    assert all({"jpg", "json"} <= sample.keys() for sample in samples)
