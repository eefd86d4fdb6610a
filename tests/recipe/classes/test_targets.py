"""Targets are ids, indices or nouns; unknown ones are rejected, with suggestions."""

from __future__ import annotations

from pathlib import Path

import pytest
from wordnet_support import needs_wordnet

from studies.scenes.gallery import WORDNET
from swag_models.errors import ConfigError
from swag_models.recipe.classes.wordnet_mapping import (
    Target,
    format_target,
    parse_targets,
)
from swag_models.recipe.hashtags import load_imagenet
from swag_models.recipe.wordnet import Synset, WordNet

DINING, FURNITURE, GATHERING = "n04379243", "n03405725", "n08266235"


@pytest.fixture(scope="module")
def wordnet() -> WordNet:
    return WordNet.load(WORDNET)


def test_noun_stands_for_its_first_sense_or_all(wordnet: WordNet) -> None:
    table, owls = parse_targets("table, Owls", wordnet, senses="first")
    assert (table, owls) == (Target("table", (GATHERING,)), Target("Owls", ("n01621127",)))
    (every,) = parse_targets(["table"], wordnet, senses="all")
    assert every.synsets[0] == GATHERING
    assert DINING in every.synsets


@needs_wordnet
def test_a_noun_means_what_people_mean_by_it_on_images() -> None:
    wordnet = WordNet.load()
    targets = parse_targets("table, men, toaster, glasses, simple, wild", wordnet)
    glosses = [wordnet.synsets[target.synsets[0]].gloss for target in targets]
    starts = ["a piece of furniture", "an adult person who is male", "a kitchen appliance"]
    starts += ["optical instrument", "any herbaceous plant", "a wild primitive state"]
    for gloss, start in zip(glosses, starts, strict=True):
        assert gloss.startswith(start), gloss


def test_ids_after_a_name_define_it(wordnet: WordNet) -> None:
    targets = parse_targets(
        [DINING, f"dining table {DINING}", f"any {DINING} {FURNITURE}"], wordnet
    )
    assert [target.name for target in targets] == [DINING, "dining table", "any"]
    assert [target.synsets for target in targets] == [(DINING,), (DINING,), (DINING, FURNITURE)]
    assert [format_target(target, wordnet) for target in targets] == [
        f"{DINING} (table)",
        "dining table",
        "any",
    ]


def test_file_has_one_target_per_line(wordnet: WordNet, tmp_path: Path) -> None:
    path = tmp_path / "targets.txt"
    path.write_text(f"# a comment\nowl\n\ntable {DINING}  # of wood\n")
    expected = (Target("owl", ("n01621127",)), Target("table", (DINING,)))
    assert parse_targets(path, wordnet) == parse_targets(str(path), wordnet) == expected


def test_imagenet_classes_by_name_and_index() -> None:
    ids = load_imagenet()
    wordnet = WordNet(
        {synset: Synset(synset, (synset,), (), "") for synset in ids}, {"thing": ids[:1]}, {}
    )
    assert parse_targets("imagenet-1k", wordnet) == tuple(
        Target(synset, (synset,)) for synset in ids
    )
    assert parse_targets("0,999", wordnet) == (Target("0", (ids[0],)), Target("999", (ids[999],)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("owl, tabel", "invalid target 'tabel': not a noun of this WordNet; did you mean table"),
        (
            "xqzw",
            "invalid target 'xqzw': not a noun of this WordNet; use a noun, or say what it means",
        ),
        ("n99999999", "no noun of this WordNet has the id n99999999"),
        ("imagenet-1k", "no noun of this WordNet has the id n.*an excerpt has only some of them"),
        ("n04379243 table", "words follow an id; write the name first"),
        ("owl,owl", "listed more than once: owl"),
        (" , ", "no targets in"),
    ],
)
def test_invalid_targets_are_rejected(text: str, message: str, wordnet: WordNet) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_targets(text, wordnet)


def test_unreadable_file_is_rejected(wordnet: WordNet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt cannot be read: No such file"):
        parse_targets(tmp_path / "gone.txt", wordnet)
    (tmp_path / "image.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        parse_targets(tmp_path / "image.txt", wordnet)
