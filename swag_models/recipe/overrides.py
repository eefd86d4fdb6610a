"""Overrides: what hashtags mean, as the user says, whatever WordNet and the stop list say.

A line of the file is a hashtag, and its synsets or `drop`, after a tab, a comma or spaces:

    jigsaw      n03598930          # the puzzle
    crane       crane#2            # a sense by its number in WordNet; crane.n.02 is the same
    rome,italy  n08806897 Italy#1  # several synsets
    hash        drop
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from swag_models.errors import ConfigError
from swag_models.formatting import describe, list_names
from swag_models.paths import expand_path, read_lines
from swag_models.recipe.spelling import canonicalise
from swag_models.recipe.wordnet import WordNet

Overrides = Mapping[str, tuple[str, ...]]  # canonical hashtag -> synsets, none of them to drop it
Source = str | os.PathLike[str] | Mapping[str, str | Sequence[str]]

NO_OVERRIDES: Overrides = MappingProxyType({})
DROP = "drop"
SYNSET = re.compile(r"[nN]\d{8}")
NUMBERED_LEMMA = re.compile(r"(?P<lemma>[^\s,#]+)(?:#|\.n\.)(?P<number>\d{1,9})", re.IGNORECASE)
WORD = re.compile(r"[^\s,]+")
FORM = 'a hashtag, then a synset id (n02084071), a numbered sense (dog#1) or "drop"'
MAX_SUGGESTIONS = 3
Suggest = Callable[[str], str]  # word -> text for a message


def read_overrides(source: Source | None, wordnet: WordNet) -> dict[str, tuple[str, ...]]:
    """Read overrides.

    Args:
        source: text file, see above; or hashtags with a synset, several, or "drop".
        wordnet: has the synsets.

    Returns:
        The synsets of each canonical hashtag; an empty tuple if it is dropped.

    Raises:
        ConfigError: the file cannot be read, or lines are invalid: the message explains the first
            of them.
    """
    if source is None:
        return {}
    overrides: dict[str, tuple[str, ...]] = {}
    places: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for place, tag, senses in _list_entries(source):
        try:
            # for the message, which explains the first: a suggestion takes half a second
            suggest = partial(_suggest_senses, wordnet) if not problems else str
            key, synsets = _parse_entry(tag, senses, wordnet, suggest)
            if overrides.setdefault(key, synsets) != synsets:
                raise ConfigError(f"{tag!r} has another sense in {places[key]}; keep one of them")
            places.setdefault(key, place)
        except ConfigError as error:
            problems.append((place, error.args[0]))
    if problems:
        place, problem = problems[0]
        others = list_names([place for place, _ in problems[1:]])
        where = source if isinstance(source, (str, os.PathLike)) else "overrides"
        more = f"; {others} cannot be used either" if others else ""
        raise ConfigError(f"{where}, {place}: {problem}{more}")
    return overrides


def _list_entries(source: Source) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the place, the hashtag and the senses of each entry."""
    if isinstance(source, Mapping):
        for tag, senses in source.items():
            if not (isinstance(tag, str) and isinstance(senses, Sequence)):
                raise ConfigError(
                    f"invalid overrides {describe(tag)}: {describe(senses)}: allowed: a hashtag, "
                    'and a synset, a list of several or "drop"'
                )
            yield f"entry {tag!r}", tag, [senses] if isinstance(senses, str) else list(senses)
        return
    fix = f"a text file with one hashtag per line: {FORM}"
    for number, line in enumerate(read_lines(expand_path(source, "overrides"), fix, source), 1):
        # "# " starts a comment; "#" alone may start a hashtag
        if text := re.split(r"(?:^|\s)#(?:\s|$)", line, maxsplit=1)[0].strip():
            yield f"line {number}", *_split_line(text)


def _split_line(text: str) -> tuple[str, list[str]]:
    """The hashtag and the senses of a line: the last words that have the form of a sense."""
    tag, tab, rest = text.partition("\t")
    if tab:  # after a tab, the hashtag may have words like senses
        return tag.strip(), WORD.findall(rest)
    words = list(WORD.finditer(text))
    stop = len(words)
    while stop > 1 and _is_sense(words[stop - 1][0]):
        stop -= 1
    return text[: words[stop - 1].end() if words else None], [word[0] for word in words[stop:]]


def _is_sense(word: str) -> bool:
    return bool(word.lower() == DROP or SYNSET.fullmatch(word) or NUMBERED_LEMMA.fullmatch(word))


def _parse_entry(
    tag: str, senses: Sequence[str], wordnet: WordNet, suggest: Suggest
) -> tuple[str, tuple[str, ...]]:
    key = canonicalise(tag)
    if not key:
        raise ConfigError(f"{tag!r} is no hashtag: it has no letter, digit or emoji; write {FORM}")
    if not senses or not all(isinstance(sense, str) for sense in senses):
        raise ConfigError(f"{tag!r} has no synset; write {FORM}")
    if DROP in map(str.lower, senses):
        if len(senses) > 1:
            raise ConfigError(f"{tag!r} has synsets and drop; write either of them")
        return key, ()
    synsets = [_find_synset(key, sense, wordnet, suggest) for sense in senses]
    return key, tuple(dict.fromkeys(synsets))


def _find_synset(key: str, sense: str, wordnet: WordNet, suggest: Suggest) -> str:
    """The id of a synset or of a numbered sense, or a ConfigError with suggestions."""
    if SYNSET.fullmatch(sense):
        if (synset := sense.lower()) in wordnet.synsets:
            return synset
        raise ConfigError(f"no noun of this WordNet has the id {sense}; {suggest(key)}")
    numbered = NUMBERED_LEMMA.fullmatch(sense)
    if numbered is None:
        raise ConfigError(f"{sense!r} is no sense; write {FORM}")
    lemma = numbered["lemma"].lower()
    senses = wordnet.senses.get(lemma) or wordnet.senses.get(lemma.replace("-", "_"), [])
    number = int(numbered["number"])
    if 1 <= number <= len(senses):
        return senses[number - 1]
    if senses:
        raise ConfigError(f"{lemma!r} has {len(senses)} senses, not {number}; {suggest(lemma)}")
    raise ConfigError(f"{lemma!r} is no noun of this WordNet; {suggest(lemma)}")


def _suggest_senses(wordnet: WordNet, word: str) -> str:
    """The senses of a word, or similar words, as text for a message."""
    if senses := wordnet.senses.get(word):
        numbered = [
            f"{word}#{number} {synset} ({wordnet.synsets[synset].gloss.split(';')[0][:40]})"
            for number, synset in enumerate(senses[:MAX_SUGGESTIONS], 1)
        ]
        return f"its senses: {list_names(numbered)}"
    similar = difflib.get_close_matches(word, wordnet.senses, n=MAX_SUGGESTIONS)
    if similar:
        return f"did you mean {', '.join(similar)}?"
    return "ids are those of WordNet 3.0, and an excerpt has only some of them (wordnet=)"
