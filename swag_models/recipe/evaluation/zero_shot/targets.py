"""What a model is asked to tell apart: targets, each a name and the WordNet synsets that it stands for."""

from __future__ import annotations

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
ID = re.compile(r"n\d{8}")
INDEX = re.compile(r"\d{1,3}")
Senses = Literal["first", "all"]


class Target(NamedTuple):
    """name: as it was given, which is how the data call it. synsets: WordNet ids."""

    name: str
    synsets: tuple[str, ...]


def parse_targets(
    given: str | os.PathLike[str] | Sequence[str], wordnet: WordNet, *, senses: Senses = "first"
) -> tuple[Target, ...]:
    """Targets from "imagenet-1k", a file with one in a line, words with commas between them, or a list.

    Each is a WordNet id (n02084071), the index of an ImageNet-1k class (0 to 999), or a noun (dog, hot dogs). A noun stands for
    its most frequent sense, or for all; what is meant can be said by ids after a name: "table n04379243". In a file, what
    follows "# " is a comment. ConfigError names what is unknown or there twice.
    """
    entries = _list_entries(given)
    matcher = Matcher(wordnet, senses)
    targets = tuple([_parse(entry, matcher, wordnet) for entry in entries])
    if not targets:
        raise ConfigError(f"targets {given!s} are none; give words, WordNet ids, or {IMAGENET}")
    if twice := [
        name for name, count in Counter(target.name for target in targets).items() if count > 1
    ]:
        raise ConfigError(
            f"targets are there more than once: {', '.join(twice[:5])}; name each once"
        )
    return targets


def format_target(target: Target, wordnet: WordNet) -> str:
    """Its name, with a word beside it if it is an id or an index."""
    if (
        not (ID.fullmatch(target.name) or INDEX.fullmatch(target.name))
        or target.synsets[0] not in wordnet.synsets
    ):
        return target.name
    return f"{target.name} ({wordnet.synsets[target.synsets[0]].lemmas[0].replace('_', ' ')})"


def _list_entries(given: str | os.PathLike[str] | Sequence[str]) -> Sequence[str]:
    if given == IMAGENET:
        return load_imagenet()
    if isinstance(given, os.PathLike) or (isinstance(given, str) and Path(given).is_file()):
        try:
            lines = Path(given).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(
                f"targets {given} cannot be read: {reason}; give a text file with one in a line"
            ) from None
        given = [line.partition("# ")[0] for line in lines if not line.startswith("#")]
    elif isinstance(given, str):
        given = given.split(",")
    return [entry.strip() for entry in given if entry.strip()]


def _parse(entry: str, matcher: Matcher, wordnet: WordNet) -> Target:
    words = entry.split()
    if INDEX.fullmatch(entry):
        return Target(entry, (load_imagenet()[int(entry)],))
    ids = [word for word in words if ID.fullmatch(word)]
    if ids:
        name = " ".join(words[: -len(ids)]) or ids[0]
        if words[len(words) - len(ids) :] != ids:
            raise ConfigError(
                f"target {entry!r} has words after an id; write the name first, as in: table n04379243"
            )
        if unknown := [each for each in ids if each not in wordnet.synsets]:
            raise ConfigError(
                f"target {entry!r}: no noun of this WordNet has the id {unknown[0]}; ids are those of WordNet 3.0, and an "
                "excerpt has some of them only (--wordnet)"
            )
        return Target(name, tuple(dict.fromkeys(ids)))
    if synsets := matcher.match(entry).synsets:
        return Target(entry, synsets)
    near = difflib.get_close_matches(entry.lower(), matcher.lemmas, n=3, cutoff=0.6)
    advice = (
        f"did you mean {', '.join(near)}?"
        if near
        else "give a noun, or say what it is: NAME n04379243"
    )
    raise ConfigError(f"target {entry!r} is no noun of this WordNet; {advice}")
