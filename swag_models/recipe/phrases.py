"""Phrases: words of captions and hashtags, and the lemmas that several of them form.

A caption is split by `JUNK` in SQL, a lemma by `split_lemma` in the same way. A hashtag that is no
lemma is split by `PhraseSplitter`: at separators, at capital letters, or between known words.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

from swag_models.recipe.compounds import Compounds
from swag_models.recipe.inflections import pluralise
from swag_models.recipe.senses import SenseRanker
from swag_models.recipe.spelling import canonicalise

MAX_WORDS = 4  # of a lemma; 0.7% of WordNet's lemmas are longer, hardly any of them visible
MIN_LETTERS = 3  # shorter nouns are symbols and abbreviations (he, in, at, be), except these:
SHORT_NOUNS = frozenset({"cd", "dj", "ox", "pc", "tv"})
# Words that begin no phrase: most of the lemmas that begin with them are no things (at_home).
WEAK_STARTS = frozenset(
    {"a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "no", "of", "on", "or"}
    | {"out", "the", "to", "up", "with"}
)
# What is replaced by a space before a caption is split at spaces: URLs, HTML entities, possessive
# endings, quotes, punctuation. Syntax that RE2 (DuckDB) and Java (Spark) both support. A mark
# beside a space leaves two spaces, thus an empty word, which no phrase contains: "a hot, dog".
JUNK = (
    r"https?://[^ ]+|www[.][^ ]+|&#?[0-9a-z]+;"
    r"|'s?(?:[^\p{L}\p{N}]|$)|(?:^|[^\p{L}\p{N}])'"
    r"|[^\p{L}\p{M}\p{N}' ]+"
)


def _pair_accents() -> tuple[str, str]:
    """Letters with accents and the same without, in lower case; combining accents are at the end.

    Two strings for SQL's `translate`, which removes characters of the first that have no partner.
    """
    pairs = {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\uff07": "'"}  # apostrophes
    for point in (*range(0xE0, 0x250), *range(0x1E00, 0x1F00)):
        base = unicodedata.normalize("NFKD", letter := chr(point))[0]
        if base != letter and "a" <= base <= "z":
            pairs[letter] = base
    combining = "".join(map(chr, range(0x300, 0x370)))
    return "".join(pairs) + combining, "".join(pairs.values())


ACCENTS = _pair_accents()
_WITHOUT_ACCENTS: dict[int, int | None] = dict.fromkeys(map(ord, ACCENTS[0]))
_WITHOUT_ACCENTS |= {ord(letter): ord(base) for letter, base in zip(*ACCENTS)}

# Separators of a list of hashtags, and those of the words of one hashtag.
LIST_SEPARATORS = re.compile(r"[,;|/+\n]+")
WORD_SEPARATORS = re.compile(r"[\W_]+|(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# A symbol that is part of a name: c++, c#, .net, r&b; not where it separates words.
SYMBOLIC_NAME = re.compile(r"\w{1,2}[+]{1,2}|\w#{1,2}|\.[a-z]+|\w{1,2}(?:[&+]\w{1,2})+")
# Short words are found in any text by chance. A word is split only if its parts cost less than this
# for each of its letters; a cost is the negative logarithm of a relative frequency.
COST_PER_LETTER = 2.0
MIN_PART, MIN_UNCOUNTED_PART = 3, 5  # letters of a part; of one that WordNet never counted
MAX_PARTS = 3
MAX_COMPOUND = 40  # letters
CONNECTORS = frozenset({"and", "in", "of", "on", "the", "with"})  # between parts
CONNECTOR_COST = 5.0  # nats
AFFIXES = frozenset({"anti", "inter", "less", "multi", "over", "trans", "under", "ward", "wards"})


class _Match(Protocol):
    """Part of `hashtags.Match`."""

    @property
    def how(self) -> str: ...

    @property
    def lemma(self) -> str: ...

    @property
    def reason(self) -> str: ...


class PhraseSplitter:
    """Splits hashtags that are no lemma into known words and phrases.

    Args:
        match: finds the synsets of a canonical key.
        lemmas: canonical lemmas.
        uses: how often they and adjectives occur in WordNet's sense-tagged texts.
        spellings: the lemmas with their word boundaries: `ice_cream`.
    """

    def __init__(
        self,
        match: Callable[[str], _Match],
        lemmas: Iterable[str],
        uses: SenseRanker,
        spellings: Iterable[str],
    ) -> None:
        self.match, self.lemmas, self.uses, self.spellings = match, lemmas, uses, spellings
        self.compounds = Compounds(uses, lambda word: match(word).lemma or word, is_noun)

    @cached_property
    def word_counts(self) -> set[tuple[str, int]]:
        """The canonical lemmas with the number of their words."""
        words = ((lemma, WORD_SEPARATORS.split(lemma)) for lemma in self.spellings)
        return {(canonicalise(lemma), len([*filter(None, parts)])) for lemma, parts in words}

    @cached_property
    def costs(self) -> dict[str, float]:
        """The cost of each part of a compound: the negative logarithm of its frequency."""
        counts = Counter(self.uses.adjective_uses)
        for lemma, senses in self.uses.counts.items():
            counts[lemma] += sum(senses.values())
        total = counts.total() + 1
        costs = dict.fromkeys(CONNECTORS, CONNECTOR_COST)
        for word in {*self.lemmas, *counts} - AFFIXES:
            count = counts[word]
            if len(word) >= (MIN_PART if count else MIN_UNCOUNTED_PART):
                cost = -math.log((count + 0.5) / total)
                for form, penalty in ((word, 0), (pluralise(word), math.log(2))):
                    costs[form] = min(cost + penalty, costs.get(form, math.inf))
        return costs

    def split(self, tag: str) -> list[str]:
        """The canonical nouns and multi-word lemmas of a hashtag; empty if it is better unknown.

        Items of a list stand for themselves. Of several words in one item, at least half must be
        known, and so must the last one, which is its head: `kde icon`, but no `jakob fischer`.
        """
        parts: list[str] = []
        for item in LIST_SEPARATORS.split(tag.replace("&", " and ")):
            words = [key for word in WORD_SEPARATORS.split(item) if (key := canonicalise(word))]
            parts += self._find_phrases(words)
        return list(dict.fromkeys(parts))

    def _find_phrases(self, words: list[str]) -> list[str]:
        """The longest phrases first found from the left, and the nouns beside them."""
        phrases: list[str] = []
        unknown, start = 0, 0
        is_head_known = True
        while start < len(words):
            stop = min(len(words), start + MAX_WORDS)
            while stop > start + 1 and not self._is_phrase(words[start:stop]):
                stop -= 1
            key = "".join(words[start:stop])
            if stop > start + 1 or (is_noun(key) and self._is_known(key)):
                phrases.append(key)
                is_head_known = True
            elif key not in load_not_nouns():
                compound = self._split_compound(key)
                phrases += compound
                is_head_known = bool(compound)
                unknown += not compound
            start = stop
        return phrases if is_head_known and unknown <= len(phrases) else []

    def _is_known(self, key: str) -> bool:
        return self.match(key).how != "unknown"

    def _is_phrase(self, words: list[str]) -> bool:
        """Whether words form a lemma: `ice cream`, `tooth brush`, but not `man go` (mango)."""
        match = self.match("".join(words))
        if words[0] in WEAK_STARTS or match.how == "unknown":
            return False
        if (match.lemma, len(words)) in self.word_counts:
            return True
        *modifiers, head = [is_noun(word) and self._is_known(word) for word in words]
        adjectives = self.uses.adjective_uses
        are_nouns = all(
            known or word in adjectives for known, word in zip(modifiers, words, strict=False)
        )
        return head and are_nouns and self._is_compound(words, match.lemma)

    def are_joined(self, tag: str, match: _Match) -> bool:
        """Whether a hashtag means what it matches without separators, which `car pet` does not.

        Args:
            tag: the hashtag as written.
            match: of the hashtag without its separators.
        """
        words = [key for word in WORD_SEPARATORS.split(tag) if (key := canonicalise(word))]
        if len(words) < 2 or match.how == "stopped" or match.reason == "override":
            return True
        lemma = match.lemma
        if (lemma, len(words)) in self.word_counts or lemma not in self.uses.senses:
            return True
        if LIST_SEPARATORS.search(tag):
            return False
        return self._is_compound(words, lemma)

    def _is_compound(self, words: list[str], lemma: str) -> bool:
        """Whether separate words may be those of a lemma that WordNet writes as one."""
        return not all(map(self._is_word, words)) or self.compounds.are_parts(words, lemma)

    def _is_word(self, word: str) -> bool:
        """Whether people use a word by itself: not `morrow`, which WordNet never counted."""
        if word in load_not_nouns() or word in self.uses.adjective_uses:
            return True
        match = self.match(word)
        is_counted = any(self.uses.counts.get(match.lemma, {}).values())
        return is_noun(word) and (is_counted or match.reason.endswith(("table", "override")))

    def _split_compound(self, word: str) -> list[str]:
        """The nouns of a compound such as `goldenretrieverpuppy`; empty if it is none.

        Dynamic programming over the ends of parts: the cost of a part is the negative logarithm of
        its relative frequency.
        """
        if not word.isalpha() or not 2 * MIN_PART <= len(word) <= MAX_COMPOUND:
            return []
        # for each end, by number of parts: cost and parts of word[:end]
        best: list[dict[int, tuple[float, list[str]]]] = [{0: (0.0, [])}]
        for end in range(1, len(word) + 1):
            options: dict[int, tuple[float, list[str]]] = {}
            for start in range(end):
                if not best[start] or (cost := self.costs.get(part := word[start:end])) is None:
                    continue
                is_connector = part in CONNECTORS
                if is_connector and (start == 0 or end == len(word)):
                    continue
                for count, (earlier, parts) in best[start].items():
                    size = count + (not is_connector)
                    if size <= MAX_PARTS and earlier + cost < options.get(size, (math.inf,))[0]:
                        options[size] = earlier + cost, [*parts, part]
            best.append(options)
        cost, parts = min(best[-1].values(), default=(math.inf, []))
        if cost >= COST_PER_LETTER * len(word) or not is_noun(parts[-1]) or word.endswith("ing"):
            return []
        nouns = [part for part in parts if is_noun(part)]
        modifiers = set(parts) - CONNECTORS - set(nouns)
        return nouns if modifiers <= self.uses.adjective_uses.keys() else []


def is_noun(word: str) -> bool:
    """Whether a single word is used as a noun, if WordNet has it, rather than as another word."""
    if len(word) < MIN_LETTERS and word.isascii():
        return word in SHORT_NOUNS
    return word not in load_not_nouns()


def spell_symbols(tag: str) -> str | None:
    """How a hashtag is looked up whose symbols are part of its name; None for any other hashtag.

    Without its symbols `c++` would be the letter c, so it is looked up as nothing; `r&b` is looked
    up as `r and b`.
    """
    text = tag.strip().lower()
    if not SYMBOLIC_NAME.fullmatch(text):
        return None
    return text.replace("&", "and") if "&" in text else ""


def split_lemma(lemma: str) -> list[tuple[str, ...]]:
    """The words of a lemma as in captions: also with an empty word after a period, as in "St. "."""
    text = lemma.lower().translate(_WITHOUT_ACCENTS).replace("_", " ")
    text = re.sub(r"'s?(?!\w)|(?<!\w)'", " ", text)
    words = re.sub(r"[^\w' ]", " ", text).strip().split(" ")
    return list(dict.fromkeys((tuple(words), tuple(filter(None, words)))))


def hash_not_nouns() -> str:
    """SHA-256 of the list of `load_not_nouns`."""
    return hashlib.sha256("\n".join(sorted(load_not_nouns())).encode()).hexdigest()


@cache
def load_not_nouns() -> Collection[str]:
    """Words of captions that are mostly no nouns: the list that comes with the library."""
    lines = Path(__file__).with_name("not_nouns.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
