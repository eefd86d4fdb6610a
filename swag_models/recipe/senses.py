"""Which sense of a noun a hashtag has: a table judged by hand, and a choice by evidence.

The table, senses.tsv, has the tags that are used most. `SenseRanker` orders the senses of all other
nouns by WordNet's counts, by what can be seen on an image, and by the classes of ImageNet-1k.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from swag_models.recipe.spelling import canonicalise
from swag_models.recipe.wordnet import WordNet

NO_NOUN = "-"  # in place of a synset
# Weights of the evidence for a sense, in addition to log(1 + its count in WordNet's tagged texts).
# Fitted to the lines of senses.tsv by a conditional logit (3-fold cross-validated), and rounded;
# keys are lexicographer files of lexnames(5WN), those left out have 0.
LEXFILE_WEIGHTS = {
    4: -0.2,  # act
    5: 1.6,  # animal; above food, as for octopus
    6: 1.1,  # artifact
    7: -0.9,  # attribute
    8: 0.3,  # body
    9: -0.7,  # cognition
    10: -0.4,  # communication
    13: 1.5,  # food
    14: -0.4,  # group
    15: 1.0,  # location
    17: 0.5,  # object
    22: -0.8,  # process
    23: -0.8,  # quantity
    24: -1.1,  # relation
    26: -0.3,  # state
    27: 0.3,  # substance
    28: -0.8,  # time
}
IMAGENET_WEIGHT = 1.6  # a class of ImageNet-1k
NAME_WEIGHT = 1.0  # the synset's first lemma
COMMON_WEIGHT = 0.8  # a common noun, not a name
# Times -log(1 + rank in WordNet's order), for lemmas that were counted: this order is that of the
# counts, and means nothing for the others.
RANK_WEIGHT = 0.3
# A word that is an adjective more often than this, per use as a noun, is taken as an adjective
# (simple, cute, wild), except colours and numbers.
ADJECTIVE_RATIO = 3
COLOUR, NUMBER = "n04956594", "n13582013"
ANIMAL, ARTIFACT = 5, 6


class Alternative(NamedTuple):
    """Another sense of a hashtag, and the hashtags beside which it is meant.

    Attributes:
        synset: id of the synset, or "" if the hashtag then means no noun.
        cues: canonical hashtags or lemmas.
    """

    synset: str
    cues: tuple[str, ...]


class Sense(NamedTuple):
    """What a hashtag means.

    Attributes:
        synset: id of the synset, or "" if it means no noun.
        alternatives: other senses, which other hashtags of the same post can point to.
    """

    synset: str
    alternatives: tuple[Alternative, ...] = ()


class RankedSenses(NamedTuple):
    """The senses of a lemma, the likeliest first, and the evidence for the first of them."""

    synsets: tuple[str, ...]
    reason: str


class SenseRanker:
    """Orders the senses of lemmas by evidence.

    Args:
        wordnet: the nouns, with their counts.
        senses: for each canonical lemma, the ids of its synsets in WordNet's order.
        imagenet: ids of the classes of ImageNet-1k.
    """

    def __init__(
        self, wordnet: WordNet, senses: Mapping[str, tuple[str, ...]], imagenet: Iterable[str]
    ) -> None:
        self.wordnet, self.senses, self.imagenet = wordnet, senses, frozenset(imagenet)
        self.counts: dict[str, dict[str, int]] = {}
        for lemma, counts in wordnet.counts.items():
            merged = self.counts.setdefault(canonicalise(lemma), {})
            for synset, count in counts.items():
                merged[synset] = merged.get(synset, 0) + count
        self._totals = Counter[str]()
        for counts in wordnet.counts.values():
            self._totals.update(counts)
        self.adjective_uses: dict[str, int] = {}
        for word, count in wordnet.adjective_uses.items():
            key = canonicalise(word)
            self.adjective_uses[key] = self.adjective_uses.get(key, 0) + count

    def rank(self, lemma: str) -> RankedSenses:
        """Order the senses of a canonical lemma, the likeliest first; ties in WordNet's order."""
        senses = self.senses[lemma]
        if len(senses) == 1:
            return RankedSenses(senses, "only sense")
        scores = {sense: self._score(lemma, sense, rank) for rank, sense in enumerate(senses)}
        best, *others = sorted(senses, key=lambda sense: -scores[sense])
        if self.counts.get(lemma, {}).get(best):
            reason = "counted"
        elif best in self.imagenet:
            reason = "ImageNet"
        else:
            reason = "first sense" if best == senses[0] else "visual"
        return RankedSenses((best, *others), reason)

    def rank_synsets(self, synsets: Iterable[str]) -> tuple[str, ...]:
        """Order synsets that are senses of a word of another language, the likeliest first.

        Lexicons of other languages have no counts, so those of all English lemmas stand for them.
        """
        return tuple(
            sorted(
                synsets,
                key=lambda synset: -math.log1p(self._totals[synset]) - self._score("", synset, 0),
            )
        )

    def prefers_plural(self, plural: str, singular: str) -> bool:
        """Whether a plural that is a lemma has a meaning of its own, unlike `men` and `eyes`.

        It has if WordNet counted it at least as often as its singular (physics, Mars, pants), or
        if it is a thing all of whose names are plurals (glasses, spectacles). Where neither was
        counted, the likelier sense decides. Plurals of animals have none: oxen are no "cattle".
        """
        # singulars of two letters are abbreviations: gas is no plural of Ga
        if len(singular) < 3 and plural == f"{singular}s":
            return True
        synsets = [self.rank(lemma).synsets[0] for lemma in (plural, singular)]
        own, other = (self.wordnet.synsets.get(synset) for synset in synsets)
        if own is None or other is None:  # an excerpt of WordNet
            return True
        if own.lexfile == other.lexfile == ANIMAL:
            return False
        thing = own.lexfile == ARTIFACT and all(word.endswith("s") for word in own.lemmas)
        counts = [sum(self.counts.get(lemma, {}).values()) for lemma in (plural, singular)]
        if counts[0] != counts[1]:
            return counts[0] > counts[1] or (thing and counts[0] > 0)
        if counts[0]:
            return True
        scores = [
            self._score(lemma, synset, 0)
            for lemma, synset in zip((plural, singular), synsets, strict=True)
        ]
        return scores[0] > scores[1] or thing

    def is_adjective(self, lemma: str) -> bool:
        """Whether a canonical lemma is mainly an adjective or adverb, and no colour or number."""
        nouns = sum(self.counts.get(lemma, {}).values())
        if self.adjective_uses.get(lemma, 0) <= max(1, ADJECTIVE_RATIO * nouns):
            return False
        return not any(
            {COLOUR, NUMBER} & self.wordnet.ancestors(synset).keys()
            for synset in self.senses[lemma]
        )

    def _score(self, lemma: str, synset: str, rank: int) -> float:
        counts = self.counts.get(lemma, {})
        entry = self.wordnet.synsets.get(synset)
        score = math.log1p(counts.get(synset, 0))
        score -= RANK_WEIGHT * math.log1p(rank) * bool(counts)
        score += IMAGENET_WEIGHT * (synset in self.imagenet)
        if entry:
            score += LEXFILE_WEIGHTS.get(entry.lexfile, 0)
            score += NAME_WEIGHT * (canonicalise(entry.lemmas[0]) == lemma)
            score += COMMON_WEIGHT * any(
                word.islower() and canonicalise(word) == lemma for word in entry.lemmas
            )
        return score


def parse_senses(lines: Iterable[str]) -> dict[str, Sense]:
    """Parse lines of the table, whose format is described in senses.tsv.

    Returns:
        The sense of each canonical hashtag.
    """
    senses = {}
    for line in lines:
        if not line.startswith("#"):
            key, synset, *choices = line.split("\t")
            pairs = [choice.split(":") for choice in choices]
            alternatives = [
                Alternative(_parse_synset(other), tuple(cues.split())) for other, cues in pairs
            ]
            senses[key] = Sense(_parse_synset(synset), tuple(alternatives))
    return senses


@cache
def load_senses() -> Mapping[str, Sense]:
    """The table of senses that comes with the library: senses.tsv."""
    return parse_senses(Path(__file__).with_name("senses.tsv").read_text("utf-8").splitlines())


def keep_senses(
    senses: Mapping[str, Sense], wordnet: WordNet, singularise: Callable[[str], str]
) -> dict[str, Sense]:
    """The senses whose synsets are in WordNet, of which an excerpt may lack some.

    Args:
        senses: the senses of hashtags.
        wordnet: the nouns.
        singularise: gives the lemma of a plural; cues are matched as lemmas.
    """
    kept = {}
    for tag, sense in senses.items():
        if not sense.synset or sense.synset in wordnet.synsets:
            known = [
                Alternative(other.synset, tuple(dict.fromkeys(map(singularise, other.cues))))
                for other in sense.alternatives
                if not other.synset or other.synset in wordnet.synsets
            ]
            kept[tag] = Sense(sense.synset, tuple(known))
    return kept


def list_cues(senses: Mapping[str, Sense]) -> frozenset[str]:
    """All words that point to one of the alternatives."""
    return frozenset(
        cue
        for sense in senses.values()
        for alternative in sense.alternatives
        for cue in alternative.cues
    )


def hash_senses() -> str:
    """SHA-256 of the table, which tells whether results were made with the same one."""
    return hashlib.sha256(repr(sorted(load_senses().items())).encode()).hexdigest()


def _parse_synset(text: str) -> str:
    return "" if text == NO_NOUN else text
