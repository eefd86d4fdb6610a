"""New classes find the rows of a pre-trained head by name, hashtag and WordNet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from wordnet_support import write_wordnet

from studies.scenes.gallery import WORDNET
from swag_models.api import get_spec
from swag_models.recipe.classes.class_rows import ClassRows, NameReader, match_rows
from swag_models.recipe.wordnet import WordNet
from swag_models.spec import ModelSpec

SCENES = get_spec("vit_nano_hashtags")
# name, synset; mouse and the first crane are animals
SMALL = (
    *(("bruin", "n02132136"), ("mouse", "n02330245"), ("crane", "n03126707")),
    *(("hotdog", "n07697537"), ("roadsign", "tag:roadsign")),
)


@pytest.fixture(scope="module")
def scenes_wordnet() -> WordNet:
    return WordNet.load(WORDNET)


@pytest.fixture
def small_wordnet(tmp_path: Path) -> WordNet:
    return WordNet.load(write_wordnet(tmp_path / "dict"))


def make_spec(*rows: tuple[str, str]) -> ModelSpec:
    names, synsets = zip(*rows)
    return replace(SCENES, num_classes=len(rows), classes=names, synsets=synsets, sources=())


def describe(rows: ClassRows) -> dict[str, tuple[str, list[str]]]:
    hashtags = rows.to_dict()["classes"]
    return {name: (kind, hashtags.get(name, [])) for name, kind in zip(rows.names, rows.kinds)}


@pytest.mark.parametrize(
    ("name", "kind", "hashtags"),
    [
        ("flower", "name", ["flower"]),
        ("Motor Vehicle", "name", ["motorvehicle"]),
        ("n07739125", "name", ["apple"]),
        ("n07739125-apples", "name", ["apple"]),
        ("cars", "synset", ["car"]),
        ("sailing boat", "synset", ["sailboat"]),
        ("bird_of_prey", "hyponyms", ["owl"]),
        ("fire truck", "hypernyms", ["truck", "motorvehicle", "wheeledvehicle"]),
        ("crab-apple", "hypernyms", ["apple", "ediblefruit", "fruit"]),
        ("Hund", "", []),
        ("n12345678 flower", "", []),
        ("7", "", []),
        ("...", "", []),
    ],
)
def test_names_of_all_kinds_find_hashtags(
    name: str, kind: str, hashtags: list[str], scenes_wordnet: WordNet
) -> None:
    rows = match_rows(SCENES, [name, "duck"], None, scenes_wordnet)
    assert describe(rows) == {name: (kind, hashtags), "duck": ("name", ["duck"])}
    assert rows.unmatched == (() if kind else (name,))


def test_weights_halve_with_each_step_and_sum_to_1(
    small_wordnet: WordNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = make_spec(("kodiak", "n02132136"), ("syrian", "n02132466"), ("mouse", "n02330245"))
    rows = match_rows(below, ["bear"], ["n02131653"], small_wordnet)
    assert (rows.kinds, rows.weights) == (("hyponyms",), ({0: 2 / 3, 1: 1 / 3},))
    above = make_spec(("entity", "n00001740"), ("bruin", "n02132136"), ("animal", "n00015388"))
    rows = match_rows(above, ["Syrian bear"], None, small_wordnet)
    # 4, 1 and 3 steps up
    assert (rows.kinds, rows.weights) == (("hypernyms",), ({0: 1 / 11, 1: 8 / 11, 2: 2 / 11},))
    monkeypatch.setattr("swag_models.recipe.classes.class_rows.MAX_HYPERNYM_STEPS", 3)
    rows = match_rows(above, ["Syrian bear"], None, small_wordnet)
    assert rows.weights == ({1: 4 / 5, 2: 1 / 5},)


def test_several_names_of_a_class_say_what_it_is(small_wordnet: WordNet) -> None:
    reader = NameReader(small_wordnet, ["crane, animal", "crane", "animal (crane)", "mouse / bear"])
    assert reader.read("crane, animal") == reader.read("animal (crane)") == ("n02012849",)
    assert reader.read("mouse / bear") == ("n02330245", "n02131653")


def test_the_other_classes_say_what_an_ambiguous_name_is(small_wordnet: WordNet) -> None:
    spec = make_spec(*SMALL, ("animal", "n00015388"))
    alone = match_rows(spec, ["crane", "hotdog"], None, small_wordnet)
    assert describe(alone)["crane"] == ("name", ["crane"])
    beside = match_rows(spec, ["crane", "heron", "bird"], None, small_wordnet)
    assert describe(beside)["crane"] == ("hypernyms", ["animal"])


def test_a_hashtag_finds_its_synset_and_a_class_of_its_own_its_name(
    small_wordnet: WordNet,
) -> None:
    spec = make_spec(*SMALL)
    names, synsets = ("teddy", "cranes", "roadsign"), ("n02132136", "n02012849", "tag:roadsign")
    found = describe(match_rows(spec, names, synsets, small_wordnet))
    assert found["teddy"] == ("name", ["bruin"])
    assert found["cranes"] == ("", [])  # the bird, which the model does not have
    assert found["roadsign"] == ("name", ["roadsign"])


def test_wordnet_decides_between_classes_of_one_name(small_wordnet: WordNet) -> None:
    spec = make_spec(("crane", "n02012849"), ("crane", "n03126707"), ("mouse", "n02330245"))
    assert match_rows(spec, ["crane"], None, small_wordnet).weights == ({1: 1.0},)
    assert match_rows(spec, ["crane, animal"], None, small_wordnet).weights == ({0: 1.0},)
    assert match_rows(spec, ["crane"]).weights == ({0: 0.5, 1: 0.5},)


def test_without_wordnet_names_and_ids_match() -> None:
    rows = match_rows(SCENES, ["Sail Boat", "n02512053", "cars"])
    assert rows.kinds == ("name", "name", "")


@pytest.mark.slow
def test_a_vocabulary_of_thousands_of_hashtags_is_matched(
    scenes_wordnet: WordNet,
) -> None:
    spec = make_spec(*((f"tag{n}", synset) for n, synset in enumerate(scenes_wordnet.synsets)))
    words = [lemmas.lemmas[0] for lemmas in scenes_wordnet.synsets.values()]
    rows = match_rows(spec, words, None, scenes_wordnet)
    assert set(rows.kinds) <= {"synset", "hyponyms", "hypernyms", ""}
    assert rows.kinds.count("synset") > 0.9 * len(words)
