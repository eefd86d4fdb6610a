"""Hashtags that are words of several languages: which language a post is in decides.

A word of English alone is evidence for English, and one of another language alone for that. A
hashtag that means something else in both (a Gift is poison in German) is English, unless its post
has more evidence for the other language; a name of a person is English only with evidence. Every
language has a few cues, among which its words are distributed, so that the number of words counts;
see `curation.context` for the choice itself.
"""

import zlib
from collections.abc import Iterable

from swag_models.recipe.languages import ENGLISH, Languages
from swag_models.recipe.matches import Match
from swag_models.recipe.senses import Alternative, SenseRanker
from swag_models.recipe.spelling import canonicalise

CUE_BUCKETS = 8  # cues of a language
PERSON = 18  # lexicographer file


def add_languages(
    match: Match, key: str, languages: Languages, ranker: SenseRanker, policy: str
) -> Match:
    """Add the meanings of a hashtag in other languages to its match as an English word.

    Args:
        match: as an English word; "unknown" if it is none.
        key: the canonical hashtag.
        languages: the words of other languages.
        ranker: orders senses.
        policy: which senses to use, see `Matcher`.
    """
    words = languages.words.get(key)
    if not words or match.how == "stopped" or match.reason == "override":
        return match
    found = {code: _choose_sense(synsets, ranker, policy) for code, synsets in words.items()}
    language, english = ENGLISH[0], match
    if match.how == "unknown" or _is_person(match, key, ranker):
        language, synsets = next(iter(found.items()))
        if not synsets:
            return Match((), "dropped", key, words[language], "dropped: ambiguous")
        match = Match(synsets, "foreign", key, words[language], f"language {language}")
    if len(match.synsets) > 1:
        return match
    default = "".join(match.synsets)
    # a word that can mean the same in both languages is no false friend
    others = [
        Alternative(synset, _list_cues(ENGLISH[0]))
        for synset in english.synsets
        if language != ENGLISH[0] and synset not in words[language]
    ] + [
        Alternative(synsets[0], _list_cues(code))
        for code, synsets in found.items()
        if len(synsets) == 1 and code != language and default not in words[code]
    ]
    if not others:
        return match
    own = [cue for other in match.alternatives if other.synset == default for cue in other.cues]
    rest = [other for other in match.alternatives if other.synset != default]
    how = "ambiguous" if match.how == "dropped" else match.how
    first = Alternative(default, (*own, *_list_cues(language)))
    return match._replace(how=how, alternatives=(first, *rest, *others))


def _is_person(match: Match, key: str, ranker: SenseRanker) -> bool:
    """Whether a hashtag is a person's name in English: Baum, which is a tree in German."""
    entries = [ranker.wordnet.synsets[synset] for synset in match.synsets]
    return bool(entries) and all(
        entry.lexfile == PERSON
        and all(not word.islower() for word in entry.lemmas if canonicalise(word) == key)
        for entry in entries
    )


def find_language_cues(key: str, match: Match, languages: Languages) -> set[str]:
    """The cues that a hashtag is: those of the language, if it is a word of one language alone.

    Args:
        key: the canonical hashtag.
        match: what it means.
        languages: the words of other languages.
    """
    if not languages.words or not match.synsets or is_false_friend(match):
        return set()
    codes: Iterable[str] = languages.words.get(key, ())
    if match.how != "foreign":
        codes = () if codes or match.lemma in languages.words else ENGLISH[:1]
    bucket = zlib.crc32(key.encode()) % CUE_BUCKETS
    return {_list_cues(code)[bucket] for code in codes}


def is_false_friend(match: Match) -> bool:
    """Whether a hashtag means different things in several languages."""
    return any(cue.startswith("@") for other in match.alternatives for cue in other.cues)


def _list_cues(language: str) -> tuple[str, ...]:
    """The cues of a language; "@" is in no canonical hashtag."""
    return tuple(f"@{language}{bucket}" for bucket in range(CUE_BUCKETS))


def _choose_sense(synsets: tuple[str, ...], ranker: SenseRanker, policy: str) -> tuple[str, ...]:
    """The senses of a word of another language, by the policy."""
    if policy == "all" or len(synsets) == 1:
        return synsets
    if policy == "drop":
        return ()
    return ranker.rank_synsets(synsets)[:1] if policy == "context" else synsets[:1]
