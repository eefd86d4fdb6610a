"""Match the class names of images with the classes of a model or with targets, in any spelling.

Folders, annotations and datasets name a class as they like: `T-shirt`, `tshirts`, `jersey` or
`n03595614`. The first kind of name that matches counts:

  1. the name of a class, or its WordNet id, also followed by words as in n02085620-Chihuahua;
     such a name is not matched by its words
  2. the name of a class without case, separators and punctuation
  3. a hashtag that was counted to a class, as vocabulary.parquet lists them
  4. the plural or singular of a class of its own, which WordNet lacks
  5. a lemma of its synset, or an inflection of one, if WordNet is installed
"""

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from swag_models.errors import ConfigError
from swag_models.formatting import count_noun, list_names
from swag_models.recipe.curation.own_classes import is_own
from swag_models.recipe.data.datasets import ImageDataset
from swag_models.recipe.hashtags import Matcher, canonicalise
from swag_models.recipe.inflections import pluralise
from swag_models.recipe.wordnet import WordNet

logger = logging.getLogger("swag_models")

MAX_NAMES = 5  # named in a message
LEADING_SYNSET_ID = re.compile(r"[nN]\d{8}(?![^\W_])")  # followed by no letter or digit
Index = Mapping[str, set[int]]  # spelling -> classes


@dataclass(frozen=True)
class NamedClasses:
    """Classes that can be named in several ways.

    Args:
        owner: what has these classes, for messages.
        names: name of each class.
        synsets: WordNet ids of each class; None if not known.
        read_spellings: returns the hashtags of each class, or None without any; called only if
            a name is not that of a class.
        load_wordnet: returns WordNet, or None if it is not installed; called only if needed.
    """

    owner: str
    names: Sequence[str]
    synsets: Sequence[Sequence[str]] | None = None
    read_spellings: Callable[[], Sequence[Sequence[str]] | None] = lambda: None
    load_wordnet: Callable[[], WordNet | None] = lambda: None

    def match(self, names: Sequence[str], source: object) -> list[int | None]:
        """Find the class of each name.

        Args:
            names: names of classes, in any spelling.
            source: where the names come from, for messages.

        Returns:
            The number of the class for each name; None if there is none.

        Raises:
            ConfigError: a name can mean several classes.
        """
        candidates = self.find_candidates(names)
        numbers = {name: min(found) for name, found in candidates.items()}
        for name, found in candidates.items():
            if len(found) > 1:
                titles = [self._describe_class(number) for number in sorted(found)]
                raise ConfigError(
                    f"class {name!r} of {source} can mean several classes of {self.owner}: "
                    f"{list_names(titles, MAX_NAMES)}; rename it to one of them, or to its "
                    "WordNet id"
                )
        return [numbers.get(name) for name in names]

    def find_candidates(
        self, names: Sequence[str], *, by_lemma: bool = True
    ) -> dict[str, set[int]]:
        """Find the classes that each name can mean: those of the first kind of name that matches.

        Args:
            names: names of classes, in any spelling.
            by_lemma: whether lemmas of WordNet match too.

        Returns:
            One class or more for each name that matches.
        """
        candidates: dict[str, set[int]] = {}
        for find in self._list_lookups(by_lemma):
            for name in names:
                if name not in candidates and (found := find(name)):
                    candidates[name] = found
            if len(candidates) == len(set(names)):
                break
        return candidates

    def suggest(self, unmatched: Sequence[str]) -> str:
        """Return similar names of classes for the first unmatched names, as text for a message."""
        known = {canonicalise(name): name for name in reversed(self.names)}
        similar = [
            known[key]
            for name in unmatched[:MAX_NAMES]
            for key in difflib.get_close_matches(canonicalise(name), known, n=1)
        ]
        if similar:
            return f"did you mean {', '.join(dict.fromkeys(similar))}?"
        return f"it has {count_noun(len(self.names), 'class')}, first {', '.join(self.names[:3])}"

    def _list_lookups(self, by_lemma: bool) -> Iterator[Callable[[str], set[int]]]:
        """Yield functions from a name to classes, in the order in which they are tried."""
        exact = _index([(name,) for name in self.names])
        if self.synsets:
            ids = _index(self.synsets)
            yield lambda name: {*exact.get(name, ()), *ids.get(find_id(name) or name, ())}
        else:
            yield lambda name: {*exact.get(name, ())}
        yield self._look_up(_index([map(canonicalise, (name,)) for name in self.names]))
        spellings = self.read_spellings()
        if spellings:
            yield self._look_up(_index([map(canonicalise, tags) for tags in spellings]))
        if own := [
            number for number, ids in enumerate(self.synsets or ()) if any(map(is_own, ids))
        ]:
            singulars, plurals = dict[str, set[int]](), dict[str, set[int]]()
            for number in own:
                for tag in (self.names[number], *(spellings[number] if spellings else ())):
                    singulars.setdefault(canonicalise(tag), set()).add(number)
                    plurals.setdefault(pluralise(canonicalise(tag)), set()).add(number)
            yield self._look_up(plurals)
            yield self._look_up(singulars, pluralise)
        if by_lemma and self.synsets and (wordnet := self.load_wordnet()):
            matcher, by_synset = Matcher(wordnet, "all"), _index(self.synsets)
            yield lambda name: {
                number
                for synset in (() if find_id(name) else matcher.match(name).senses)
                for number in by_synset.get(synset, ())
            }

    def _look_up(
        self, index: Index, inflect: Callable[[str], str] = lambda key: key
    ) -> Callable[[str], set[int]]:
        """A function from a name to the classes of its canonical spelling."""

        def find(name: str) -> set[int]:
            key = canonicalise(name)
            if not key or (self.synsets and find_id(name)):
                return set()
            return {*index.get(inflect(key), ())}

        return find

    def _describe_class(self, number: int) -> str:
        ids = ", ".join(self.synsets[number]) if self.synsets else f"number {number}"
        return f"{self.names[number]} ({ids})"


def relabel_images(
    dataset: ImageDataset, classes: NamedClasses, skip_unmatched: bool = False
) -> ImageDataset:
    """Number the labels of images by other classes, which are matched in any spelling.

    Args:
        dataset: images whose classes have names.
        classes: the classes to number them by.
        skip_unmatched: leave out labels that are no such class, and images without another label;
            their number is logged.

    Raises:
        ConfigError: a name can mean several classes, or none and `skip_unmatched` is false, or no
            image is left.
    """
    names = dataset.class_names or ()
    numbers = classes.match(names, dataset.root)
    unmatched = [name for name, number in zip(names, numbers, strict=True) if number is None]
    if unmatched and not skip_unmatched:
        raise ConfigError(
            f"{dataset.root} has classes that {classes.owner} does not have: "
            f"{list_names(unmatched, MAX_NAMES)}; {classes.suggest(unmatched)}; rename them, or "
            "leave them out with skip_unmatched=True"
        )
    labels = {}
    for index, image_labels in enumerate(dataset.labels):
        matched = [number for label in image_labels if (number := numbers[label]) is not None]
        if matched or not image_labels:  # an image may have no label at all
            labels[index] = tuple(dict.fromkeys(matched))
    if unmatched:
        logger.warning(
            "%s: left out %s that %s does not have (%s), and %s",
            dataset.root,
            count_noun(len(unmatched), "class"),
            classes.owner,
            list_names(unmatched, MAX_NAMES),
            count_noun(len(dataset) - len(labels), "image"),
        )
    if not labels:
        raise ConfigError(
            f"{dataset.root} has no image of a class that {classes.owner} has; "
            f"{classes.suggest(unmatched)}"
        )
    return dataset.relabel(labels, classes.names, len(classes.names))


def find_installed_wordnet() -> WordNet | None:
    """WordNet, or None if it is not installed."""
    try:
        return WordNet.load()
    except ConfigError:
        return None


def _index(spellings: Iterable[Iterable[str]]) -> Index:
    """The classes of each spelling, from the spellings of each class."""
    index: dict[str, set[int]] = {}
    for number, items in enumerate(spellings):
        for item in items:
            index.setdefault(item, set()).add(number)
    return index


def find_id(name: str) -> str | None:
    """The WordNet id that a name is or begins with."""
    match = LEADING_SYNSET_ID.match(name)
    return match[0].lower() if match else None
