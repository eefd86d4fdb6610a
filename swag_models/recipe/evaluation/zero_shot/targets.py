"""Targets of zero-shot classification: names and the WordNet synsets that they mean."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from swag_models.errors import ConfigError
from swag_models.recipe.hashtags import Matcher, load_imagenet
from swag_models.recipe.wordnet import WordNet

IMAGENET = "imagenet-1k"
WORDNET_ID = re.compile(r"n\d{8}")  # "n" and the offset of a noun in WordNet 3.0's data file
IMAGENET_INDEX = re.compile(r"\d{1,3}")
Senses = Literal["first", "all"]


class Target(NamedTuple):
    """A class to predict.

    Attributes:
        name: name of the class, as in the list of targets and in the data.
        synsets: WordNet ids.
    """

    name: str
    synsets: tuple[str, ...]


def parse_targets(
    targets: str | os.PathLike[str] | Sequence[str], wordnet: WordNet, *, senses: Senses = "first"
) -> tuple[Target, ...]:
    """Parse a list of targets.

    A target is a WordNet id (`n02084071`), the index of an ImageNet-1k class (`0` to `999`), a
    noun (`dog`, `hot dogs`), or a name followed by the ids of its synsets
    (`table n04379243`).

    Args:
        targets: "imagenet-1k" for its 1000 classes, a text file with one target per line, where
            `# ` begins a comment, words separated by commas, or a list.
        wordnet: defines the ids and nouns.
        senses: whether a noun means its most frequent sense ("first"), or "all" of them.

    Raises:
        ConfigError: a target is unknown or listed twice, or the list is empty.
    """
    matcher = Matcher(wordnet, senses)
    parsed = tuple(_parse_target(text, matcher, wordnet) for text in _list_texts(targets))
    if not parsed:
        raise ConfigError(f"no targets in {targets!s}; pass words, WordNet ids, or {IMAGENET}")
    counts = Counter(target.name for target in parsed)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(
            f"targets listed more than once: {', '.join(repeated[:5])}; list each target once"
        )
    return parsed


def format_target(target: Target, wordnet: WordNet) -> str:
    """The name for readers, with a word after an id or index: `n02084071 (dog)`.

    Args:
        target: the target.
        wordnet: contains the words of the target's first synset.
    """
    is_number = WORDNET_ID.fullmatch(target.name) or IMAGENET_INDEX.fullmatch(target.name)
    synset = wordnet.synsets.get(target.synsets[0])
    if not is_number or synset is None:
        return target.name
    return f"{target.name} ({synset.lemmas[0].replace('_', ' ')})"


def _list_texts(targets: str | os.PathLike[str] | Sequence[str]) -> Sequence[str]:
    if targets == IMAGENET:
        return load_imagenet()
    if isinstance(targets, os.PathLike) or (isinstance(targets, str) and Path(targets).is_file()):
        try:
            lines = Path(targets).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(
                f"targets {targets} cannot be read: {reason}; pass a text file with one per line"
            ) from None
        # with a space, because a word may contain #
        targets = [line.partition("# ")[0] for line in lines if not line.startswith("#")]
    elif isinstance(targets, str):
        targets = targets.split(",")
    return [text.strip() for text in targets if text.strip()]


def _parse_target(text: str, matcher: Matcher, wordnet: WordNet) -> Target:
    words = text.split()
    if IMAGENET_INDEX.fullmatch(text):  # before nouns, because WordNet's nouns include numerals
        return Target(text, (load_imagenet()[int(text)],))
    ids = [word for word in words if WORDNET_ID.fullmatch(word)]
    if ids:
        name = " ".join(words[: -len(ids)]) or ids[0]
        if words[-len(ids) :] != ids:
            raise ConfigError(
                f"invalid target {text!r}: words follow an id; write the name first, as in: "
                "table n04379243"
            )
        if unknown := [synset for synset in ids if synset not in wordnet.synsets]:
            raise ConfigError(
                f"invalid target {text!r}: no noun of this WordNet has the id {unknown[0]}; ids "
                "are those of WordNet 3.0, and an excerpt has only some of them (--wordnet)"
            )
        return Target(name, tuple(dict.fromkeys(ids)))  # without duplicates, in order
    if synsets := matcher.match(text).synsets:
        return Target(text, synsets)
    similar = difflib.get_close_matches(text.lower(), matcher.lemmas, n=3, cutoff=0.6)
    advice = (
        f"did you mean {', '.join(similar)}?"
        if similar
        else "use a noun, or a name followed by a WordNet id: NAME n04379243"
    )
    raise ConfigError(f"invalid target {text!r}: not a noun of this WordNet; {advice}")
