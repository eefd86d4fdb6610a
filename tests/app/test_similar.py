"""Search in a folder: the images nearest to an image, and those of a class."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from swag_models.api import get_spec, load_classes
from swag_models.app.folder_index import FolderIndex, FolderIndexes
from swag_models.app.service import FileContent
from swag_models.app.similar import find_class, find_similar, list_copies, match_classes
from swag_models.errors import ConfigError
from swag_models.image_decoding import read_image
from swag_models.inference.predict import Classifier

SCENES = Path(__file__).parents[2] / "examples" / "scenes"
SPEC = get_spec("vit_nano_hashtags")


def embed(folder: Path) -> FolderIndex:
    """The index of all images of a folder."""
    index = FolderIndexes(None).open(SPEC, str(folder))
    done, total = index.embed(seconds=60)
    assert done == total
    return index


def test_the_most_similar_images_come_first(folder: Path) -> None:
    found, skipped = find_similar(embed(folder), read_image(SCENES / "chair.jpg"))
    assert found[0].name == "scenes/chair.jpg"
    assert found[0].score == pytest.approx(1)
    assert [image.score for image in found] == sorted(
        (image.score for image in found), reverse=True
    )
    assert len(found) == 8
    assert skipped == []


def test_the_file_itself_can_be_left_out(folder: Path) -> None:
    chair = SCENES / "chair.jpg"
    shutil.copy(chair, folder / "same.jpg")
    (folder / "same size.jpg").write_bytes(bytes(chair.stat().st_size))
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    with chair.open("rb") as file:
        content = FileContent.read(file)
        assert file.tell() == 0
    index = embed(folder)
    copies = list_copies(index, content)
    assert copies == ["same.jpg", "scenes/chair.jpg"]
    found, _ = find_similar(index, read_image(chair), exclude=copies)
    assert len(found) == 8
    assert not {image.name for image in found} & set(copies)


def test_files_that_cannot_be_read_are_listed(folder: Path) -> None:
    (folder / "broken.png").write_bytes((SCENES / "butterfly.jpg").read_bytes()[:60])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    found, skipped = find_similar(embed(folder), read_image(SCENES / "butterfly.jpg"))
    assert len(found) == 8
    assert [Path(image.name).name for image in skipped] == ["broken.png", "gone.png"]
    assert "No such file" in skipped[1].reason


def test_a_folder_of_broken_files_gives_no_images(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("not an image")
    index = embed(tmp_path)
    for found, skipped in (
        find_similar(index, read_image(SCENES / "butterfly.jpg")),
        find_class(index, [0]),
    ):
        assert found == []
        assert len(skipped) == 1


def test_the_probabilities_of_a_class_are_those_of_the_classifier(folder: Path) -> None:
    index, classes = embed(folder), load_classes(SPEC)
    paths = sorted(folder.rglob("*.jpg"))
    cup, chair = classes.index("cup"), classes.index("chair")
    expected = {}
    for path, predictions in zip(paths, Classifier(SPEC)(paths, top_k=len(classes))):
        expected[str(path.relative_to(folder))] = sum(
            prediction.probability for prediction in predictions if prediction.index in (cup, chair)
        )
    found, _ = find_class(index, [cup, chair], count=20)
    assert {image.name: image.score for image in found} == pytest.approx(expected, abs=1e-5)
    assert found[0].name == "scenes/chair.jpg"
    index.spec = replace(SPEC, multi_label=True)  # a sigmoid of each class, of which one counts
    pair, one = (find_class(index, numbers)[0][0] for numbers in ([cup, chair], [cup]))
    assert pair.score >= one.score > 0
    assert pair.score <= 1


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("great white shark", ["great white shark"]),
        ("#GreatWhiteShark", ["great white shark"]),
        (" Great_White-SHARK ", ["great white shark"]),
        ("great grey", ["great grey owl"]),
        ("echidna", ["echidna"]),
    ],
)
def test_a_class_is_named_in_any_spelling(word: str, names: list[str]) -> None:
    spec = get_spec("vit_b16_in1k")
    assert [load_classes(spec)[index] for index in match_classes(spec, word)] == names


def test_a_word_in_several_names_stands_for_all_of_them() -> None:
    spec = get_spec("vit_b16_in1k")
    names = [load_classes(spec)[index] for index in match_classes(spec, "terrier")]
    assert len(names) > 15
    assert all("terrier" in name.lower() for name in names)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sailbot", "has no class 'sailbot'; did you mean sailboat"),
        ("zzzz", "has no class 'zzzz'; its classes include flower, car"),
        ("#", "'#' is not a class"),
        ("x" * 4096, "is not a class: enter a word of at most 100 characters"),
        ("a\nb\x1b", r"has no class 'a\nb\x1b'"),
    ],
)
def test_an_unknown_class_gives_one_line_with_others(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        match_classes(SPEC, word)
    assert message in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 250


def test_a_model_without_classes_says_so() -> None:
    with pytest.raises(ConfigError, match="vit_b16 has no class names to search for"):
        match_classes(get_spec("vit_b16"), "cat")
