"""A folder of pictures is embedded once, and what is like a picture is found in it."""

import shutil
from pathlib import Path

import pytest

from swag_models.api import get_spec
from swag_models.app.shelf import Neighbour, Shelf
from swag_models.errors import ConfigError
from swag_models.inference import Skipped
from swag_models.preprocess import read_image

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SPEC = get_spec("vit_nano_digits")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DIGITS, tmp_path / "a" / "digits")
    return tmp_path / "a"


def find(shelf: Shelf, picture: Path, folder: Path) -> tuple[list[Neighbour], list[Skipped]]:
    done, total = shelf.embed(SPEC, str(folder), seconds=60)
    assert done == total
    return shelf.rank(SPEC, str(folder), read_image(picture))


def test_the_most_similar_pictures_come_first(folder: Path) -> None:
    near, skipped = find(Shelf(), DIGITS / "digit_3.png", folder)
    assert near[0].name == "digits/digit_3.png"
    assert near[0].similarity == pytest.approx(1)
    assert [each.similarity for each in near] == sorted((each.similarity for each in near), reverse=True)
    assert len(near) == 8
    assert skipped == []


def test_a_folder_is_embedded_in_turns(folder: Path) -> None:
    shelf = Shelf()
    assert shelf.embed(SPEC, str(folder), seconds=0) == (8, 10)
    assert shelf.embed(SPEC, str(folder), seconds=0) == (10, 10)


def test_only_what_is_new_or_has_changed_is_embedded_again(folder: Path) -> None:
    shelf = Shelf()
    find(shelf, DIGITS / "digit_7.png", folder)
    before = dict(shelf.known)
    shutil.copy(DIGITS / "digit_7.png", folder / "digits" / "digit_0.png")
    shutil.copy(DIGITS / "digit_7.png", folder / "another.png")
    near, _ = find(shelf, DIGITS / "digit_7.png", folder)
    assert {each.name for each in near[:3]} == {"digits/digit_0.png", "digits/digit_7.png", "another.png"}
    assert all(shelf.known[version] is vector for version, vector in before.items())
    assert len(shelf.known) == len(before) + 2


def test_broken_files_are_left_out_and_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes((DIGITS / "digit_1.png").read_bytes()[:60])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    near, skipped = find(Shelf(), DIGITS / "digit_1.png", folder)
    assert len(near) == 8
    assert [Path(each.name).name for each in skipped] == ["broken.png", "gone.png"]
    assert "No such file" in skipped[1].reason


def test_a_folder_of_broken_files_has_nothing_similar(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    near, skipped = find(Shelf(), DIGITS / "digit_1.png", tmp_path)
    assert near == []
    assert len(skipped) == 1


@pytest.mark.parametrize(("name", "message"), [("missing", "is no folder on this machine"), ("empty", "no picture in")])
def test_a_folder_without_pictures_is_an_error_with_its_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message) as raised:
        Shelf().embed(SPEC, str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
