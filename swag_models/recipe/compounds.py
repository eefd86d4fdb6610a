"""Compounds that are written apart: `tooth brush` is a toothbrush, but `car pet` is not a carpet.

Separate words that make a lemma by chance are another word. They are those of a lemma if

- one of them is no word by itself: `straw berry`, `be ach`;
- WordNet or the table of senses has no such single word: `ice_cream`, `smart phone`;
- its definition, hypernyms or synonyms have one of them: a toothbrush is a "small brush";
- they are listed in compounds.txt: `butter fly`.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

from swag_models.recipe.senses import SenseRanker

MIN_STEM = 4  # letters of a word that is also recognised in its derivations: bakes, baker
GLOSS_EXAMPLES = re.compile(r'"[^"]*"?')  # of a definition, which have the lemma itself
ASCII_WORDS = re.compile(r"[a-z]+")


class Compounds:
    """Decides whether separate words are those of a lemma that is written as one.

    Args:
        uses: the senses of canonical lemmas.
        find_base: the canonical lemma that a word is or is an inflection of; the word itself if it
            is none.
        is_noun: whether a word can be that of a definition: no function word.
    """

    def __init__(
        self, uses: SenseRanker, find_base: Callable[[str], str], is_noun: Callable[[str], bool]
    ) -> None:
        self.uses, self.find_base, self.is_noun = uses, find_base, is_noun

    def are_parts(self, words: Sequence[str], lemma: str) -> bool:
        """Whether something says that a canonical lemma consists of these canonical words."""
        bases = [self.find_base(word) for word in words]
        if " ".join([*words[:-1], bases[-1]]) in load_compounds():
            return True
        parts = {part for part in (*words, *bases) if self.is_noun(part)}
        stems = tuple(part for part in parts if len(part) >= MIN_STEM)
        for synset in self.uses.senses.get(lemma, ()):
            for word in self._list_words(synset, bases[-1]):
                is_part = word in parts or word.startswith(stems)
                if is_part and not word.startswith(lemma):
                    return True
        return False

    def _list_words(self, synset: str, head: str) -> Iterator[str]:
        """Words of a synset's definition and lemmas; the head, if a lemma of a hypernym has it."""
        net = self.uses.wordnet
        if known := net.synsets.get(synset):
            yield from ASCII_WORDS.findall(GLOSS_EXAMPLES.sub("", known.gloss.lower()))
            for lemma in known.lemmas:
                yield from ASCII_WORDS.findall(lemma.lower())
        for parent in net.ancestors(synset):
            lemmas = net.synsets[parent].lemmas
            if any(head in ASCII_WORDS.findall(lemma.lower()) for lemma in lemmas):
                yield head


@cache
def load_compounds() -> Collection[str]:
    """The compounds of compounds.txt, with spaces between their words."""
    lines = Path(__file__).with_name("compounds.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def hash_compounds() -> str:
    """SHA-256 of the list of `load_compounds`."""
    return hashlib.sha256("\n".join(sorted(load_compounds())).encode()).hexdigest()
