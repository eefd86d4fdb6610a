"""Names of the classes of a curation: what people wrote most, unique within the vocabulary."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from swag_models.recipe.hashtags import canonicalise
from swag_models.recipe.wordnet import WordNet


def name_classes(
    wordnet: WordNet, classes: Iterable[tuple[str, Sequence[tuple[str, int]]]]
) -> list[str]:
    """Name each class by its most used spelling: `toy`, not WordNet's `plaything`.

    Spellings with the same canonical hashtag are counted together. If senses of one word are
    several classes, the first of them has the plain name, and the others add a hypernym in
    brackets: `flag`, `flag (emblem)`.

    Args:
        wordnet: contains the synsets.
        classes: synset of each class, and its spellings with their numbers of uses; the classes
            that come first have the first choice of a name.

    Returns:
        The names, which are different even without their separators and brackets.
    """
    names, taken = [], set[str]()
    for synset, spellings in classes:
        for name in _propose_names(wordnet, synset, spellings):
            if canonicalise(name) not in taken:
                break
        taken.add(canonicalise(name))
        names.append(name)
    return names


def _propose_names(
    wordnet: WordNet, synset: str, spellings: Sequence[tuple[str, int]]
) -> Iterator[str]:
    """Yield names for a class, the best first; the last one contains its id, so it is unique."""
    uses = Counter[str]()
    for tag, count in spellings:
        uses[canonicalise(tag) or synset] += count
    # of equally used spellings, the first in the alphabet, whatever order the backend returns
    name = min(uses, key=lambda spelling: (-uses[spelling], spelling))
    yield name
    for ancestor in wordnet.ancestors(synset):
        yield f"{name} ({wordnet.synsets[ancestor].lemmas[0].replace('_', ' ')})"
    yield f"{name} ({synset})"
