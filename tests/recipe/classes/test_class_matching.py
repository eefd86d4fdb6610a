"""Names of classes match in any spelling; ambiguous and unknown ones are named."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks_support import write_image
from tiny import TINY_SPECS, randomise
from wordnet_support import write_wordnet

from swag_models.api import load_model
from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.publish import save
from swag_models.recipe.classes.class_matching import NamedClasses
from swag_models.recipe.evaluation.accuracy.benchmarks import open_benchmark
from swag_models.recipe.evaluation.models import EvaluatedModel, open_evaluated_model

# name, synset, hashtags as written
CLASSES = [
    ("bruin", "n02132136", ["Brown_Bear", "bruin", "Teddy"]),
    ("mouse", "n02330245", ["mice", "mouse", "Maus"]),
    ("crane", "n03126707", ["crane", "hoist"]),
    ("crane (bird)", "n02012849", ["crane", "Kranich", "Teddy"]),
    ("café", "n02935658", ["Cafés"]),
]


@pytest.fixture(scope="module", autouse=True)
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = write_wordnet(tmp_path_factory.mktemp("wordnet") / "dict").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WNHOME", str(folder))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published model of these classes, with its vocabulary."""
    names, synsets, hashtags = zip(*CLASSES, strict=True)
    spec = replace(TINY_SPECS["vit"], num_classes=len(CLASSES), classes=names, synsets=synsets)
    spec = replace(spec, preprocess=replace(spec.preprocess, image_size=32))
    path = tmp_path_factory.mktemp("model") / "model"
    save(randomise(load_model(spec, pretrained=False)), path, license="mit")
    columns: dict[str, Any] = {"class": range(len(CLASSES)), "synset": synsets, "hashtag": names}
    pq.write_table(pa.table({**columns, "hashtags": hashtags}), path / "vocabulary.parquet")
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> EvaluatedModel:
    return open_evaluated_model(str(folder))


def read_labels(root: Path, model: EvaluatedModel, **options: bool) -> dict[str, tuple[int, ...]]:
    dataset: Any = open_benchmark("folder", root, model, **options).data
    return dict(
        zip((name.partition("/")[0] for name in dataset.names), dataset.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("bruin", 0),
        ("n02132136", 0),
        ("brown bear", 0),  # a hashtag, with another separator
        ("BROWN-BEARS", 0),  # an inflection of a lemma
        ("ursus_arctos", 0),  # a lemma that nobody wrote
        ("Mouse", 1),
        ("maus", 1),  # written by people, not in WordNet
        ("crane", 2),  # exactly a class, though the hashtag and the lemma are those of two
        ("Crane", 2),
        ("crane-bird", 3),
        ("kranich", 3),
        ("coffee bars", 4),
        ("cafés", 4),
    ],
)
def test_folders_match_any_spelling_of_a_class(
    name: str,
    number: int,
    model: EvaluatedModel,
    tmp_path: Path,
) -> None:
    write_image(tmp_path / name / "1.png", 1)
    assert read_labels(tmp_path, model) == {name: (number,)}


def test_two_spellings_of_a_class_are_one(model: EvaluatedModel, tmp_path: Path) -> None:
    for name in ("bruin", "Brown Bear"):
        write_image(tmp_path / name / "1.png", 1)
    assert read_labels(tmp_path, model) == {"bruin": (0,), "Brown Bear": (0,)}


def test_an_ambiguous_name_is_an_error_with_the_candidates(
    model: EvaluatedModel, tmp_path: Path
) -> None:
    write_image(tmp_path / "teddy" / "1.png", 1)
    message = r"'teddy' of .* can mean .*: bruin \(n02132136\), crane \(bird\) \(n02012849\); "
    with pytest.raises(ConfigError, match=message):
        open_benchmark("folder", tmp_path, model)
    repeated = NamedClasses("the model", ["crane", "tie", "crane"])
    with pytest.raises(ConfigError, match=r"crane \(number 0\), crane \(number 2\)"):
        repeated.match(["tie", "crane"], "x")


def test_unmatched_folders_are_named_and_can_be_left_out(
    folder: Path,
    model: EvaluatedModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("mouse", "bruins_", "signs_and_symbols", "!"):
        write_image(tmp_path / "data" / name / "1.png", 1)
    arguments = ["recipe", "evaluate", str(folder), "--data", str(tmp_path / "data"), "--quiet"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "the model does not have: !, signs_and_symbols; it has 5 classes, first" in error
    assert error.count("\n") == 1
    assert main([*arguments, "--skip-unmatched", "-o", str(tmp_path / "out")]) == 0
    left_out = (
        "left out 2 classes that the model does not have (!, signs_and_symbols), and 2 images"
    )
    assert caplog.text.count(left_out) == 1
    assert "| 2 |" in capsys.readouterr().out
    labels = read_labels(tmp_path / "data", model, skip_unmatched=True)
    assert labels == {"mouse": (1,), "bruins_": (0,)}


def test_no_class_in_common_is_an_error(model: EvaluatedModel, tmp_path: Path) -> None:
    write_image(tmp_path / "mouze" / "1.png", 1)
    for skip in (False, True):
        with pytest.raises(ConfigError, match="did you mean mouse"):
            open_benchmark("folder", tmp_path, model, skip_unmatched=skip)


def test_without_wordnet_and_vocabulary_names_and_ids_still_match() -> None:
    names, synsets, _ = zip(*CLASSES, strict=True)
    classes = NamedClasses("x", names, [(synset,) for synset in synsets])
    assert classes.match(["Café", "n02330245", "hoist"], "x") == [4, 1, None]


def test_a_vocabulary_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    rows = pq.read_table(folder / "vocabulary.parquet")
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    pq.write_table(rows.slice(1), copy / "vocabulary.parquet")
    write_image(tmp_path / "data" / "teddy" / "1.png", 1)
    with pytest.raises(ConfigError, match=r"vocabulary.parquet does not belong to the model"):
        open_benchmark("folder", tmp_path / "data", open_evaluated_model(str(copy)))


def test_images_of_a_multi_label_list_keep_their_other_labels(
    model: EvaluatedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        write_image(tmp_path / f"{name}.png", 1)
    (tmp_path / "labels.csv").write_text(
        "file_name,labels\na.png,mice hoist\nb.png,hoist spoon\nc.png,spoon\n"
    )
    with caplog.at_level(logging.WARNING):
        dataset: Any = open_benchmark(
            "multilabel", tmp_path / "labels.csv", model, skip_unmatched=True
        ).data
    assert dict(zip(dataset.names, dataset.labels, strict=True)) == {"a.png": (1, 2), "b.png": (2,)}
    assert "left out 1 class that the model does not have (spoon), and 1 image" in caplog.text


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("n02012849-crane", 1),  # as in Stanford Dogs; the word alone would be the machine
        ("N02012849 any words", 1),
        ("n02330245-crane", None),  # no such class, whatever the word says
        ("n020128490", None),
        ("crane", 0),
        ("roadsigns", 2),
        ("Road_Sign", 2),
        ("kanji", 3),
        ("stickman", 4),
        ("stickmen", 4),
    ],
)
def test_ids_before_words_and_plurals_of_classes_without_a_noun(
    name: str, number: int | None
) -> None:
    names = ["crane", "crane (bird)", "roadsign", "kanjis", "stickman"]
    ids = ["n03126707", "n02012849", "tag:roadsign", "tag:kanjis", "tag:stickman"]
    spellings = [["crane"], ["crane"], ["Road_Sign"], ["kanjis"], ["stickman"]]
    classes = NamedClasses("it", names, [[id] for id in ids], lambda: spellings)
    assert classes.match([name], "folder") == [number]
