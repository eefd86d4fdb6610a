"""Which classes of a pre-trained model a new class starts from: rows of its head, with weights.

For each new class, the first of these kinds that finds any row of the head:

  name       the class of the model that has its name, its WordNet id or its hashtag
  synset     hashtags of the synset that its name means
  hyponyms   hashtags below this synset, with half the weight for each step
  hypernyms  hashtags above it, likewise; at most `MAX_HYPERNYM_STEPS` steps

Axes: T new classes, K classes of the model.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from swag_models.errors import ConfigError
from swag_models.recipe.classes.class_matching import find_id
from swag_models.recipe.classes.spec_classes import find_synsets, name_spec_classes
from swag_models.recipe.classes.wordnet_mapping import HashtagMapping, Target
from swag_models.recipe.curation.own_classes import is_own
from swag_models.recipe.hashtags import Match, Matcher
from swag_models.recipe.wordnet import WordNet
from swag_models.spec import ModelSpec

# The kinds of `HashtagMapping` in the order in which they are tried, by the names above.
KINDS_BY_NAME = {"synset": "same", "hyponyms": "hyponyms", "hypernyms": "hypernyms"}
# Our choice: hashtags further above say little, such as #object of a forklift
MAX_HYPERNYM_STEPS = 4
SHOWN = 5  # classes of the model that a report names for a new class
NAME_SEPARATORS = re.compile(r"[,;/|()\[\]]")  # between several names of one class
Weights = dict[int, float]


class ClassRows(NamedTuple):
    """The rows of a head that each new class starts from.

    Attributes:
        model: name of the model.
        names: of the new classes (T).
        kinds: the kind of match of each class (T); "" without one.
        weights: for each class (T), the weight of each row; they sum to 1.
        hashtags: names of the classes of the model (K).
    """

    model: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    weights: tuple[Weights, ...]
    hashtags: tuple[str, ...]

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The classes without a row."""
        return tuple(name for name, kind in zip(self.names, self.kinds) if not kind)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: numbers of classes by kind, the hashtags of each class, those without."""
        counts = Counter(filter(None, self.kinds))
        best = [sorted(row, key=lambda k: (-row[k], k))[:SHOWN] for row in self.weights]
        return {
            "model": self.model,
            "matched": {kind: counts[kind] for kind in ("name", *KINDS_BY_NAME)},
            "classes": {
                name: [self.hashtags[number] for number in numbers]
                for name, numbers in zip(self.names, best)
                if numbers
            },
            "unmatched": list(self.unmatched),
        }


def match_rows(
    spec: ModelSpec,
    names: Sequence[str],
    synsets: Sequence[str] | None = None,
    wordnet: WordNet | None = None,
) -> ClassRows:
    """Find the rows of a model's head that new classes start from.

    Args:
        spec: of the model, whose classes have names.
        names: of the new classes (T), in any spelling; also several for one class, separated by
            commas, of which one says what another means: "crane, bird".
        synsets: WordNet ids of the new classes, if they are hashtags.
        wordnet: defines words; without it, only names, ids and hashtags of the model match.

    Raises:
        ConfigError: the classes of the model have no names, or its vocabulary does not fit them.
    """
    if spec.num_classes is None or spec.classes is None:
        what = "has no head" if spec.num_classes is None else "has classes without names"
        raise ConfigError(
            f"{spec.name} {what}, so a new head cannot start from its hashtags; choose a model "
            'with hashtags, such as vit_nano_hashtags, or head_init="random"'
        )
    classes = name_spec_classes(spec)
    # a hashtag without a synset, which has the id tag:NAME, is known by its name
    keys = [
        name if synset is None or is_own(synset) else synset
        for name, synset in zip(names, synsets or (None,) * len(names), strict=True)
    ]
    reader = None if wordnet is None else NameReader(wordnet, keys)
    candidates = classes.find_candidates(keys, by_lemma=False)
    # Two classes can have a name, and the others can say that it is not used as their hashtag.
    named = [
        key in candidates
        and not (reader and (len(candidates[key]) > 1 or reader.depends_on_others(key)))
        for key in keys
    ]
    found = [
        ("name", dict.fromkeys(sorted(candidates[key]), 1.0)) if is_named else ("", {})
        for key, is_named in zip(keys, named)
    ]
    if reader and (ids := find_synsets(spec)):
        missing = [number for number, is_named in enumerate(named) if not is_named]
        targets = [Target(names[number], reader.read(keys[number])) for number in missing]
        for number, match in zip(missing, _weigh(reader.wordnet, ids, targets)):
            found[number] = match
    return ClassRows(
        spec.name,
        tuple(names),
        tuple(kind for kind, _ in found),
        tuple(_normalise(row) for _, row in found),
        tuple(classes.names),
    )


class NameReader:
    """Reads the names that people give to the classes of a data set.

    A name that can mean several things is read by the other names, as a hashtag by the others of
    its post: beside "heron", "crane" is a bird.

    Args:
        wordnet: defines words.
        names: of all classes.
    """

    def __init__(self, wordnet: WordNet, names: Sequence[str]) -> None:
        self.wordnet, self.matcher = wordnet, Matcher(wordnet)
        self.matches = dict(zip(names, self.matcher.match_post(names)))

    def depends_on_others(self, name: str) -> bool:
        """Whether the other names have decided what a name means."""
        return self.matches[name].reason == "context"

    def read(self, name: str) -> tuple[str, ...]:
        """The synsets that one of the names means; none if it has no noun."""
        # as in the names of folders of ImageNet, n02085620-Chihuahua, and in lists of targets
        ids = [identifier for word in name.split() if (identifier := find_id(word))]
        if ids:
            return tuple(id for id in dict.fromkeys(ids) if id in self.wordnet.synsets)
        match = self.matches[name]
        parts = [part.strip() for part in NAME_SEPARATORS.split(name) if part.strip()]
        if len(parts) < 2 and match.how == "phrase":
            parts = match.lemma.split()
        return _choose_synsets(match) if len(parts) < 2 else self._read_parts(parts)

    def _read_parts(self, parts: Sequence[str]) -> tuple[str, ...]:
        """The synsets of several words: the senses that they share, or else those of each.

        A sense of a word is shared if it is also a sense of another word, or below one: of "crane,
        bird", the sense of crane that is a bird. "Mouse, computer" may also be a computer mouse.
        """
        reversed_match = self.matcher.match(" ".join(reversed(parts)))
        if reversed_match.how not in ("phrase", "unknown"):
            return _choose_synsets(reversed_match)
        matches = [self.matcher.match(part) for part in parts]
        senses = [dict.fromkeys((*match.synsets, *match.senses)) for match in matches]
        shared = dict[str, None]()
        for index, own in enumerate(senses):
            others = {sense for other in (*senses[:index], *senses[index + 1 :]) for sense in other}
            for sense in own:
                if others & {sense, *self.wordnet.ancestors(sense)}:
                    shared[sense] = None
                    break
        return tuple(
            shared or dict.fromkeys(id for match in matches for id in _choose_synsets(match))
        )


def _choose_synsets(match: Match) -> tuple[str, ...]:
    """The synsets of a match; a word that is rarely a noun on images is one as a class."""
    return match.synsets or match.senses[:1]


def _weigh(
    wordnet: WordNet, hashtags: Sequence[str], targets: Sequence[Target]
) -> list[tuple[str, Weights]]:
    """The kind of match and the weights of each target, not normalised."""
    kinds, weights = [""] * len(targets), [Weights() for _ in targets]
    for kind, mapping in KINDS_BY_NAME.items():
        missing = [number for number, earlier in enumerate(kinds) if not earlier]
        table = HashtagMapping(mapping).weigh(wordnet, hashtags, [targets[n] for n in missing])
        for (row, column), weight in zip(table.indices().T.tolist(), table.values().tolist()):
            number = missing[column]
            if kind != "hypernyms" or (
                _count_steps(wordnet, targets[number], hashtags[row]) <= MAX_HYPERNYM_STEPS
            ):
                kinds[number], weights[number][row] = kind, weight
    return list(zip(kinds, weights))


def _count_steps(wordnet: WordNet, target: Target, ancestor: str) -> float:
    """The smallest number of steps from a target up to a synset above it."""
    return min(wordnet.ancestors(synset).get(ancestor, math.inf) for synset in target.synsets)


def _normalise(weights: Weights) -> Weights:
    total = sum(weights.values())
    return {row: weight / total for row, weight in weights.items()}
