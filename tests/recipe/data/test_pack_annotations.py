"""Packing images with the labels of an annotation file: shards know the names of their classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from decoding import to_bytes
from image_support import write_images
from loader_support import open_loader, take

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.data.manifest import read_manifest
from swag_models.recipe.data.pack import pack
from swag_models.recipe.data.sources import open_source

LABELS = {"0.png": ["dog", "cat"], "1.png": [], "2": ["emu"], "gone.png": ["cat"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three labelled images of four, and one without a row."""
    for number, path in enumerate(write_images(tmp_path / "images", 4)):
        path.rename(path.with_name(f"{number}.png"))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    return tmp_path


def test_shards_have_all_labels_and_the_names_of_classes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recipe", "pack", "--labels", str(folder / "labels.json")]
    command += ["--images", str(folder / "images"), "-o", str(folder / "shards"), "--quiet"]
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "1 rejected: no image" in err
    assert "3 images in 1 shard; 1 image without a label" in err
    manifest = read_manifest(str(folder / "shards" / "manifest.json"))
    assert (manifest["class_names"], manifest["num_classes"]) == (["cat", "dog", "emu"], 3)
    assert manifest["class_samples"] == [1, 1, 1], "the cat of a missing image does not count"
    loader = open_loader(folder / "shards", batch_size=3, transform=to_bytes)
    assert loader.class_names == ("cat", "dog", "emu")
    assert list(loader.count_classes()) == [1, 1, 1]
    (batch,) = take(loader, 1)
    found = {name: set(labels) for name, labels in zip(batch.ids, batch.classes)}
    assert found == {"0": {0, 1}, "1": set(), "2": {2}}
    before = {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}
    assert main(command) == 0
    assert before == {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def test_classes_in_another_order_are_rejected(folder: Path) -> None:
    pack(folder / "labels.json", folder / "images", folder / "shards", progress=False)
    assert open_source(folder / "shards", ["cat", "dog", "emu", "yak"]).num_classes == 4
    with pytest.raises(ConfigError, match="shards has class 'dog' where the model has 'emu'; give"):
        open_source(folder / "shards", ["cat", "emu", "dog"])
    manifest = folder / "shards" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"emu"', '"emu", "yak"'))
    with pytest.raises(ConfigError, match="class_names has 4 names for 3 classes; pack again"):
        open_source(folder / "shards")


def test_images_of_the_same_id_and_invalid_files_are_rejected(folder: Path) -> None:
    labels = folder / "labels.json"
    for content, message in (
        ('{"a/0.png": ["cat"], "b/0.png": ["dog"]}', "have the same id '0'; rename one"),
        ('{"0.png": [3.5]}', "row 1 has label 3.5; allowed: text"),
        ('{"9.png": ["cat"]}', "no image has a label"),
    ):
        labels.write_text(content)
        with pytest.raises(ConfigError, match=message):
            pack(labels, folder / "images", folder / "shards", progress=False)
        assert not (folder / "shards.work").exists()
