"""Image folders and Hugging Face datasets are read as labelled images."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding import to_bytes
from loader_support import COUNT, make_dataset, make_folder, open_loader, take
from shards_support import encode_jpeg
from torchvision.datasets import ImageFolder

from swag_models.errors import ConfigError, ImageError
from swag_models.recipe.data.datasets import open_image_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("folder") / "animals")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Path:
    return make_dataset(folder)


def test_a_folder_has_the_images_and_classes_of_torchvision(folder: Path) -> None:
    peer = ImageFolder(
        str(folder), is_valid_file=lambda path: path.endswith(".png"), allow_empty=True
    )
    class_names = [name for name in peer.classes if not name.startswith(".")]
    loader = open_loader(folder, transform=to_bytes, batch_size=COUNT)
    assert loader.class_names == tuple(class_names)
    assert (loader.num_classes, loader.samples) == (3, COUNT)
    (batch,) = take(loader, 1)
    expected = {
        str(Path(path).relative_to(folder)): (peer.classes[label], image)
        for (path, label), (image, _) in zip(peer.samples, peer)
    }
    assert set(batch.ids) == set(expected)
    for name, classes, image in zip(batch.ids, batch.classes, batch.images):
        assert (class_names[classes[0]], len(classes)) == (expected[name][0], 1)
        assert torch.equal(image, to_bytes(expected[name][1]))


def test_a_dataset_on_disk_equals_the_folder_it_was_made_from(folder: Path, dataset: Path) -> None:
    (of_folder,), loader = (
        take(open_loader(folder, transform=to_bytes, batch_size=COUNT), 1),
        open_loader(dataset, batch_size=COUNT, transform=to_bytes),
    )
    (of_dataset,) = take(loader, 1)
    pixels = [
        {image.numpy().tobytes(): labels for image, labels in zip(batch.images, batch.classes)}
        for batch in (of_folder, of_dataset)
    ]
    assert pixels[0] == pixels[1]
    assert sorted(of_dataset.ids, key=int) == [str(row) for row in range(COUNT)]
    assert loader.class_names == ("cat", "dog", "emu")
    assert {key: loader.facts[key] for key in ("kind", "name", "samples", "classes")} == {
        "kind": "dataset",
        "name": "saved/train",
        "samples": COUNT,
        "classes": 3,
    }
    assert open_loader(dataset / "test").samples == 3


def test_a_dataset_can_have_bytes_lists_of_classes_and_no_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [encode_jpeg(number) for number in range(4)], "label": [[0], [1, 4], [], [2]]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
    loader = open_loader(tmp_path / "rows", batch_size=4, transform=to_bytes)
    (batch,) = take(loader, 1)
    assert dict(zip(batch.ids, batch.classes)) == {"0": (0,), "1": (1, 4), "2": (), "3": (2,)}
    assert (loader.num_classes, loader.class_names) == (5, None)
    names = datasets.ClassLabel(names=["cat", "dog", "emu"])
    features = datasets.Features({"image": datasets.Value("binary"), "labels": [names]})
    rows = {"image": rows["image"], "labels": [[0, 2], [], [1], [2]]}
    shutil.rmtree(tmp_path / "rows")
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "rows"))
    loader = open_loader(tmp_path / "rows", batch_size=4, transform=to_bytes)
    assert loader.class_names == ("cat", "dog", "emu")
    assert sorted(take(loader, 1)[0].classes) == [(), (0, 2), (1,), (2,)]
    for rows, message in (
        (
            {"image": [b""], "tag": [1]},
            "has no column label; its columns are image, tag: rename one with",
        ),
        (
            {"image": [b""], "label": ["cat"]},
            "row 0 of .* has label 'cat'; allowed: integers of at least 0",
        ),
        ({"image": [b"", b""], "label": [1, -1]}, "row 1 of .* has label -1; allowed"),
    ):
        shutil.rmtree(tmp_path / "rows")
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "rows"))
        with pytest.raises(ConfigError, match=message):
            open_loader(tmp_path / "rows")


def test_classes_are_numbered_as_those_of_the_model(folder: Path, dataset: Path) -> None:
    head = ["emu", "yak", "cat", "dog"]
    for data in (folder, dataset):
        loader = open_loader(data, classes=head, batch_size=COUNT, transform=to_bytes)
        assert (loader.num_classes, loader.class_names) == (4, tuple(head))
        (batch,) = take(loader, 1)
        assert Counter(batch.classes) == {(2,): 9, (3,): 7, (0,): 5}
        with pytest.raises(
            ConfigError,
            match="that the model does not have: cat, emu; it has 2 classes, first dog, yak",
        ):
            open_loader(data, classes=["dog", "yak"])
        with pytest.raises(
            ConfigError, match="has classes that the model has more than once: cat; it has 4"
        ):
            open_loader(data, classes=["cat", "dog", "emu", "cat"])


def test_a_missing_package_of_datasets_is_named(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError,
        match=r"^a Hugging Face dataset needs datasets; install it with: pip install 'datasets'$",
    ):
        open_loader(dataset)


def test_images_can_be_relabelled_cropped_and_sent_to_processes(folder: Path) -> None:
    images = open_image_folder(folder)
    index = images.names.index("dog/0.png")
    subset = images.relabel({index: (4, 7), 0: ()}, None, 8, border=2)
    subset = pickle.loads(pickle.dumps(subset))
    assert (len(subset), subset.labels, subset.num_classes) == (2, [(4, 7), ()], 8)
    assert (subset.class_names, subset.name(0), subset.files) == (None, "dog/0.png", images.files)
    assert np.array_equal(subset.read(0), np.asarray(images.read(index))[2:-2, 2:-2])
    assert subset.sha256 != images.sha256
    assert subset.sha256 == images.relabel({index: (4, 7), 0: ()}, None, 8).sha256
    with pytest.raises(
        ImageError, match=r"dog/0\.png has 12x10 pixels, too few to crop 5 from each edge"
    ):
        images.relabel({index: (0,)}, None, 1, border=5).read(0)
