"""Plurals of WordNet's nouns: the lemmas that a hashtag can be an inflection of."""

from collections.abc import Container

from swag_models.recipe.spelling import canonicalise
from swag_models.recipe.wordnet import WordNet

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


class Inflections:
    """Finds the lemmas of plurals.

    Args:
        wordnet: the nouns, and the irregular plurals.
        lemmas: the canonical lemmas.
    """

    def __init__(self, wordnet: WordNet, lemmas: Container[str]) -> None:
        self.lemmas = lemmas
        self.irregular = _list_irregular(wordnet)

    def find_singular(self, key: str, words: Container[str] | None = None) -> str | None:
        """The canonical lemma, or one of other words, that a hashtag is an inflection of.

        Args:
            key: the canonical hashtag.
            words: canonical words; by default the lemmas.
        """
        words = self.lemmas if words is None else words
        for base in self.irregular.get(key, ()):
            if base in words and base != key:
                return base
        # words in -ss and words of two letters are not plurals, by morphy's rules
        if key.endswith(("s", "men")) and len(key) > 2 and not key.endswith("ss"):
            for suffix, ending in DETACHMENTS.items():
                if key.endswith(suffix) and (base := key[: -len(suffix)] + ending) in words:
                    return base
        return None


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
            firsts = plurals.get(first, [pluralise(first)])
            inflections += [(f"{word}{rest}", lemma) for word in firsts]
        elif start:  # Canada geese
            inflections += [(f"{start}{word}", lemma) for word in plurals.get(last, ())]
    irregular: dict[str, list[str]] = {}
    for word, base in inflections:
        irregular.setdefault(canonicalise(word), []).append(canonicalise(base))
    return irregular


def pluralise(noun: str) -> str:
    """The regular plural of a noun: `DETACHMENTS` in reverse."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("man"):
        return f"{noun[:-3]}men"
    return f"{noun[:-1]}ies" if noun[-1:] == "y" and noun[-2:-1] not in "aeiou" else f"{noun}s"
