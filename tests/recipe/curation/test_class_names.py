"""Classes are named by what people wrote most, and no two names of a vocabulary are equal."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curation_support import write_posts

from swag_models.recipe.curation.curate import Curation, curate
from swag_models.recipe.curation.vocabulary import name_classes
from swag_models.recipe.hashtags import canonicalise
from swag_models.recipe.wordnet import WordNet


def write_tags(path: Path, posts: list[list[str]]) -> Path:
    rows = [
        {"id": f"{number:04}", "url": None, "hashtags": tags, "hash": None}
        for number, tags in enumerate(posts)
    ]
    return write_posts(path, rows)


def read_names(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "vocabulary.parquet").to_pylist()
    return {row["synset"]: row["hashtag"] for row in rows}


def test_the_most_used_spelling_is_the_name(wordnet: Path, tmp_path: Path) -> None:
    posts = [["Brown_Bear"], ["brownbear", "bruin"]]
    posts += [["mice"], ["Mice"], ["mouse"]]
    posts += [["Beast"], ["beast"], ["animal"], ["animals"]]
    posts += [["raptor"], ["birdofprey"]]  # equal uses: the alphabet
    posts_file = write_tags(tmp_path / "p.parquet", posts)
    curate([posts_file], tmp_path / "out", wordnet=wordnet, progress=False)
    assert read_names(tmp_path / "out") == {
        "n02132136": "brownbear",
        "n02330245": "mice",
        "n00015388": "beast",
        "n01604330": "birdofprey",
    }


def test_a_hashtag_of_several_words_or_synsets_names_no_class(
    wordnet: Path, tmp_path: Path
) -> None:
    posts = [["house mouse, brown bear"]] * 3 + [["romeitaly"]] * 3 + [["bruin"], ["beast"]]
    posts_file = write_tags(tmp_path / "p.parquet", posts)
    overrides = {"romeitaly": ["animal#1", "bird_of_prey#1"]}
    curate([posts_file], tmp_path / "out", wordnet=wordnet, overrides=overrides, progress=False)
    assert read_names(tmp_path / "out") == {
        "n02332156": "housemouse",
        "n02132136": "bruin",
        "n00015388": "beast",
        "n01604330": "birdofprey",
    }


def test_senses_of_one_word_have_different_names(wordnet: Path, tmp_path: Path) -> None:
    tags = [["bear"]] * 3 + [["bank"]] * 2 + [["brown_bear", "crane"], ["beast"]]
    posts = write_tags(tmp_path / "p.parquet", tags)
    curate([posts], tmp_path / "out", Curation("all"), wordnet=wordnet, progress=False)
    assert read_names(tmp_path / "out") == {
        "n02131653": "bear",
        "n09845191": "bear (entity)",
        "n08420278": "bank",
        "n09213565": "bank (entity)",
        "n02132136": "brownbear",
        "n02012849": "crane",
        "n03126707": "crane (entity)",
        "n00015388": "beast",
    }


@pytest.fixture(scope="module")
def small_wordnet(wordnet: Path) -> WordNet:
    return WordNet.load(wordnet)


@pytest.mark.parametrize("seed", range(50))
def test_names_are_unique_without_separators_too(seed: int, small_wordnet: WordNet) -> None:
    make = random.Random(seed)
    tags = [
        "bear",
        "Bear",
        "bears",
        "crane",
        "crane (entity)",
        "craneentity",
        "!",
        "",
        "\U0003fffd",
        "x" * 2000,
    ]
    synsets = make.sample(sorted(small_wordnet.synsets), make.randrange(1, 12))
    classes = [
        (synset, [(tag, make.randrange(1, 4)) for tag in make.sample(tags, make.randrange(1, 4))])
        for synset in synsets
    ]
    names = name_classes(small_wordnet, classes)
    assert len(set(map(canonicalise, names))) == len(classes)
    assert all(name.isprintable() and 0 < len(name) < 200 for name in names)
