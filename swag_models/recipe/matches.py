"""What a hashtag means, and the choice among its meanings by the other hashtags of its post."""

from collections.abc import Collection
from typing import NamedTuple

from swag_models.recipe.senses import Alternative


class Match(NamedTuple):
    """The synsets that a hashtag is matched with.

    Attributes:
        synsets: ids of its synsets; empty if it has none.
        how: "lemma", "inflection", "ambiguous" (a lemma or inflection with several senses),
            "foreign" (a word of another language only), "override", "phrase" (of several lemmas),
            "dropped" (no noun), "stopped" or "unknown".
        lemma: the canonical lemma that the hashtag equals or inflects, or those of a phrase.
        senses: ids of all synsets of the lemma, in WordNet's order.
        reason: why these synsets: "override", "table", "only sense", "counted", "ImageNet",
            "visual", "first sense", "all senses", "language fr" (a code), "dropped: ambiguous" or
            "dropped: mainly an adjective"; empty if `how` says it.
        alternatives: other senses, which other hashtags of the same post can point to.
        stopped: the stop words that the hashtag is or, as a phrase, has.
    """

    synsets: tuple[str, ...]
    how: str
    lemma: str = ""
    senses: tuple[str, ...] = ()
    reason: str = ""
    alternatives: tuple[Alternative, ...] = ()
    stopped: tuple[str, ...] = ()


def choose_alternative(match: Match, cues: Collection[str]) -> Match:
    """The match with the sense to which most of the cues point, see `Matcher.match_post`."""
    ranked = list_alternatives(match)
    overlaps = [len(set(other.cues).intersection(cues)) for other in ranked]
    if not ranked or not max(overlaps):
        return match
    synset = ranked[overlaps.index(max(overlaps))].synset
    return match._replace(synsets=(synset,) if synset else (), reason="context")


def list_alternatives(match: Match) -> list[Alternative]:
    """The alternatives of a hashtag; the first of those with most cues is chosen."""
    return sorted(match.alternatives, key=lambda other: (other.synset,) != match.synsets)
