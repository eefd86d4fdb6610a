"""A folder of pictures is embedded once, and what is like a picture is found in it."""

import shutil
from pathlib import Path

import pytest

from swag_models.api import get_spec
from swag_models.app.similar import Neighbour, Shelf
from swag_models.errors import ConfigError
from swag_models.inference.predict import Skipped
from swag_models.preprocess import read_image

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
SPEC = get_spec("vit_nano_hashtags")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SCENES, tmp_path / "a" / "scenes")
    return tmp_path / "a"


def find(shelf: Shelf, picture: Path, folder: Path) -> tuple[list[Neighbour], list[Skipped]]:
    done, total = shelf.embed(SPEC, str(folder), seconds=60)
    assert done == total
    return shelf.rank(SPEC, str(folder), read_image(picture))


def test_the_most_similar_pictures_come_first(folder: Path) -> None:
    near, skipped = find(Shelf(), SCENES / "chair.jpg", folder)
    assert near[0].name == "scenes/chair.jpg"
    assert near[0].similarity == pytest.approx(1)
    assert [each.similarity for each in near] == sorted(
        (each.similarity for each in near), reverse=True
    )
    assert len(near) == 8
    assert skipped == []


def test_a_folder_is_embedded_in_turns(folder: Path) -> None:
    shelf = Shelf()
    assert shelf.embed(SPEC, str(folder), seconds=0) == (8, 10)
    assert shelf.embed(SPEC, str(folder), seconds=0) == (10, 10)


def test_only_what_is_new_or_has_changed_is_embedded_again(folder: Path) -> None:
    shelf = Shelf()
    find(shelf, SCENES / "house.jpg", folder)
    before = dict(shelf.known)
    shutil.copy(SCENES / "house.jpg", folder / "scenes" / "apple.jpg")
    shutil.copy(SCENES / "house.jpg", folder / "another.png")
    near, _ = find(shelf, SCENES / "house.jpg", folder)
    assert {each.name for each in near[:3]} == {
        "scenes/apple.jpg",
        "scenes/house.jpg",
        "another.png",
    }
    assert all(shelf.known[version] is vector for version, vector in before.items())
    assert len(shelf.known) == len(before) + 2


def test_broken_files_are_left_out_and_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes((SCENES / "butterfly.jpg").read_bytes()[:60])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    near, skipped = find(Shelf(), SCENES / "butterfly.jpg", folder)
    assert len(near) == 8
    assert [Path(each.name).name for each in skipped] == ["broken.png", "gone.png"]
    assert "No such file" in skipped[1].reason


def test_a_folder_of_broken_files_has_nothing_similar(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    near, skipped = find(Shelf(), SCENES / "butterfly.jpg", tmp_path)
    assert near == []
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "is no folder on this machine"), ("empty", "no image in")]
)
def test_a_folder_without_pictures_is_an_error_with_its_name(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message) as raised:
        Shelf().embed(SPEC, str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
