"""Stored embeddings find the images of a data set, and never those of another folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from shards_support import encode_jpeg, make_images, make_shards

from swag_models.errors import ConfigError
from swag_models.inference.embeddings_file import hash_rows, write_embeddings_file
from swag_models.inference.image_sources import find_images
from swag_models.recipe.config_overrides import override
from swag_models.recipe.data.embeddings import StoredEmbeddings, open_embedded
from swag_models.recipe.data.label_tables import find_labels
from swag_models.recipe.presets import get_preset
from swag_models.recipe.training.head_state import check_embeddings


def store(folder: Path, names: list[str]) -> StoredEmbeddings:
    """Store one vector for each name, its number."""
    vectors = np.arange(len(names), dtype=np.float32).reshape(-1, 1)
    metadata = {
        **dict.fromkeys(("width", "world_size"), 1),
        "images": len(names),
        "rank": 0,
        "files_hash": "0",
        "skipped": [],
        "rows_sha256": hash_rows(vectors, names),
    }
    write_embeddings_file(folder / "e.npy", vectors, names, metadata)
    return StoredEmbeddings(folder / "e.npy")


def embed(folder: Path, *sources: Path) -> StoredEmbeddings:
    return store(folder, [ref.name for ref in find_images(sources)])


def list_found(data: Path, stored: StoredEmbeddings) -> dict[str, str]:
    """The name of the embedding that each image of the data got."""
    dataset, _ = open_embedded(str(data), stored)
    return {
        str(name): stored.names[int(dataset.read(number))]  # type: ignore[call-overload]
        for number, name in enumerate(dataset.names)
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two data sets with files of equal names."""
    for number, name in enumerate(("a", "b")):
        make_images(tmp_path / name / "owl", ["1", "2"])
        make_images(tmp_path / name / "cat", [str(3 + number)])
    return tmp_path / "a", tmp_path / "b"


def test_no_image_is_found_by_the_end_of_its_path_if_one_is_by_the_whole(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = folders
    stored = embed(tmp_path, a / "owl/1.jpg", a / "cat", b)  # not a/owl/2.jpg
    found = list_found(a, stored)
    assert found == {"cat/3.jpg": f"{a}/cat/3.jpg", "owl/1.jpg": f"{a}/owl/1.jpg"}
    assert "1 image of a left out" in caplog.text
    assert "owl/2.jpg" in caplog.text


def test_a_link_to_the_folder_counts_as_its_whole_path(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(folders[0])
    stored = embed(tmp_path, *folders)
    assert set(list_found(tmp_path / "link", stored).values()) == {
        ref.name for ref in find_images(folders[0])
    }


def test_two_embeddings_for_the_end_of_a_path_are_refused_with_both(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    stored = embed(tmp_path, *folders)
    moved = tmp_path / "moved"
    shutil.copytree(folders[0], moved)
    with pytest.raises(ConfigError, match="several embeddings") as caught:
        open_embedded(str(moved), stored)
    message = str(caught.value)
    assert f"{folders[0]}/owl/1.jpg, {folders[1]}/owl/1.jpg" in message
    assert "\n" not in message


def test_another_folder_with_files_of_equal_names_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, side in (("train", 8), ("val", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "owl 1.jpg").write_bytes(encode_jpeg(0, side))
    stored = embed(tmp_path, tmp_path / "val")
    with pytest.raises(ConfigError, match=r"val/owl 1.jpg, which ends alike and is another"):
        stored.find_all([("owl 1.jpg",)], "data", tmp_path / "train")
    shutil.copytree(tmp_path / "val", tmp_path / "copy")
    with caplog.at_level(logging.WARNING):
        assert stored.find_all([("owl 1.jpg",)], "data", tmp_path / "copy") == [0]
    assert f"such as {tmp_path}/copy/owl 1.jpg by {tmp_path}/val/owl 1.jpg" in caplog.text


def test_a_name_with_its_suffix_is_preferred_to_one_without(tmp_path: Path) -> None:
    stored = store(tmp_path, ["/x/owl.jpg.png", "/x/owl.jpg", "/x/cat.png", "/y/dog.png"])
    assert stored.find_all([("owl.jpg",), ("cat",)], "data") == [1, 2]
    twice = store(tmp_path, ["/x/cat.png", "/x/cat.jpg"])
    with pytest.raises(ConfigError, match=r"/x/cat.png, /x/cat.jpg end alike"):
        twice.find_all([("cat",)], "data")


def test_ids_are_not_mixed_with_keys(tmp_path: Path) -> None:
    # the id of each image is the key of another
    names = [("0", "b"), ("a", "0"), ("c", "1"), ("d", "2")]
    by_key = store(tmp_path, [f"/s/0.tar/{key}.jpg" for _, key in names])
    assert by_key.find_all(names, "data") == [0, 1, 2, 3]
    by_id = store(tmp_path, [f"/images/{name}.jpg" for name, _ in names])
    assert by_id.find_all(names, "data") == [0, 1, 2, 3]


@pytest.mark.slow
def test_packed_shards_are_found_by_their_images_and_by_their_samples(tmp_path: Path) -> None:
    shards = make_shards(tmp_path, 12, 6)
    for source in (tmp_path / "images", shards / "*.tar"):
        stored = embed(tmp_path, source)
        found = list_found(shards, stored)
        assert len(found) == 12
        if source.name == "images":
            assert found == {name: f"{source}/{name}.jpg" for name in found}
        else:
            assert len(set(found.values())) == 12


@pytest.mark.parametrize("setting", ["augment.color_jitter=0.4", "engine.grad_checkpointing=true"])
def test_settings_of_images_are_refused_on_embeddings(setting: str, tmp_path: Path) -> None:
    stored = store(tmp_path, ["a.png"])
    run = override(get_preset("vit_nano_linear").run, [setting])
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]} is .*, and has no effect"):
        check_embeddings(run, stored)


def test_labels_are_found_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "curated" / "labels.parquet"
    path.parent.mkdir()
    path.touch()
    for given in ("~/curated", "~/curated/labels.parquet", Path("~/curated"), path.parent):
        assert find_labels(given) == path
    for given in ("~/other", "https://host/labels.parquet", [str(path)]):
        assert find_labels(given) is None
