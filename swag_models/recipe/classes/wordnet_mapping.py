"""Targets of zero-shot classification, and the weights of hashtags for them, by WordNet.

A target is a name with the WordNet synsets that it means. Weights are computed from the positions
of synsets in WordNet's hierarchy.

Axes: K hashtags, T targets, P hashtags below one synset.
"""

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swag_models.errors import ConfigError, check_minimum
from swag_models.formatting import list_names
from swag_models.paths import read_lines
from swag_models.recipe.classes.class_matching import NamedClasses
from swag_models.recipe.classes.mapping_kinds import (
    DEFAULT_THRESHOLDS,
    MAPPINGS,
    Array,
    CommonAncestor,
)
from swag_models.recipe.classes.spec_classes import IMAGENET
from swag_models.recipe.curation.own_classes import OWN_PREFIX, is_own
from swag_models.recipe.hashtags import Matcher, load_imagenet
from swag_models.recipe.wordnet import WordNet

logger = logging.getLogger("swag_models")

# "n" and the offset of a noun in WordNet 3.0's data file, or a hashtag that is a class of its own
SYNSET_ID = re.compile(rf"n\d{{8}}|{OWN_PREFIX}\S+")
IMAGENET_INDEX = re.compile(r"\d{1,3}")
Senses = Literal["context", "first", "all"]


class Target(NamedTuple):
    """A class to predict.

    Attributes:
        name: name of the class, as in the list of targets and in the data.
        synsets: WordNet ids.
    """

    name: str
    synsets: tuple[str, ...]


def parse_targets(
    targets: str | os.PathLike[str] | Sequence[str],
    wordnet: WordNet,
    *,
    senses: Senses = "context",
    skip_unmatched: bool = False,
    model_classes: NamedClasses | None = None,
) -> tuple[Target, ...]:
    """Parse a list of targets.

    A target is a WordNet id (`n02084071`), the index of an ImageNet-1k class (`0` to `999`), a
    noun (`dog`, `hot dogs`), or a name followed by the ids of its synsets
    (`table n04379243`).

    Args:
        targets: "imagenet-1k" for its 1000 classes, a text file with one target per line, where
            `# ` begins a comment, words separated by commas, or a list.
        wordnet: defines the ids and nouns.
        senses: whether a noun means what people mean by it on images ("context"), its "first" sense
            in WordNet's order, or "all" of them, see `hashtags.Matcher`.
        skip_unmatched: leave out words that are no noun; they are logged.
        model_classes: classes of the model; a word that is not a noun may be a spelling of one.

    Raises:
        ConfigError: a target is unknown or listed twice, or the list is empty.
    """
    matcher = Matcher(wordnet, senses)
    parsed, unmatched = list[Target](), list[str]()
    for text in _list_texts(targets):
        if target := _parse_target(text, matcher, wordnet, model_classes):
            parsed.append(target)
        else:
            unmatched.append(text)
    if unmatched and not skip_unmatched:
        raise ConfigError(_explain_unmatched(unmatched, matcher))
    if unmatched:
        logger.warning("left out the targets that are no nouns: %s", list_names(unmatched))
    if not parsed:
        raise ConfigError(f"no targets in {targets!s}; pass words, WordNet ids, or {IMAGENET}")
    counts = Counter(target.name for target in parsed)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(
            f"targets listed more than once: {', '.join(repeated[:5])}; list each target once"
        )
    return tuple(parsed)


def format_target(target: Target, wordnet: WordNet) -> str:
    """The name for readers, with a word after an id or index: `n02084071 (dog)`.

    Args:
        target: the target.
        wordnet: contains the words of the target's first synset.
    """
    is_number = SYNSET_ID.fullmatch(target.name) or IMAGENET_INDEX.fullmatch(target.name)
    synset = wordnet.synsets.get(target.synsets[0])
    if not is_number or synset is None:
        return target.name
    return f"{target.name} ({synset.lemmas[0].replace('_', ' ')})"


def _list_texts(targets: str | os.PathLike[str] | Sequence[str]) -> Sequence[str]:
    if targets == IMAGENET:
        return load_imagenet()
    if isinstance(targets, os.PathLike) or (isinstance(targets, str) and Path(targets).is_file()):
        lines = read_lines(targets, "a text file with one per line", f"targets {targets}")
        # with a space, because a word may contain #
        targets = [line.partition("# ")[0] for line in lines if not line.startswith("#")]
    elif isinstance(targets, str):
        targets = targets.split(",")
    return [text.strip() for text in targets if text.strip()]


def _parse_target(
    text: str, matcher: Matcher, wordnet: WordNet, model_classes: NamedClasses | None
) -> Target | None:
    """Parse one target; None if it is a word that is no noun and no class of the model."""
    words = text.split()
    if IMAGENET_INDEX.fullmatch(text):  # before nouns, because WordNet's nouns include numerals
        return Target(text, (load_imagenet()[int(text)],))
    ids = [word for word in words if SYNSET_ID.fullmatch(word)]
    if ids:
        name = " ".join(words[: -len(ids)]) or ids[0]
        if words[-len(ids) :] != ids:
            raise ConfigError(
                f"invalid target {text!r}: words follow an id; write the name first, as in: "
                "table n04379243"
            )
        if unknown := [name for name in ids if not (is_own(name) or name in wordnet.synsets)]:
            raise ConfigError(
                f"invalid target {text!r}: no noun of this WordNet has the id {unknown[0]}; ids "
                "are those of WordNet 3.0, and an excerpt has only some of them (wordnet=)"
            )
        return Target(name, tuple(dict.fromkeys(ids)))  # without duplicates, in order
    match = matcher.match(text)
    # a word that is rarely a noun on images is one as a target
    synsets = match.synsets or match.senses[:1]
    if not synsets and model_classes and model_classes.synsets:
        (number,) = model_classes.match([text], "the targets")
        synsets = () if number is None else tuple(model_classes.synsets[number])
    return Target(text, synsets) if synsets else None


def _explain_unmatched(unmatched: Sequence[str], matcher: Matcher) -> str:
    """The message for words that are no nouns."""
    text, others = unmatched[0], unmatched[1:]
    similar = difflib.get_close_matches(text.lower(), matcher.lemmas, n=3, cutoff=0.6)
    more = f", nor is {list_names(others, 2)}" if others else ""
    hint = f"did you mean {', '.join(similar)}?" if similar else "use a noun"
    return (
        f"invalid target {text!r}: not a noun of this WordNet{more}; {hint}, or say what it means "
        f"in a file for targets=, with a line of a name and a WordNet id: {text} n04379243; or "
        "leave it out with skip_unmatched=True"
    )


@dataclass(frozen=True)
class HashtagMapping:
    """Which hashtags count for a target, and with what weight.

    Kinds, where d is the smallest number of steps in the hierarchy:
        same: hashtags of the target's own synset, with weight 1.
        hyponyms: also hashtags below it, with weight decay ** d.
        hypernyms: the same synset, and hashtags above it with weight decay ** d, which is divided
            among all targets below the hashtag.
        related: hyponyms and hypernyms.
        path: all hashtags, with weight 1 / (1 + d) for the shortest path through a common ancestor.
        wup: all hashtags, with the similarity of Wu and Palmer (1994): 2 m / (2 m + d), where m is
            the depth of the common ancestor, along the longest path from a root of depth 1. If
            there are several common ancestors, the one with the largest weight counts.

    Attributes:
        kind: one of the above.
        decay: factor of the weight for each step, above 0 and at most 1.
        threshold: smaller weights are set to 0. Default: 0.8 for wup, 1/3 for path, otherwise 0.
        best: number of hashtags that count for a target, those with the largest weights; None for
            all.

    Raises:
        ConfigError: a value is out of range.
    """

    kind: str = "related"
    decay: float = 0.5
    threshold: float | None = None
    best: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in MAPPINGS:
            raise ConfigError(f"invalid mapping {self.kind!r}: allowed: {', '.join(MAPPINGS)}")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"invalid decay {self.decay:g}: allowed: above 0, at most 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"invalid threshold {self.threshold:g}: allowed: 0 to 1")
        check_minimum(1, best=self.best)

    def weigh(self, wordnet: WordNet, hashtags: Sequence[str], targets: Sequence[Target]) -> Tensor:
        """Compute the weight of each hashtag for each target.

        Args:
            wordnet: contains all synsets.
            hashtags: synset of each hashtag (K).
            targets: the targets (T); of a target's synsets, the one with the largest weight counts.

        Returns:
            (K, T), float64, sparse.
        """
        hashtags_below = _index_hashtags(wordnet, hashtags)
        targets_below = _count_targets_below(wordnet, hashtags, targets)
        depths: dict[str, int] = {}
        entries = []
        for column, target in enumerate(targets):
            weights = np.zeros(len(hashtags))
            for synset in target.synsets:
                for ancestor, steps in _climb(wordnet, synset):
                    if ancestor not in hashtags_below:
                        continue
                    rows, hashtag_steps = hashtags_below[ancestor]
                    depth = _measure_depth(wordnet, ancestor, depths)
                    common = CommonAncestor(hashtag_steps, steps, depth, targets_below[rows])
                    # a hashtag and a target can have several common ancestors
                    weights[rows] = np.maximum(
                        weights[rows], MAPPINGS[self.kind](common, self.decay)
                    )
            entries += [(row, column, weights[row]) for row in self._select(weights)]
        table = torch.tensor(entries, dtype=torch.float64).view(-1, 3)
        indices, values = table[:, :2].T.long(), table[:, 2]
        size = (len(hashtags), len(targets))
        return torch.sparse_coo_tensor(indices, values, size, check_invariants=True).coalesce()

    def _select(self, weights: Array) -> list[int]:
        """Hashtags whose weights count for a target."""
        threshold = self.threshold
        if threshold is None:
            threshold = DEFAULT_THRESHOLDS.get(self.kind, 0.0)
        # stable: the first of equal weights are the best
        order = np.argsort(-weights, kind="stable")[: self.best]
        # rounding must not drop a weight that equals the threshold
        return [
            row for row in order.tolist() if weights[row] > 0 and weights[row] >= threshold - 1e-9
        ]


def _climb(wordnet: WordNet, synset: str) -> Iterable[tuple[str, int]]:
    """A synset and all its ancestors, with the steps up to each."""
    return [(synset, 0), *wordnet.ancestors(synset).items()]


def _index_hashtags(
    wordnet: WordNet, hashtags: Sequence[str]
) -> dict[str, tuple[NDArray[np.int64], Array]]:
    """For each synset: rows of the hashtags at or below it, and the steps up from each."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for row, synset in enumerate(hashtags):
        for ancestor, steps in _climb(wordnet, synset):
            pairs.setdefault(ancestor, []).append((row, steps))
    return {
        ancestor: (
            np.array([row for row, _ in rows_and_steps]),
            np.array([steps for _, steps in rows_and_steps], dtype=float),
        )
        for ancestor, rows_and_steps in pairs.items()
    }


def _count_targets_below(
    wordnet: WordNet, hashtags: Sequence[str], targets: Sequence[Target]
) -> Array:
    """Number of targets below each hashtag (K,)."""
    counts = Counter[str]()
    for target in targets:
        # a set: a target with several synsets below one hashtag counts once
        counts.update({above for synset in target.synsets for above in wordnet.ancestors(synset)})
    return np.array([counts[synset] for synset in hashtags], dtype=float)


def _measure_depth(wordnet: WordNet, synset: str, depths: dict[str, int]) -> int:
    """Depth of a synset: 1 for a root, 1 + that of the deepest parent; `depths` caches results."""
    if synset not in depths:
        # an excerpt of WordNet may lack a parent
        own = wordnet.synsets.get(synset)  # None for a hashtag that is a class of its own
        parents = [name for name in own.parents if name in wordnet.synsets] if own else []
        parent_depths = (_measure_depth(wordnet, parent, depths) for parent in parents)
        depths[synset] = 1 + max(parent_depths, default=0)
    return depths[synset]
