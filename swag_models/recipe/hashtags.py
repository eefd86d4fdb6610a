"""Hashtags: find them in captions, normalise their spelling, and match them with WordNet's nouns.

Hashtags in captions are found by one regular expression, which works in Python, DuckDB and Spark.
"""

import hashlib
import os
import re
import sys
import unicodedata
from collections.abc import Collection, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from swag_models.errors import ConfigError
from swag_models.paths import expand_path, read_lines
from swag_models.recipe.compounds import hash_compounds
from swag_models.recipe.false_friends import add_languages, find_language_cues
from swag_models.recipe.inflections import Inflections
from swag_models.recipe.languages import NO_LANGUAGES, Languages
from swag_models.recipe.matches import Match as Match
from swag_models.recipe.matches import choose_alternative as choose_alternative
from swag_models.recipe.matches import list_alternatives as list_alternatives
from swag_models.recipe.overrides import NO_OVERRIDES, Overrides
from swag_models.recipe.phrases import PhraseSplitter, hash_not_nouns, spell_symbols
from swag_models.recipe.senses import (
    Sense,
    SenseRanker,
    hash_senses,
    keep_senses,
    list_cues,
    load_senses,
)
from swag_models.recipe.spelling import canonicalise as canonicalise
from swag_models.recipe.spelling import strip_accents
from swag_models.recipe.wordnet import WordNet

# Characters follow Unicode's default hashtags (UAX 31): letters, marks, digits, "_", emoji, and
# characters that may occur within a word.
HASH = "#\uff03"
EMOJI = "\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
# Those from \u200c on are invisible and join the characters beside them.
JOINERS = "_\u00b7\u05be\u05f3\u05f4\u0f0b\u30a0\u30fb\u200c\u200d\U000e0020-\U000e007f"
# URLs and HTML entities are matched in order to skip them: "#" in them starts no hashtag. Those
# within hashtags are decoded when hashtags are matched.
URL = "(?:[Hh]ttps?://|[Ww]ww[.][0-9A-Za-z])[!-~]*"
ANY_ENTITY = "&(?:#[0-9]+|#[Xx][0-9A-Fa-f]+|[A-Za-z]+);"
# Entities of letters, of which a hashtag may consist: caf&eacute; caf&#233; caf&#xE9;
LETTER_ENTITY = (
    "&(?:[A-Za-z](?:acute|grave|circ|uml|tilde|ring|cedil|slash|caron)|(?:AE|ae|OE|oe|sz)lig|"
    "#(?:19[2-9]|[2-5][0-9][0-9])|#[Xx](?:[C-Fc-f]|[12][0-9A-Fa-f])[0-9A-Fa-f]);"
)
# A hashtag contains a letter or emoji, not digits alone.
START = f"(?:[\\p{{N}}_][\\p{{N}}\\p{{M}}{JOINERS}]*)?(?:[\\p{{L}}{EMOJI}]|{LETTER_ENTITY})"
REST = f"[\\p{{L}}\\p{{M}}\\p{{N}}{JOINERS}{EMOJI}]*"
# "#C#" and "#C++" are not the letter C, and begin no hashtag, as "#C#" on X; "#dog#" is one, as on
# Weibo, and "#dog#cat" are two, as on Instagram.
SYMBOLS = "(?:[A-Za-z]{1,2}[+]{1,2}|[A-Za-z][#\uff03]{1,2})"
SYMBOLS_END = f"[^\\p{{L}}\\p{{M}}\\p{{N}}{JOINERS}{EMOJI}{HASH}]|$"
# Uses only syntax that RE2 (DuckDB) and Java (Spark) both support.
PATTERN = (
    f"{URL}|{ANY_ENTITY}|[{HASH}]{SYMBOLS}(?:{SYMBOLS_END})"
    f"|[{HASH}]({START}{REST}(?:{LETTER_ENTITY}{REST})*)"
)

STOPLIST_FILE = Path(__file__).with_name("stoplist.txt")
SENSES = ("context", "first", "all", "drop")


def extract_hashtags(caption: str) -> list[str]:
    """The hashtags of a caption, in order, as written, without "#"."""
    if HASH[0] not in caption and HASH[1] not in caption:
        return []
    return [tag for tag in compile_pattern(PATTERN).findall(caption) if tag]


def extract_hashtags_ibis(captions: Any) -> Any:
    """`extract_hashtags` as an Ibis expression, for DuckDB and Spark.

    The Unicode tables of Python, DuckDB and Spark differ only in characters that were added in the
    last few years.

    Args:
        captions: a column of strings.

    Returns:
        A column of arrays of strings; null stays null.
    """
    return find_all_ibis(captions, PATTERN, 1).filter(lambda tag: tag != "")


def find_all_ibis(texts: Any, pattern: str, group: int) -> Any:
    """A group of all matches of a regular expression, as an Ibis expression.

    Args:
        texts: a column of strings.
        pattern: in the syntax that RE2 (DuckDB) and Java (Spark) share.
        group: number of the group.
    """
    import ibis

    @ibis.udf.scalar.builtin(
        name="regexp_extract_all", signature=(("string", "string", "int"), "array<string>")
    )
    def find_all(text, pattern, group):  # type: ignore[no-untyped-def]
        ...

    return find_all(texts, pattern, group)


class Matcher:
    """Finds the synsets of hashtags.

    Args:
        wordnet: the nouns of WordNet.
        senses: which senses of an ambiguous hashtag to use: the one that people mean on images
            ("context": the table senses.tsv with the other hashtags of the post, otherwise
            `senses.SenseRanker`), the "first" one in WordNet's order, "all" of them, or none
            ("drop").
        stop: canonical hashtags to ignore, together with their inflections.
        overrides: synsets of canonical hashtags and their inflections, whatever the stop list, the
            table and WordNet say; see `overrides`.
        languages: words of other languages; see `languages`. A word of English too is English,
            unless the post has more words of the other language alone than of English alone.

    Raises:
        ConfigError: `senses` is invalid.
    """

    def __init__(
        self,
        wordnet: WordNet,
        senses: str = "context",
        stop: Collection[str] = frozenset(),
        overrides: Overrides = NO_OVERRIDES,
        languages: Languages = NO_LANGUAGES,
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
        self.inflections = Inflections(wordnet, self.lemmas)
        self.ranker = SenseRanker(wordnet, self.lemmas, load_imagenet())
        self.overrides, self.languages = overrides, languages
        self.listed = self.stop | overrides.keys()
        table = load_senses() if senses == "context" else {}
        self.table = keep_senses(table, wordnet, lambda cue: self._find_lemma(cue) or cue)
        self.cues = list_cues(self.table)
        words = (*self.lemmas, *self.stop)
        self.splitter = PhraseSplitter(self._match_key, words, self.ranker, wordnet.senses)

    def match(self, tag: str) -> Match:
        """Find the lemma that a hashtag is or is an inflection of, and the synsets of this lemma.

        If the hashtag is no word of any language, it is looked up again without accents and emoji,
        then split.
        """
        spelled = spell_symbols(tag)
        key = canonicalise(tag if spelled is None else spelled)
        match = self._match_all(key)
        if match.how == "unknown" and not key.isascii():
            match = self._match_all(strip_accents(key))
        if not self.splitter.are_joined(tag, match):
            match = Match((), "unknown")
        if match.how == "unknown" and spelled is None:
            parts = [self._match_key(part) for part in self.splitter.split(tag)]
            stopped = tuple(word for part in parts for word in part.stopped)
            if synsets := tuple(dict.fromkeys(id for part in parts for id in part.synsets)):
                lemmas = " ".join(part.lemma for part in parts if part.synsets)
                return Match(synsets, "phrase", lemmas, synsets, "several lemmas", (), stopped)
            match = match._replace(stopped=stopped)
        return match

    def _match_all(self, key: str) -> Match:
        """The match of a canonical hashtag as a word of English and of other languages."""
        return add_languages(self._match_key(key), key, self.languages, self.ranker, self.policy)

    def match_post(self, tags: Sequence[str]) -> list[Match]:
        """Match the hashtags of a post, choosing among their senses by the other hashtags.

        An alternative is chosen if more of its cues are among the hashtags of the post than of any
        other alternative; ties go to the hashtag's default sense, then to the first alternative.
        `curation.context` does the same in SQL.
        """
        matches = [self.match(tag) for tag in tags]
        cues = {cue for tag, match in zip(tags, matches) for cue in self.find_cues(tag, match)}
        return [choose_alternative(match, cues) for match in matches]

    def find_cues(self, tag: str, match: Match) -> set[str]:
        """The words that a hashtag is as a cue for the senses of other hashtags."""
        key = canonicalise(tag)
        return {key, match.lemma} & self.cues | find_language_cues(key, match, self.languages)

    def _match_key(self, key: str) -> Match:
        lemma = self._find_lemma(key)
        # also plurals of listed words that are no noun of WordNet
        listed = lemma or self.inflections.find_singular(key, self.listed)
        for word in (key, listed):
            if (synsets := self.overrides.get(word or "")) is not None:
                how = "override" if synsets else "dropped"
                return Match(synsets, how, word or "", synsets, "override")
        if key in self.stop:
            return Match((), "stopped", stopped=(key,))
        if listed and listed in self.stop:
            return Match((), "stopped", listed, stopped=(listed,))
        if sense := self.table.get(key) or self.table.get(lemma or key):
            return self._apply(sense, key, lemma, "table")
        if not lemma:
            return Match((), "unknown")
        senses = self.lemmas[lemma]
        how = "lemma" if lemma == key else "inflection"
        if self.policy == "context":
            if self.ranker.is_adjective(lemma):
                return Match((), "dropped", lemma, senses, "dropped: mainly an adjective")
            ranked = self.ranker.rank(lemma)
            how = how if len(senses) == 1 else "ambiguous"
            return Match(ranked.synsets[:1], how, lemma, senses, ranked.reason)
        if len(senses) == 1:
            return Match(senses, how, lemma, senses, "only sense")
        synsets, reason = {
            "first": (senses[:1], "first sense"),
            "all": (senses, "all senses"),
            "drop": ((), "dropped: ambiguous"),
        }[self.policy]
        return Match(synsets, "ambiguous", lemma, senses, reason)

    def _apply(self, sense: Sense, key: str, lemma: str | None, reason: str) -> Match:
        """The match of a hashtag whose sense is listed in a table."""
        if sense.synset in self.lemmas.get(key, ()):
            lemma = key  # the plural's own sense
        senses = self.lemmas.get(lemma or "", ())
        synsets = tuple(filter(None, (sense.synset,)))
        if len(senses) > 1 or sense.alternatives:
            how = "ambiguous"
        else:
            how = "lemma" if lemma in (key, None) else "inflection"
        if not synsets and not sense.alternatives:
            how, reason = "dropped", f"dropped: {reason}"
        return Match(synsets, how, lemma or key, senses, reason, sense.alternatives)

    def _find_lemma(self, key: str) -> str | None:
        """The lemma that `key` equals or is an inflection of.

        A plural that is a lemma joins its singular, unless it has a meaning of its own.
        """
        singular = self.inflections.find_singular(key)
        if key not in self.lemmas:
            return singular
        if singular and not self.ranker.prefers_plural(key, singular):
            return singular
        return key


def name_class(wordnet: WordNet, synset: str) -> str:
    """The canonical hashtag of a synset's first lemma."""
    return canonicalise(wordnet.synsets[synset].lemmas[0])


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
    return frozenset(filter(None, map(canonicalise, _read_lines(path or STOPLIST_FILE))))


def load_stopwords(stopwords: str | os.PathLike[str] | Sequence[str]) -> frozenset[str]:
    """Read hashtags to ignore besides those of a stop list.

    Args:
        stopwords: hashtags, also as text with commas between them; or a file as for
            `load_stoplist`.

    Returns:
        Canonical hashtags.

    Raises:
        ConfigError: the file cannot be read, or a word is no hashtag.
    """
    if isinstance(stopwords, (str, os.PathLike)):
        path = expand_path(stopwords, "add_stopwords")
        # a suffix such as .txt means a file too: hashtags have no dots
        has_suffix = bool(re.fullmatch(r"[^,]*\.\w{1,8}", path.name))
        if path.exists() or isinstance(stopwords, os.PathLike) or os.sep in stopwords or has_suffix:
            return load_stoplist(path)
        stopwords = stopwords.split(",")
    words = [word.strip() for word in stopwords]
    if wrong := [word for word in words if not canonicalise(word)]:
        raise ConfigError(
            f"invalid add_stopwords {wrong[0]!r}: it has no letter, digit or emoji; give hashtags, "
            "separated by commas, or a file with one per line"
        )
    return frozenset(map(canonicalise, words))


def hash_lists() -> list[str]:
    """Hashes of the lists of the library that say what hashtags mean, apart from the stop list."""
    classes = "\n".join(load_imagenet())
    return [
        hash_senses(),
        hash_not_nouns(),
        hash_compounds(),
        hashlib.sha256(classes.encode()).hexdigest(),
    ]


def load_imagenet() -> list[str]:
    """The WordNet ids of the 1000 classes of ImageNet-1k, in the order of the classes."""
    return _read_lines(Path(__file__).with_name("imagenet.txt"))


def _read_lines(path: str | os.PathLike[str]) -> list[str]:
    lines = read_lines(expand_path(path), "a text file with one hashtag per line", path)
    # "# " starts a comment; "#" alone may start a hashtag
    return [word for line in lines if (word := line.partition("# ")[0].strip())]


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""A pattern for Python's `re`, which lacks \p{L}: it becomes the ranges of its characters."""
    ranges: dict[str, str] = dict.fromkeys("LMN", "")
    for kind, points in groupby(
        range(sys.maxunicode + 1), lambda point: unicodedata.category(chr(point))[0]
    ):
        if kind in ranges:
            span = list(points)
            ranges[kind] += f"{chr(span[0])}-{chr(span[-1])}"
    # \w is \p{L}\p{N}_, four times as fast as their ranges
    pattern = re.sub(r"\[(\^?)\\p\{L\}\\p\{M\}\\p\{N\}_", r"[\1\\w\\p{M}", pattern)
    return re.compile(re.sub(r"\\p\{(.)\}", lambda name: ranges[name[1]], pattern))
