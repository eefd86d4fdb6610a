"""Hashtags: find them in captions, normalise their spelling, and match them with WordNet's nouns.

Hashtags in captions are found by one regular expression, which works in Python, DuckDB and Spark.
"""

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
from swag_models.paths import expand_path, read_regular
from swag_models.recipe.wordnet import WordNet

# Characters follow Unicode's default hashtags (UAX 31): letters, marks, digits, "_", emoji, and
# characters that may occur within a word.
HASH = "#\uff03"
EMOJI = "\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Those from \u200c on are invisible and join the characters beside them.
JOINERS = "_\u00b7\u05be\u05f3\u05f4\u0f0b\u30a0\u30fb\u200c\u200d\U000e0020-\U000e007f"
# URLs and HTML entities are matched in order to skip them: "#" in them starts no hashtag.
URL = "(?:[Hh]ttps?://|[Ww]ww[.][0-9A-Za-z])[!-~]*"
ENTITY = "&(?:#[0-9]+|#[Xx][0-9A-Fa-f]+|[A-Za-z]+);"
# A hashtag contains a letter or emoji, not digits alone.
START = f"(?:[\\p{{N}}_][\\p{{N}}\\p{{M}}{JOINERS}]*)?[\\p{{L}}{EMOJI}]"
# Uses only syntax that RE2 (DuckDB) and Java (Spark) both support.
PATTERN = f"{URL}|{ENTITY}|[{HASH}]({START}[\\p{{L}}\\p{{M}}\\p{{N}}{JOINERS}{EMOJI}]*)"

SENSES = ("first", "all", "drop")
# Plural endings and the endings of the lemmas, in the order in which they are tried. Source:
# morphy(7WN), https://wordnet.princeton.edu/documentation/morphy7wn
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
# In compounds whose second word is one of these, the first word takes the plural: birds of prey.
PREPOSITIONS = {"at", "de", "for", "in", "of", "on", "the", "with"}


class Match(NamedTuple):
    """The synsets that a hashtag is matched with.

    Attributes:
        synsets: ids of its synsets; empty if it has none.
        how: "lemma", "inflection", "ambiguous" (a lemma or inflection with several senses),
            "stopped" or "unknown".
        lemma: the canonical lemma that the hashtag equals or is an inflection of.
        senses: ids of all synsets of the lemma, the most frequent sense first.
    """

    synsets: tuple[str, ...]
    how: str
    lemma: str = ""
    senses: tuple[str, ...] = ()


class Coverage(NamedTuple):
    """The class that covers a synset.

    Attributes:
        target: id of the synset.
        how: "same"; "hyponym" if the class is below the target; "hypernym" if it is above; or None.
        synset: id of the class.
        distance: number of steps between them.
    """

    target: str
    how: str | None
    synset: str | None = None
    distance: int | None = None


def extract_hashtags(caption: str) -> list[str]:
    """The hashtags of a caption, in order, as written, without "#"."""
    if HASH[0] not in caption and HASH[1] not in caption:
        return []
    return [tag for tag in _compile_pattern().findall(caption) if tag]


def extract_hashtags_ibis(captions: Any) -> Any:
    """`extract_hashtags` as an Ibis expression, for DuckDB and Spark.

    The Unicode tables of Python, DuckDB and Spark differ only in characters that were added in the
    last few years.

    Args:
        captions: a column of strings.

    Returns:
        A column of arrays of strings; null stays null.
    """
    import ibis

    @ibis.udf.scalar.builtin(
        name="regexp_extract_all", signature=(("string", "string", "int"), "array<string>")
    )
    def find_all(text, pattern, group):  # type: ignore[no-untyped-def]
        ...

    return find_all(captions, PATTERN, 1).filter(lambda tag: tag != "")


def canonicalise(tag: str) -> str:
    """Normalise a hashtag to the spelling that all its variants share.

    It is NFKC-normalised, case-folded, and without separators, punctuation and invisible
    characters: `brown_bear`, `BrownBear` and `#brownbear` all become `brownbear`.
    """
    if tag.isascii() and tag.isalnum():  # fast path for most hashtags
        return tag.lower()
    # normalised again, because folding and removing characters can leave text that is not
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    return unicodedata.normalize("NFKC", folded.translate(_WORD_CHARACTERS))


class Matcher:
    """Finds the synsets of hashtags.

    Args:
        wordnet: the nouns of WordNet.
        senses: which senses of an ambiguous hashtag to use: the "first" (most frequent) one,
            "all" of them, or none ("drop").
        stop: canonical hashtags to ignore, together with their inflections.

    Raises:
        ConfigError: `senses` is invalid.
    """

    def __init__(
        self, wordnet: WordNet, senses: str = "first", stop: Collection[str] = frozenset()
    ) -> None:
        if senses not in SENSES:
            raise ConfigError(f"invalid senses {senses!r}: allowed: {', '.join(SENSES)}")
        self.policy, self.stop = senses, frozenset(stop)
        self.lemmas: dict[str, tuple[str, ...]] = {}
        # Lemmas that are spelled like a hashtag come first: the senses of #hotdog are those of
        # "hotdog", followed by those of "hot_dog".
        for lemma in sorted(wordnet.senses, key=str.isalnum, reverse=True):
            key = canonicalise(lemma)
            self.lemmas[key] = tuple(
                dict.fromkeys((*self.lemmas.get(key, ()), *wordnet.senses[lemma]))
            )
        self.irregular = _list_irregular(wordnet)

    def match(self, tag: str) -> Match:
        """Find the lemma that a hashtag is or is an inflection of, and the synsets of this lemma.

        If the hashtag is not found, it is looked up again without accents and emoji.
        """
        key = canonicalise(tag)
        if key in self.stop:
            return Match((), "stopped")
        lemma = self._find_lemma(key)
        if not lemma and not key.isascii():
            key = unicodedata.normalize("NFKD", key).translate(_LETTERS)
            lemma = self._find_lemma(key)
        if not lemma:
            return Match((), "unknown")
        if lemma in self.stop:
            return Match((), "stopped", lemma)
        senses = self.lemmas[lemma]
        if len(senses) == 1:
            return Match(senses, "lemma" if lemma == key else "inflection", lemma, senses)
        synsets = {"first": senses[:1], "all": senses, "drop": ()}[self.policy]
        return Match(synsets, "ambiguous", lemma, senses)

    def _find_lemma(self, key: str) -> str | None:
        """The key of `self.lemmas` that `key` equals or is an inflection of."""
        if key in self.lemmas:
            return key
        for base in self.irregular.get(key, ()):
            if base in self.lemmas:
                return base
        # words in -ss and words of two letters are not plurals, by morphy's rules
        if key.endswith(("s", "men")) and len(key) > 2 and not key.endswith("ss"):
            for suffix, ending in DETACHMENTS.items():
                if key.endswith(suffix) and (base := key[: -len(suffix)] + ending) in self.lemmas:
                    return base
        return None


def name_class(wordnet: WordNet, synset: str) -> str:
    """The canonical hashtag of a synset's first lemma."""
    return canonicalise(wordnet.synsets[synset].lemmas[0])


def find_coverage(
    wordnet: WordNet, classes: Iterable[str], targets: Iterable[str]
) -> list[Coverage]:
    """Find the class that covers each target synset.

    This is the same synset, otherwise the nearest class below it, otherwise the nearest above it.

    Args:
        wordnet: the nouns of WordNet.
        classes: ids of the synsets that are classes.
        targets: ids of the synsets to cover.
    """
    chosen = set(classes)
    return [_cover_synset(wordnet, chosen, target) for target in targets]


def load_stoplist(path: str | os.PathLike[str] | None = None) -> frozenset[str]:
    """Read a list of hashtags that do not describe an image.

    Args:
        path: text file with one hashtag per line and comments after "# "; by default the list that
            comes with the library.

    Returns:
        Canonical hashtags.

    Raises:
        ConfigError: the file cannot be read.
    """
    words = _read_lines(path or Path(__file__).with_name("stoplist.txt"))
    return frozenset(filter(None, map(canonicalise, words)))


def load_imagenet() -> list[str]:
    """The WordNet ids of the 1000 classes of ImageNet-1k, in the order of the classes."""
    return _read_lines(Path(__file__).with_name("imagenet.txt"))


def _cover_synset(wordnet: WordNet, classes: set[str], target: str) -> Coverage:
    if target in classes:
        return Coverage(target, "same", target, 0)
    for how, walk in (("hyponym", wordnet.descendants), ("hypernym", wordnet.ancestors)):
        candidates = [
            (distance, synset) for synset, distance in walk(target).items() if synset in classes
        ]
        if candidates:
            distance, synset = min(candidates)
            return Coverage(target, how, synset, distance)
    return Coverage(target, None)


def _read_lines(path: str | os.PathLike[str]) -> list[str]:
    try:
        lines = read_regular(expand_path(path)).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        is_text = not isinstance(error, UnicodeDecodeError)
        reason = getattr(error, "strerror", None) or (error if is_text else "it is not UTF-8")
        raise ConfigError(
            f"{path} cannot be read: {reason}; pass a text file with one hashtag per line"
        ) from None
    # "# " starts a comment; "#" alone may start a hashtag
    return [word for line in lines if (word := line.partition("# ")[0].strip())]


def _list_irregular(wordnet: WordNet) -> dict[str, list[str]]:
    """Canonical irregular inflections with their lemmas, including those of compounds."""
    plurals: dict[str, list[str]] = {}
    inflections = [(word, base) for word, bases in wordnet.exceptions.items() for base in bases]
    for word, base in inflections:
        plurals.setdefault(base, []).append(word)
    for lemma in wordnet.senses:
        first, _, rest = lemma.partition("_")
        start, _, last = lemma.rpartition("_")
        if rest.partition("_")[0] in PREPOSITIONS:  # birds of prey
            firsts = plurals.get(first, [_pluralise(first)])
            inflections += [(f"{word}{rest}", lemma) for word in firsts]
        elif start:  # Canada geese
            inflections += [(f"{start}{word}", lemma) for word in plurals.get(last, ())]
    irregular: dict[str, list[str]] = {}
    for word, base in inflections:
        irregular.setdefault(canonicalise(word), []).append(canonicalise(base))
    return irregular


def _pluralise(noun: str) -> str:
    """The regular plural of a noun: `DETACHMENTS` in reverse."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("man"):
        return f"{noun[:-3]}men"
    return f"{noun[:-1]}ies" if noun[-1:] == "y" and noun[-2:-1] not in "aeiou" else f"{noun}s"


@cache
def _compile_pattern() -> re.Pattern[str]:
    r"""PATTERN for Python's `re`, which has no \p{L}: each becomes the ranges of its characters."""
    ranges: dict[str, str] = dict.fromkeys("LMN", "")
    for kind, points in groupby(
        range(sys.maxunicode + 1), lambda point: unicodedata.category(chr(point))[0]
    ):
        if kind in ranges:
            span = list(points)
            ranges[kind] += f"{chr(span[0])}-{chr(span[-1])}"
    # \w is \p{L}\p{N}_, four times as fast as their ranges
    pattern = PATTERN.replace(r"[\p{L}\p{M}\p{N}_", r"[\w\p{M}")
    return re.compile(re.sub(r"\\p\{(.)\}", lambda name: ranges[name[1]], pattern))


class _CharacterFilter(dict[int, int | None]):
    """A table for `str.translate` that keeps characters of some Unicode categories; filled lazily.

    Args:
        categories: the first letters of the categories to keep.
    """

    def __init__(self, *categories: str) -> None:
        self.categories = categories

    def __missing__(self, point: int) -> int | None:
        category = unicodedata.category(chr(point))
        # variation selectors are marks but invisible; skin tones are symbols but change an emoji
        visible = category.startswith(self.categories) and not 0xFE00 <= point <= 0xFE0F
        skin_tone = 0x1F3FB <= point <= 0x1F3FF
        return self.setdefault(point, point if visible or skin_tone else None)


# "So" includes emoji; "Cn" includes characters newer than Python's Unicode tables.
_WORD_CHARACTERS = _CharacterFilter("L", "M", "N", "So", "Cn")
_LETTERS = _CharacterFilter("L", "N")
