"""Captions as people write them: hashtags that are true, in many spellings, among others that are wrong or say nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from studies.scenes.scene import Scene
from studies.scenes.things import BY_NAME, NAMES, Thing

SILENT = 0.08  # of the posts have no hashtag of what they show
UNSEEN = 0.3  # of the second things have none
WRONG = 0.07  # of the posts have one of something else
BROADER = 0.1  # of the posts have a hypernym
MOST = 6  # hashtags that say nothing; each number from none to so many is as frequent
FORMS = {"plain": 0.55, "plural": 0.16, "foreign": 0.12, "adjective": 0.12, "misspelt": 0.05}

# The most frequent first. WordNet knows some of them, so not all that match a noun are in the picture.
_EMPTY = """
love instagood photooftheday photography nofilter beautiful picoftheday happy art nature summer instadaily cute travel
followme weekend tbt morning like4like awesome fun sky home flickr canon nikon music wow bestoftheday garden
"""
EMPTY = _EMPTY.split()
ADJECTIVES = (
    "My",
    "Our",
    "Lovely",
    "Tiny",
    "Vintage",
)  # with no thing's name do they make a word that WordNet knows
PLURALS = {"cactus": "cacti", "scissors": "scissors", "pair_of_scissors": "pair_of_scissors"}
# What stands before the hashtags; some of it only looks like one.
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
    """The text, the hashtags in it in their order, and those things among them that are not in the picture."""

    text: str
    hashtags: tuple[str, ...]
    wrong: tuple[str, ...]


def write_caption(rng: random.Random, scene: Scene, weights: Sequence[float]) -> Caption:
    """A caption for a scene; `weights` says how often each thing is taken for one that is not there."""
    tags: list[str] = []
    if rng.random() >= SILENT:
        for name in scene.things:
            if name == scene.things[0] or rng.random() >= UNSEEN:
                tags += [_spell(rng, BY_NAME[name]) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
        broader = [word for name in scene.things for word in BY_NAME[name].broader.split()]
        if broader and rng.random() < BROADER:
            tags.append(_style(rng, _choose(rng, broader)))
    wrong = []
    if rng.random() < WRONG:
        wrong = [name for name in rng.choices(NAMES, weights, k=1) if name not in scene.things]
    tags += wrong + [_choose(rng, EMPTY) for _ in range(rng.randint(0, MOST))]
    rng.shuffle(tags)
    tags = list(dict.fromkeys(tags))
    marks = [rng.choice("#＃") if ord(tag[0]) > 0x3000 else "#" for tag in tags]  # noqa: RUF001 (full-width, beside such words)
    between = rng.choice((" ", " ", " ", ", ", ""))
    written = between.join(mark + tag for mark, tag in zip(marks, tags, strict=True))
    return Caption(f"{rng.choice(TEXTS)} {written}".strip(), tuple(tags), tuple(wrong))


def _spell(rng: random.Random, thing: Thing) -> str:
    """A hashtag for a thing, in one of the forms."""
    word = _choose(rng, thing.words())
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    if form == "foreign":
        return _choose(rng, thing.foreign.split())
    if form == "adjective":
        return rng.choice(ADJECTIVES) + _join(word, str.title)
    if form == "plural":
        return _style(rng, pluralise(word))
    if form == "misspelt" and len(word) > 5:  # too few letters could make another word
        at = rng.randrange(1, len(word) - 2)
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return _style(rng, word)


def _style(rng: random.Random, lemma: str) -> str:
    """A lemma as one hashtag: brownbear, BrownBear, brown_bear or BROWNBEAR."""
    style = rng.choices(("lower", "camel", "snake", "upper"), (12, 4, 2, 1))[0]
    if style == "snake":
        return lemma
    return _join(lemma, {"lower": str.lower, "camel": str.title, "upper": str.upper}[style])


def _join(lemma: str, change: Callable[[str], str]) -> str:
    return "".join(change(word) for word in lemma.split("_"))


def pluralise(lemma: str) -> str:
    """The plural of an English noun of this world."""
    if lemma in PLURALS:
        return PLURALS[lemma]
    if lemma.endswith("y") and lemma[-2] not in "aeiou":
        return f"{lemma[:-1]}ies"
    return lemma + ("es" if lemma.endswith(("s", "x", "ch", "sh")) else "s")


def _choose(rng: random.Random, words: Sequence[str]) -> str:
    """One of the words, the k-th 1 / k times as often as the first."""
    return rng.choices(words, [1 / rank for rank in range(1, len(words) + 1)])[0]
