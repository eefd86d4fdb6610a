"""Captions of generated scenes: frequencies, groups, noise, and senses in WordNet."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import make_wordnet_excerpt as excerpt
import pytest

from studies.scenes.captions import (
    ADJECTIVES,
    EMPTY,
    MAX_EMPTY,
    NO_TRUE_HASHTAG,
    WRONG_HASHTAG,
    pluralise,
)
from studies.scenes.gallery import WORDNET
from studies.scenes.posts import REPOSTS, SceneImage, make_held_out, make_post
from studies.scenes.scene import PAIRS
from studies.scenes.things import NAMES, PLANTED, THINGS, Thing

POSTS = 6000
FULL = Path(os.environ.get("WNSEARCHDIR", "/usr/share/wordnet"))
OTHERWISE = {"table", "banana", "bike"}  # words whose most frequent sense is something else


@pytest.fixture(scope="module")
def posts() -> list[SceneImage]:
    return [make_post(0, number) for number in range(POSTS)]


@pytest.fixture(scope="module")
def first_posts(posts: list[SceneImage]) -> list[SceneImage]:
    return [post for post in posts if post.truth["repost_of"] is None]


def read_nouns(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Index lines by lemma and data lines by synset."""
    index = {line.split(" ", 1)[0]: line for line in excerpt.read(folder / "index.noun")[1]}
    return index, {line[:8]: line for line in excerpt.read(folder / "data.noun")[1]}


NOUNS = read_nouns(WORDNET)


def find_ancestors(synset: str) -> set[str]:
    parents = set(excerpt.follow(NOUNS[1], synset, excerpt.UP))
    return parents.union(*map(find_ancestors, parents))


def assert_share(count: int, total: int, share: float) -> None:
    """Within four standard errors."""
    assert abs(count - share * total) <= 4 * math.sqrt(total * share * (1 - share)), (
        count / total,
        share,
    )


def test_the_kth_thing_is_met_one_kth_as_often(first_posts: list[SceneImage]) -> None:
    counts = Counter(post.scene.things[0] for post in first_posts)
    harmonic = sum(1 / rank for rank in range(1, len(NAMES) + 1))
    for rank, name in enumerate(NAMES, 1):
        assert_share(counts[name], len(first_posts), 1 / (rank * harmonic))


def test_groups_differ_in_the_planted_things_alone(first_posts: list[SceneImage]) -> None:
    groups = Counter(post.scene.group for post in first_posts)
    assert_share(groups["a"], len(first_posts), 0.5)
    shown = Counter((name, post.scene.group) for post in first_posts for name in post.scene.things)
    for name in NAMES:
        of_a, of_b = shown[name, "a"], shown[name, "b"]
        if group := PLANTED.get(name):
            assert (of_a / of_b if group == "a" else of_b / of_a) > 2, name
        else:
            assert_share(of_a, of_a + of_b, groups["a"] / len(first_posts))
    assert Counter(PLANTED.values()) == {"a": 3, "b": 2}


def test_noise_is_as_frequent_as_stated(first_posts: list[SceneImage]) -> None:
    total = len(first_posts)
    assert_share(sum(len(post.scene.things) == 2 for post in first_posts), total, PAIRS)
    drawn = [post.truth["wrong"] for post in first_posts]
    assert 0.8 * WRONG_HASHTAG < sum(map(bool, drawn)) / total < WRONG_HASHTAG, (
        "those drawn that are in the image are not wrong"
    )
    empty = [len(set(EMPTY) & set(post.truth["hashtags"])) for post in first_posts]
    assert 0.6 * MAX_EMPTY / 2 < sum(empty) / total < MAX_EMPTY / 2, "a few are drawn twice"
    silent = [
        not set(post.truth["hashtags"]) - set(EMPTY) - set(post.truth["wrong"])
        for post in first_posts
    ]
    assert_share(sum(silent), total, NO_TRUE_HASHTAG)
    counts = Counter(tag for post in first_posts for tag in post.truth["hashtags"])
    assert counts.most_common(1)[0][0] == EMPTY[0]
    assert counts[EMPTY[0]] > 1.5 * counts[EMPTY[1]] > 1.5 * counts[EMPTY[3]] > counts[EMPTY[15]]


def test_every_form_of_hashtag_occurs(posts: list[SceneImage]) -> None:
    tags = {tag for post in posts for tag in post.truth["hashtags"]}
    assert {
        "car",
        "Car",
        "CAR",
        "cars",
        "automobile",
        "MyCar",
        "voiture",
        "車",
        "motor_vehicle",
        "MotorVehicle",
    } <= tags
    assert {"sailing_boat", "SailingBoat", "sailingboat", "butterflies", "cacti", "floewr"} <= tags


def test_hashtags_can_be_extracted_from_every_caption(posts: list[SceneImage]) -> None:
    for post in posts:
        plain = re.sub(r"https?://\S+|&#?\w+;", " ", post.row["caption"])
        found = [tag for tag in re.findall(r"[#\uff03](\w+)", plain) if not tag.isdigit()]
        assert tuple(found) == post.truth["hashtags"]


def test_a_repost_has_the_url_of_an_earlier_post_and_nothing_else_of_it(
    posts: list[SceneImage],
) -> None:
    reposts = [post for post in posts if post.truth["repost_of"]]
    assert_share(len(reposts), POSTS, REPOSTS)
    first = {post.row["id"]: post for post in posts}
    assert len(first) == POSTS
    for post in reposts:
        original = first[post.truth["repost_of"]]
        assert original.scene == post.scene
        assert original.row["url"] == post.row["url"]
        assert original.path != post.path
    assert len({post.row["url"] for post in posts}) == POSTS - len(reposts)


def test_other_seeds_give_other_posts() -> None:
    one, other = ({make_post(seed, number).row["id"] for number in range(50)} for seed in (0, 1))
    assert not one & other
    assert not one & {make_held_out(0, number).row["id"] for number in range(50)}


def test_held_out_things_and_groups_are_balanced() -> None:
    rows = [make_held_out(0, number).row for number in range(4 * len(NAMES))]
    assert set(Counter((row["thing"], row["group"]) for row in rows).values()) == {2}


@pytest.mark.parametrize("thing", THINGS, ids=NAMES)
def test_wordnet_knows_the_words_of_a_thing(thing: Thing) -> None:
    index = NOUNS[0]
    for word in thing.words():
        senses = excerpt.list_senses(index[word])
        assert thing.synset[1:] in senses
        assert (senses[0] != thing.synset[1:]) == (word in OTHERWISE)
    ancestors = find_ancestors(thing.synset[1:])
    for word in thing.broader.split():
        assert excerpt.list_senses(index[word])[0] in ancestors, word
    assert "00001740" in ancestors, "entity"
    exceptions = dict(line.split()[:2] for line in (WORDNET / "noun.exc").read_text().splitlines())
    for word in thing.words():
        regular = {word, f"{word}s", f"{word}es", f"{word[:-1]}ies"}
        assert pluralise(word) in regular or exceptions[pluralise(word)] == word


def test_things_have_hypernyms_in_common() -> None:
    counts = {
        "vehicle": 6,
        "edible_fruit": 4,
        "animal": 6,
        "furniture": 3,
        "plant_life": 3,
        "container": 6,
    }
    ancestors = [find_ancestors(thing.synset[1:]) for thing in THINGS]
    for word, count in counts.items():
        assert (
            sum(excerpt.list_senses(NOUNS[0][word])[0] in above for above in ancestors) == count
        ), word


def test_the_excerpt_is_whole_small_and_carries_its_licence() -> None:
    index, data = NOUNS
    assert sum(path.stat().st_size for path in WORDNET.iterdir()) < 200_000
    assert {sense for line in index.values() for sense in excerpt.list_senses(line)} == set(data)
    for line in data.values():
        assert all(target in data for _, target, _, _ in excerpt.split_pointers(line)[1])
    for name in ("index.noun", "data.noun"):
        assert len(excerpt.read(WORDNET / name)[0]) == 29
        assert (
            "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved."
            in (WORDNET / name).read_text()
        )
    assert "Permission to use, copy, modify and distribute" in (WORDNET / "LICENSE").read_text()


@pytest.mark.skipif(
    not (FULL / "index.noun").exists(), reason="needs WordNet 3.0: apt-get install wordnet-base"
)
def test_the_excerpt_says_what_the_full_wordnet_says() -> None:
    for name, text in excerpt.make(FULL).items():
        assert (WORDNET / name).read_text() == text, name
    index = read_nouns(FULL)[0]
    known = {lemma.replace("_", "").replace("-", "") for lemma in index}
    for thing in THINGS:
        plain = (
            unicodedata.normalize("NFKD", thing.foreign).encode("ascii", "ignore").decode().split()
        )  # without accents
        assert not known & {
            form
            for word in (*thing.foreign.split(), *plain)
            for form in (word, word.removesuffix("s"))
        }
        assert not known & {
            (adjective + word.replace("_", "")).lower()
            for adjective in ADJECTIVES
            for word in thing.words()
        }
    for word in sorted(
        {word for thing in THINGS for word in (*thing.words(), *thing.broader.split())}
    ):
        assert excerpt.list_senses(NOUNS[0][word]) == excerpt.list_senses(index[word]), word
