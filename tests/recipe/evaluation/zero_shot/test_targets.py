"""Targets are ids, indices or words; what is unknown is named, with what may be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.scenes.gallery import WORDNET
from swag_models.errors import ConfigError
from swag_models.recipe.evaluation.zero_shot.targets import Target, format_target, parse_targets
from swag_models.recipe.hashtags import load_imagenet
from swag_models.recipe.wordnet import Synset, WordNet

DINING, FURNITURE, GATHERING = "n04379243", "n03405725", "n08266235"


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.load(WORDNET)


def test_words_stand_for_their_usual_sense_or_all(wordnet: WordNet) -> None:
    table, owls = parse_targets("table, Owls", wordnet)
    assert (table, owls) == (Target("table", (GATHERING,)), Target("Owls", ("n01621127",)))
    (every,) = parse_targets(["table"], wordnet, senses="all")
    assert every.synsets[0] == GATHERING
    assert DINING in every.synsets


def test_ids_and_what_a_name_means(wordnet: WordNet) -> None:
    found = parse_targets([DINING, f"dining table {DINING}", f"any {DINING} {FURNITURE}"], wordnet)
    assert [target.name for target in found] == [DINING, "dining table", "any"]
    assert [target.synsets for target in found] == [(DINING,), (DINING,), (DINING, FURNITURE)]
    assert [format_target(target, wordnet) for target in found] == [
        f"{DINING} (table)",
        "dining table",
        "any",
    ]


def test_a_file_has_one_in_a_line(wordnet: WordNet, tmp_path: Path) -> None:
    path = tmp_path / "targets.txt"
    path.write_text(f"# what is sought\nowl\n\ntable {DINING}  # of wood\n")
    expected = (Target("owl", ("n01621127",)), Target("table", (DINING,)))
    assert parse_targets(path, wordnet) == parse_targets(str(path), wordnet) == expected


def test_imagenet_is_known_whole_and_by_index() -> None:
    ids = load_imagenet()
    wordnet = WordNet({each: Synset(each, (each,), (), "") for each in ids}, {"thing": ids[:1]}, {})
    assert parse_targets("imagenet-1k", wordnet) == tuple(Target(each, (each,)) for each in ids)
    assert parse_targets("0,999", wordnet) == (Target("0", (ids[0],)), Target("999", (ids[999],)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("owl, tabel", "target 'tabel' is no noun of this WordNet; did you mean table"),
        (
            "xqzw",
            "target 'xqzw' is no noun of this WordNet; give a noun, or say what it is: NAME n04379243",
        ),
        ("n99999999", "no noun of this WordNet has the id n99999999"),
        ("imagenet-1k", "no noun of this WordNet has the id n.*an excerpt has some of them only"),
        ("n04379243 table", "has words after an id; write the name first"),
        ("owl,owl", "more than once: owl"),
        (" , ", "are none"),
    ],
)
def test_what_cannot_be_is_refused(given: str, message: str, wordnet: WordNet) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_targets(given, wordnet)


def test_a_file_must_be_text(wordnet: WordNet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt cannot be read: No such file"):
        parse_targets(tmp_path / "gone.txt", wordnet)
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        parse_targets(tmp_path / "picture.txt", wordnet)
