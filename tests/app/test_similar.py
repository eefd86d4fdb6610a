"""Similar images in a folder: each image is embedded once, the nearest are found."""

import shutil
from pathlib import Path

import pytest

from swag_models.api import get_spec
from swag_models.app.service import FileContent
from swag_models.app.similar import SimilarImage, SimilarityIndex, find_indexed_copies
from swag_models.errors import ConfigError
from swag_models.image_decoding import read_image
from swag_models.inference.predict import Skipped

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
SPEC = get_spec("vit_nano_hashtags")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(SCENES, tmp_path / "a" / "scenes")
    return tmp_path / "a"


def find(
    index: SimilarityIndex, image: Path, folder: Path
) -> tuple[list[SimilarImage], list[Skipped]]:
    done, total = index.embed(SPEC, str(folder), seconds=60)
    assert done == total
    return index.rank(SPEC, str(folder), read_image(image))


def test_the_most_similar_images_come_first(folder: Path) -> None:
    neighbours, skipped = find(SimilarityIndex(), SCENES / "chair.jpg", folder)
    assert neighbours[0].name == "scenes/chair.jpg"
    assert neighbours[0].similarity == pytest.approx(1)
    assert [n.similarity for n in neighbours] == sorted(
        (n.similarity for n in neighbours), reverse=True
    )
    assert len(neighbours) == 8
    assert skipped == []


def test_the_file_itself_can_be_left_out(folder: Path) -> None:
    chair = SCENES / "chair.jpg"
    shutil.copy(chair, folder / "same.jpg")
    (folder / "same size.jpg").write_bytes(bytes(chair.stat().st_size))
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    with chair.open("rb") as file:
        content = FileContent.read(file)
        assert file.tell() == 0
    copies = find_indexed_copies(SPEC, str(folder), content)
    assert copies == ["same.jpg", "scenes/chair.jpg"]
    index = SimilarityIndex()
    index.embed(SPEC, str(folder), seconds=60)
    neighbours, _ = index.rank(SPEC, str(folder), read_image(chair), exclude=copies)
    assert len(neighbours) == 8
    assert not {neighbour.name for neighbour in neighbours} & set(copies)


def test_a_folder_is_embedded_over_several_calls(folder: Path) -> None:
    index = SimilarityIndex()
    assert index.embed(SPEC, str(folder), seconds=0) == (8, 10)
    assert index.embed(SPEC, str(folder), seconds=0) == (10, 10)


def test_only_new_and_changed_images_are_embedded_again(folder: Path) -> None:
    index = SimilarityIndex()
    find(index, SCENES / "house.jpg", folder)
    before = dict(index.embeddings)
    shutil.copy(SCENES / "house.jpg", folder / "scenes" / "apple.jpg")
    shutil.copy(SCENES / "house.jpg", folder / "another.png")
    neighbours, _ = find(index, SCENES / "house.jpg", folder)
    assert {n.name for n in neighbours[:3]} == {
        "scenes/apple.jpg",
        "scenes/house.jpg",
        "another.png",
    }
    assert all(index.embeddings[version] is vector for version, vector in before.items())
    assert len(index.embeddings) == len(before) + 2


def test_files_that_cannot_be_read_are_listed(folder: Path) -> None:
    (folder / "broken.png").write_bytes((SCENES / "butterfly.jpg").read_bytes()[:60])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    neighbours, skipped = find(SimilarityIndex(), SCENES / "butterfly.jpg", folder)
    assert len(neighbours) == 8
    assert [Path(image.name).name for image in skipped] == ["broken.png", "gone.png"]
    assert "No such file" in skipped[1].reason


def test_a_folder_of_broken_files_gives_no_neighbours(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("not an image")
    neighbours, skipped = find(SimilarityIndex(), SCENES / "butterfly.jpg", tmp_path)
    assert neighbours == []
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "is not a folder on this machine"), ("empty", "no image in")]
)
def test_a_folder_without_images_is_an_error_with_its_name(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message) as raised:
        SimilarityIndex().embed(SPEC, str(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)
