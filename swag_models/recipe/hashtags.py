"""Hashtags: found in captions, brought to one spelling, and matched with the nouns of WordNet.

The rule for captions is one regular expression, which Python, DuckDB and Spark all follow.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from swag_models.errors import ConfigError
from swag_models.recipe.wordnet import WordNet

# Characters as in Unicode's default hashtags (UAX 31): letters, marks, digits, _, emoji, and what may stand within a word.
HASH = "#\uff03"
EMOJI = "\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
JOINERS = "_\u00b7\u05be\u05f3\u05f4\u0f0b\u30a0\u30fb\u200c\u200d\U000e0020-\U000e007f"  # \u200c on: they join and do not show
URL = "(?:[Hh]ttps?://|[Ww]ww[.][0-9A-Za-z])[!-~]*"  # skipped: what follows # there is no hashtag
ENTITY = "&(?:#[0-9]+|#[Xx][0-9A-Fa-f]+|[A-Za-z]+);"  # of HTML, skipped as well
START = (
    f"(?:[\\p{{N}}_][\\p{{N}}\\p{{M}}{JOINERS}]*)?[\\p{{L}}{EMOJI}]"  # digits alone are no hashtag
)
PATTERN = f"{URL}|{ENTITY}|[{HASH}]({START}[\\p{{L}}\\p{{M}}\\p{{N}}{JOINERS}{EMOJI}]*)"  # for RE2 and Java alike

SENSES = ("first", "all", "drop")
# Endings of nouns and what they stand for, in the order in which they are tried: morphy(7WN).
DETACHMENTS = {
    "s": "",
    "ses": "s",
    "xes": "x",
    "zes": "z",
    "ches": "ch",
    "shes": "sh",
    "men": "man",
    "ies": "y",
}
PREPOSITIONS = {"at", "de", "for", "in", "of", "on", "the", "with"}


class Match(NamedTuple):
    """What a hashtag stands for.

    synsets: its classes, none if it has none. how: "lemma", "inflection", "ambiguous" (several senses, of either), "stopped"
    or "unknown". lemma: the lemma it is, or an inflection of. senses: all it could stand for, the most frequent first.
    """

    synsets: tuple[str, ...]
    how: str
    lemma: str = ""
    senses: tuple[str, ...] = ()


class Cover(NamedTuple):
    """How a synset is covered by classes: how is "same", "hyponym" (the class lies below it), "hypernym" (above) or None."""

    target: str
    how: str | None
    synset: str | None = None
    distance: int | None = None


def extract(caption: str) -> list[str]:
    """The hashtags of a caption in their order, as written, without #."""
    return (
        [tag for tag in _compile().findall(caption) if tag]
        if HASH[0] in caption or HASH[1] in caption
        else []
    )


def extract_hashtags(captions: Any) -> Any:
    """The same as an Ibis expression: a column of strings to one of arrays of strings, on DuckDB and Spark; null stays null.

    Each engine has Unicode tables of its own; they differ in characters of the last few years only.
    """
    import ibis

    @ibis.udf.scalar.builtin(
        name="regexp_extract_all", signature=(("string", "string", "int"), "array<string>")
    )
    def find_all(text, pattern, group):  # type: ignore[no-untyped-def]
        ...

    return find_all(captions, PATTERN, 1).filter(lambda tag: tag != "")


def canonicalise(tag: str) -> str:
    """One spelling for a hashtag: NFKC and case folding, without separators, punctuation and characters that do not show."""
    if tag.isascii() and tag.isalnum():
        return tag.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    return unicodedata.normalize("NFKC", folded.translate(_KEPT))


class Matcher:
    """Finds the synsets of hashtags.

    senses: what becomes of a hashtag with several: "first" (the most frequent), "all", or "drop". stop: canonical hashtags
    that have no class, nor have their inflections.
    """

    def __init__(
        self, wordnet: WordNet, senses: str = "first", stop: Collection[str] = frozenset()
    ) -> None:
        if senses not in SENSES:
            raise ConfigError(f"senses {senses!r} is not known; it is one of: {', '.join(SENSES)}")
        self.policy, self.stop = senses, frozenset(stop)
        self.lemmas: dict[str, tuple[str, ...]] = {}
        for lemma in sorted(wordnet.senses, key=str.isalnum, reverse=True):  # hotdog before hot_dog
            key = canonicalise(lemma)
            self.lemmas[key] = tuple(
                dict.fromkeys((*self.lemmas.get(key, ()), *wordnet.senses[lemma]))
            )
        self.irregular = _list_irregular(wordnet)

    def match(self, tag: str) -> Match:
        """What a hashtag stands for: the lemma that it is, or is an inflection of, if need be without accents and emoji."""
        key = canonicalise(tag)
        if key in self.stop:
            return Match((), "stopped")
        lemma = self._find(key)
        if not lemma and not key.isascii():
            key = unicodedata.normalize("NFKD", key).translate(_LETTERS)
            lemma = self._find(key)
        if not lemma:
            return Match((), "unknown")
        if lemma in self.stop:
            return Match((), "stopped", lemma)
        senses = self.lemmas[lemma]
        if len(senses) == 1:
            return Match(senses, "lemma" if lemma == key else "inflection", lemma, senses)
        kept = {"first": senses[:1], "all": senses, "drop": ()}[self.policy]
        return Match(kept, "ambiguous", lemma, senses)

    def _find(self, key: str) -> str | None:
        """The lemma in `lemmas` that `key` is or is an inflection of."""
        if key in self.lemmas:
            return key
        for base in self.irregular.get(key, ()):
            if base in self.lemmas:
                return base
        if key.endswith(("s", "men")) and len(key) > 2 and not key.endswith("ss"):
            for suffix, ending in DETACHMENTS.items():
                if key.endswith(suffix) and (base := key[: -len(suffix)] + ending) in self.lemmas:
                    return base
        return None


def name_class(wordnet: WordNet, synset: str) -> str:
    """The canonical hashtag of a synset: its first lemma."""
    return canonicalise(wordnet.synsets[synset].lemmas[0])


def cover(wordnet: WordNet, classes: Iterable[str], targets: Iterable[str]) -> list[Cover]:
    """For each target synset, how it is covered by `classes`: by itself, else by the nearest below it, else above it."""
    known = set(classes)
    return [_cover(wordnet, known, target) for target in targets]


def load_stoplist(path: str | os.PathLike[str] | None = None) -> frozenset[str]:
    """Canonical hashtags that say nothing of a picture: of a file with one in a line and comments after #, or our own."""
    return frozenset(
        filter(
            None, map(canonicalise, _read_list(path or Path(__file__).with_name("stoplist.txt")))
        )
    )


def load_imagenet() -> list[str]:
    """The WordNet ids of the 1000 classes of ImageNet-1k, in their order."""
    return _read_list(Path(__file__).with_name("imagenet.txt"))


def _cover(wordnet: WordNet, classes: set[str], target: str) -> Cover:
    if target in classes:
        return Cover(target, "same", target, 0)
    for how, reach in (("hyponym", wordnet.descendants), ("hypernym", wordnet.ancestors)):
        near = [
            (distance, synset) for synset, distance in reach(target).items() if synset in classes
        ]
        if near:
            distance, synset = min(near)
            return Cover(target, how, synset, distance)
    return Cover(target, None)


def _read_list(path: str | os.PathLike[str]) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"{path} cannot be read: {reason}; give a text file with one hashtag in a line"
        ) from None
    return [word for line in lines if (word := line.partition("# ")[0].strip())]


def _list_irregular(wordnet: WordNet) -> dict[str, list[str]]:
    """Canonical inflections that no ending shows, and what they are of: WordNet's, and those of its compounds."""
    plurals: dict[str, list[str]] = {}
    listed = [(word, base) for word, bases in wordnet.exceptions.items() for base in bases]
    for word, base in listed:
        plurals.setdefault(base, []).append(word)
    for lemma in wordnet.senses:
        first, _, rest = lemma.partition("_")
        start, _, last = lemma.rpartition("_")
        if rest.partition("_")[0] in PREPOSITIONS:  # birds of prey
            listed += [(f"{word}{rest}", lemma) for word in plurals.get(first, [_pluralise(first)])]
        elif start:  # Canada geese
            listed += [(f"{start}{word}", lemma) for word in plurals.get(last, ())]
    irregular: dict[str, list[str]] = {}
    for word, base in listed:
        irregular.setdefault(canonicalise(word), []).append(canonicalise(base))
    return irregular


def _pluralise(noun: str) -> str:
    """The regular plural: the detachments the other way round."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("man"):
        return f"{noun[:-3]}men"
    return f"{noun[:-1]}ies" if noun[-1:] == "y" and noun[-2:-1] not in "aeiou" else f"{noun}s"


@cache
def _compile() -> re.Pattern[str]:
    r"""PATTERN for Python, which has no \p: each is replaced by the ranges of characters that it stands for."""
    ranges: dict[str, str] = dict.fromkeys("LMN", "")
    for kind, points in groupby(
        range(sys.maxunicode + 1), lambda point: unicodedata.category(chr(point))[0]
    ):
        if kind in ranges:
            span = list(points)
            ranges[kind] += f"{chr(span[0])}-{chr(span[-1])}"
    pattern = PATTERN.replace(r"[\p{L}\p{M}\p{N}_", r"[\w\p{M}")  # the same, four times as fast
    return re.compile(re.sub(r"\\p\{(.)\}", lambda name: ranges[name[1]], pattern))


class _Kept(dict[int, int | None]):
    """For str.translate: each character itself, or None if its category is not kept. Filled as characters come."""

    def __init__(self, *kept: str) -> None:
        self.kept = kept

    def __missing__(self, point: int) -> int | None:
        shown = (
            unicodedata.category(chr(point)).startswith(self.kept) and not 0xFE00 <= point <= 0xFE0F
        )  # variation selectors
        return self.setdefault(
            point, point if shown or 0x1F3FB <= point <= 0x1F3FF else None
        )  # skin tones


_KEPT = _Kept("L", "M", "N", "So", "Cn")
_LETTERS = _Kept("L", "N")
