"""The index of a folder: each image is embedded once, also by the next process."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from swag_models.api import get_spec
from swag_models.app import folder_index
from swag_models.app.folder_index import FolderIndex, FolderIndexes
from swag_models.errors import ConfigError
from swag_models.inference.search import ImageSearch

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
SPEC = get_spec("vit_nano_hashtags")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "indexes"


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are embedded during the test."""
    names: list[str] = []
    load = folder_index.load_folder_embedder
    run = type(load(SPEC)).run

    def count(self: object, images: list[object]) -> object:
        for batch in run(self, images):  # type: ignore[arg-type]
            names.extend(Path(image.name).name for image in batch.images)
            yield batch

    monkeypatch.setattr(type(load(SPEC)), "run", count)
    return names


def open_index(store: Path | None, folder: Path) -> FolderIndex:
    """The index as a new process opens it."""
    return FolderIndexes(store).open(SPEC, str(folder))


def test_a_folder_is_embedded_over_several_calls(folder: Path) -> None:
    index = open_index(None, folder)
    assert index.embed(seconds=0) == (8, 10)
    assert len(index.list_rows()[0]) == 8
    assert index.embed(seconds=0) == (10, 10)


def test_an_index_is_used_at_the_next_start(folder: Path, store: Path, embedded: list[str]) -> None:
    first = open_index(store, folder)
    first.embed(60)
    assert len(embedded) == 10
    second = open_index(store, folder)
    assert second.embed(0) == (10, 10)
    assert len(embedded) == 10
    assert torch.equal(first.list_rows()[1], second.list_rows()[1])
    (file,) = store.rglob("*.npy")
    assert file.parent.stat().st_mode & 0o077 == 0  # others cannot read the names of the images


def test_an_index_that_was_interrupted_is_resumed(
    folder: Path, store: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_index, "SAVE_INTERVAL", -1)  # as after some time
    assert open_index(store, folder).embed(seconds=0) == (8, 10)  # and the process is killed
    index = open_index(store, folder)
    assert index.embed(seconds=0) == (10, 10)
    assert len(embedded) == len(set(embedded)) == 10
    (file,) = store.rglob("*.npy")  # one file with all rows
    assert open_index(store, folder).embed(seconds=0) == (10, 10)
    assert len(embedded) == 10
    result = next(ImageSearch(file)(SCENES / "chair.jpg", 1))  # another program reads it
    assert result.copies == [str(folder / "scenes" / "chair.jpg")]


def test_rows_are_saved_when_the_page_ends(folder: Path, store: Path, embedded: list[str]) -> None:
    indexes = FolderIndexes(store)
    assert indexes.open(SPEC, str(folder)).embed(seconds=0) == (8, 10)
    indexes.close()
    open_index(store, folder).embed(seconds=60)
    assert len(embedded) == 10


def test_only_new_and_changed_images_are_embedded_again(
    folder: Path, store: Path, embedded: list[str]
) -> None:
    for number in range(2):  # in the same process, and in the next one
        index = open_index(store, folder)
        index.embed(seconds=60)
        embedded.clear()
        shutil.copy(SCENES / "house.jpg", folder / "scenes" / "apple.jpg")
        os.utime(folder / "scenes" / "apple.jpg", ns=(number, number))
        shutil.copy(SCENES / "house.jpg", folder / f"another{number}.png")
        removed = ("cup.jpg", "star.jpg")[number]
        (folder / "scenes" / removed).unlink()
        if number:
            index = open_index(store, folder)
        assert index.embed(seconds=60) == (10, 10)
        assert sorted(embedded) == [f"another{number}.png", "apple.jpg"]
        images, vectors, _ = index.list_rows()
        assert removed not in {Path(image.ref.name).name for image in images}
        assert len(vectors) == 10
    (file,) = store.rglob("*.json")
    assert "cup.jpg" not in file.read_text("utf-8")


def test_another_model_has_an_index_of_its_own(
    folder: Path, store: Path, embedded: list[str]
) -> None:
    indexes = FolderIndexes(store, max_indexes=1)
    for name in ("vit_nano_hashtags", "regnety_nano_hashtags") * 2:
        index = indexes.open(get_spec(name), str(folder))
        assert index.embed(seconds=60) == (10, 10)
        assert (
            index.list_rows()[1].shape[1]
            == json.loads(
                next(index._folder.glob("*.json")).read_text("utf-8")  # type: ignore[union-attr]
            )["swag_models"]["width"]
        )
        assert list(indexes.indexes.values()) == [index]
    assert len(embedded) == 20


@pytest.mark.parametrize("damage", ["rows", "names", "states"])
def test_a_damaged_index_is_embedded_again(
    folder: Path, store: Path, embedded: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_index(store, folder).embed(seconds=60)
    (rows,), (names,) = store.rglob("*.npy"), store.rglob("*.json")
    if damage == "rows":
        rows.write_bytes(rows.read_bytes()[:-4] + b"\0\0\0\0")
    else:
        names.write_text(
            names.read_text("utf-8").replace(
                *{"names": ("cup.jpg", "cat.jpg"), "states": ('"states"', '"other"')}[damage]
            )
        )
    with caplog.at_level(logging.WARNING, "swag_models"):
        index = open_index(store, folder)
    assert "a part of an index is embedded again" in caplog.text
    assert index.embed(seconds=60) == (10, 10)
    assert len(embedded) == 20
    assert len(list(store.rglob("*.npy"))) == 1


def test_an_image_that_cannot_be_read_is_tried_again_at_the_next_start(
    folder: Path, store: Path, embedded: list[str]
) -> None:
    (folder / "broken.png").write_text("not an image")
    for _ in range(2):
        index = open_index(store, folder)
        for _ in range(2):
            assert index.embed(seconds=60) == (11, 11)
        assert len(index.list_rows()[2]) == 1
    assert embedded.count("broken.png") == 2
    assert len(embedded) == 12


def test_without_a_writable_disk_the_index_is_kept_in_memory(
    folder: Path, tmp_path: Path, embedded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    index = open_index(tmp_path / "file", folder)
    with caplog.at_level(logging.WARNING, "swag_models"):
        for _ in range(2):
            assert index.embed(seconds=60) == (10, 10)
    assert "cannot be written: " in index.problem
    assert caplog.text.count("the index is kept in memory only") == 1
    assert len(embedded) == 10


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "is not a folder on this machine"), ("empty", "no image in")]
)
def test_a_folder_without_images_is_an_error_with_its_name(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message) as raised:
        open_index(None, tmp_path / name).embed()
    assert str(tmp_path / name) in str(raised.value)
