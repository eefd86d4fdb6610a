"""Realistic captions: true hashtags in various spellings, among wrong and meaningless ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from studies.scenes.scene import Scene
from studies.scenes.things import BY_NAME, NAMES, Thing

# Fractions of the posts:
NO_TRUE_HASHTAG = 0.08
NO_SECOND_HASHTAG = 0.3  # no hashtag for the second thing, as a fraction of posts with two things
WRONG_HASHTAG = 0.07  # a hashtag of a thing that is not in the image
HYPERNYM = 0.1
MAX_EMPTY = 6  # hashtags that do not describe the image; 0 to this number, equally likely
FORMS = {"plain": 0.55, "plural": 0.16, "foreign": 0.12, "adjective": 0.12, "misspelt": 0.05}

# The most frequent first. Some are nouns of WordNet, so not every hashtag that matches a noun is
# true.
_EMPTY = """
love instagood photooftheday photography nofilter beautiful picoftheday happy art nature summer
instadaily cute
travel followme weekend tbt morning like4like awesome fun sky home flickr canon nikon
music wow bestoftheday garden
"""
EMPTY = _EMPTY.split()
# None of these, joined with the name of a thing, is a noun of WordNet.
ADJECTIVES = ("My", "Our", "Lovely", "Tiny", "Vintage")
PLURALS = {"cactus": "cacti", "scissors": "scissors", "pair_of_scissors": "pair_of_scissors"}
# Text before the hashtags; some of it only looks like a hashtag.
TEXTS = (
    "",
    "",
    "Sunday walk.",
    "Finally got it right :)",
    "my favourite so far!",
    "Not sure about the light…",
    "Tom &amp; me, that&#39;s it",
    "more at https://clubs.example/gallery#latest",
    "from the archive, #1 of 3",
    "ну вот 🙂",
    "été 2019",
)


class Caption(NamedTuple):
    """A caption, its hashtags in order, and the things among them that are not in the image."""

    text: str
    hashtags: tuple[str, ...]
    wrong: tuple[str, ...]


def write_caption(rng: random.Random, scene: Scene, weights: Sequence[float]) -> Caption:
    """Write a caption for a scene.

    Args:
        rng: source of all randomness.
        scene: what the image shows.
        weights: relative frequency of each thing of `NAMES` as a wrong hashtag.
    """
    tags: list[str] = []
    if rng.random() >= NO_TRUE_HASHTAG:
        for name in scene.things:
            if name == scene.things[0] or rng.random() >= NO_SECOND_HASHTAG:
                tags += [
                    _write_hashtag(rng, BY_NAME[name])
                    for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))
                ]
        broader = [word for name in scene.things for word in BY_NAME[name].broader.split()]
        if broader and rng.random() < HYPERNYM:
            tags.append(_style(rng, _choose(rng, broader)))
    wrong = []
    if rng.random() < WRONG_HASHTAG:
        wrong = [name for name in rng.choices(NAMES, weights, k=1) if name not in scene.things]
    tags += wrong + [_choose(rng, EMPTY) for _ in range(rng.randint(0, MAX_EMPTY))]
    rng.shuffle(tags)
    tags = list(dict.fromkeys(tags))
    # The full-width mark is used beside Chinese and Japanese words.
    marks = [rng.choice("#＃") if ord(tag[0]) > 0x3000 else "#" for tag in tags]  # noqa: RUF001
    separator = rng.choice((" ", " ", " ", ", ", ""))
    hashtags = separator.join(mark + tag for mark, tag in zip(marks, tags, strict=True))
    return Caption(f"{rng.choice(TEXTS)} {hashtags}".strip(), tuple(tags), tuple(wrong))


def _write_hashtag(rng: random.Random, thing: Thing) -> str:
    """A hashtag for a thing in a random form of `FORMS`."""
    word = _choose(rng, thing.words())
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    if form == "foreign":
        return _choose(rng, thing.foreign.split())
    if form == "adjective":
        return rng.choice(ADJECTIVES) + _join(word, str.title)
    if form == "plural":
        return _style(rng, pluralise(word))
    if form == "misspelt" and len(word) > 5:  # misspelling a short word could produce another word
        at = rng.randrange(1, len(word) - 2)
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return _style(rng, word)


def _style(rng: random.Random, lemma: str) -> str:
    """A lemma as a hashtag: brownbear, BrownBear, brown_bear or BROWNBEAR."""
    style = rng.choices(("lower", "camel", "snake", "upper"), (12, 4, 2, 1))[0]
    if style == "snake":
        return lemma
    return _join(lemma, {"lower": str.lower, "camel": str.title, "upper": str.upper}[style])


def _join(lemma: str, change: Callable[[str], str]) -> str:
    return "".join(change(word) for word in lemma.split("_"))


def pluralise(lemma: str) -> str:
    """The English plural of one of these nouns."""
    if lemma in PLURALS:
        return PLURALS[lemma]
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        return f"{lemma[:-1]}ies"
    return lemma + ("es" if lemma.endswith(("s", "x", "ch", "sh")) else "s")


def _choose(rng: random.Random, words: Sequence[str]) -> str:
    """One of the words; the k-th is 1 / k times as likely as the first (Zipf's law)."""
    return rng.choices(words, [1 / rank for rank in range(1, len(words) + 1)])[0]
