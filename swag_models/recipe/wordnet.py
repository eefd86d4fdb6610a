"""The nouns of WordNet 3.0, from its standard database files: synsets, their lemmas in order of frequency, and what lies above.

Format: wndb(5WN) for index.noun and data.noun, morphy(7WN) for noun.exc.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

from swag_models.errors import ConfigError

FILES = ("index.noun", "data.noun", "noun.exc")
VERSION = "3.0"  # ImageNet's ids are its offsets
HYPERNYMS = ("@", "@i")  # of a kind, of an instance
ADVICE = (
    "install one: apt install wordnet-base, or python -m nltk.downloader wordnet; or give the folder with "
    f"{', '.join(FILES)} (--wordnet, WNHOME)"
)

T = TypeVar("T")
Folder = Path | zipfile.Path


class Synset(NamedTuple):
    """Words for one thing. id: as n02132136; lemmas: as WordNet writes them, Ursus_arctos; parents: ids of its hypernyms."""

    id: str
    lemmas: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str


class WordNet:
    """All noun synsets.

    synsets: by id. senses: for a lemma (lower case, with _), ids of its synsets, the most frequent sense first.
    exceptions: for an irregular inflection, its base forms. digest: SHA-256 of the lines of its files.
    """

    def __init__(
        self,
        synsets: dict[str, Synset],
        senses: dict[str, list[str]],
        exceptions: dict[str, list[str]],
        digest: str = "",
    ) -> None:
        self.synsets, self.senses, self.exceptions, self.digest = (
            synsets,
            senses,
            exceptions,
            digest,
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None) -> WordNet:
        """Read the database that `find_wordnet` finds; ConfigError if there is none, or it is broken or of another version."""
        found = find_wordnet(folder)
        index, data, exceptions = texts = [_read_lines(found / name) for name in FILES]
        synsets = {synset.id: synset for synset in _parse(found / "data.noun", data, _parse_synset)}
        senses = {}
        for lemma, ids in _parse(found / "index.noun", index, _parse_senses):
            known = [each for each in ids if each in synsets]
            if len(known) < len(ids) and _is_original(data):
                raise ConfigError(
                    f"{found / 'data.noun'} lacks a synset of {lemma!r}, it may be cut short; {ADVICE}"
                )
            if known:
                senses[lemma] = known
        if not senses:
            raise ConfigError(f"{found / 'index.noun'} holds no nouns; {ADVICE}")
        digest = hashlib.sha256(
            "\n".join(line for lines in texts for line in lines).encode()
        ).hexdigest()
        return cls(
            synsets, senses, dict(_parse(found / "noun.exc", exceptions, _parse_exception)), digest
        )

    def ancestors(self, synset: str) -> dict[str, int]:
        """Every synset above this one, the nearest first, and how many steps it is away."""
        return _walk(
            synset, lambda each: [above for above in self._parents(each) if above in self.synsets]
        )

    def descendants(self, synset: str) -> dict[str, int]:
        """Every synset below this one, the nearest first, and how many steps it is away."""
        return _walk(synset, lambda each: self._children.get(each, ()))

    def _parents(self, synset: str) -> tuple[str, ...]:
        return self.synsets[synset].parents if synset in self.synsets else ()

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for synset in self.synsets.values():
            for parent in synset.parents:
                children.setdefault(parent, []).append(synset.id)
        return children


def find_wordnet(folder: str | os.PathLike[str] | None = None) -> Folder:
    """Where the database files are: in `folder` if it is given, else in the usual places.

    These are $WNHOME/dict, $WNSEARCHDIR, nltk's data (unpacked or as downloaded) and /usr/share/wordnet. ConfigError says how
    to get WordNet if there is none.
    """
    if folder is not None:
        given = Path(folder)
        places: Iterable[Path] = [given, given / "dict"]
    else:
        places = _list_places()
    for place in places:
        found = zipfile.Path(place, f"{place.stem}/") if zipfile.is_zipfile(place) else place
        if all((found / name).is_file() for name in FILES):
            return found
    where = (
        "no WordNet database was found" if folder is None else f"{folder} has no WordNet database"
    )
    raise ConfigError(f"{where}; {ADVICE}")


def _list_places() -> Iterator[Path]:
    if "WNHOME" in os.environ:
        yield Path(os.environ["WNHOME"], "dict")
    if "WNSEARCHDIR" in os.environ:
        yield Path(os.environ["WNSEARCHDIR"])
    roots = [Path(root) for root in os.environ.get("NLTK_DATA", "").split(os.pathsep) if root]
    roots += [
        Path.home() / "nltk_data",
        *(Path(sys.prefix, *parts, "nltk_data") for parts in ((), ("share",), ("lib",))),
    ]
    roots += [
        Path("/usr", *parts, "nltk_data")
        for parts in (("share",), ("local", "share"), ("lib",), ("local", "lib"))
    ]
    for root in roots:
        yield root / "corpora" / "wordnet"
        yield root / "corpora" / "wordnet.zip"
    yield Path("/usr/share/wordnet")


def _read_lines(path: Folder) -> list[str]:
    try:
        lines = path.read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {ADVICE}"
        ) from None
    licence = " ".join(line for line in lines[:40] if line.startswith("  "))
    if (version := re.search(r"WordNet (\d+\.\d+)", licence)) and version[1] != VERSION:
        raise ConfigError(
            f"{path} is of WordNet {version[1]}; ids are those of WordNet {VERSION} only; {ADVICE}"
        )
    return lines


def _parse(path: Folder, lines: Sequence[str], parse: Callable[[str], T]) -> Iterator[T]:
    """What `parse` makes of every line but those of the licence, which begin with two spaces."""
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("  "):
            try:
                yield parse(line)
            except (ValueError, IndexError):
                raise ConfigError(
                    f"{path} line {number} is not of WordNet's format: {line[:40]!r}; {ADVICE}"
                ) from None


def _parse_senses(line: str) -> tuple[str, list[str]]:
    """lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt synset_offset..."""
    fields = line.split()
    lemma, count = fields[0], int(fields[2])
    offsets = fields[6 + int(fields[3]) :]
    if len(offsets) != count:
        raise ValueError
    return lemma, [_name(offset) for offset in offsets]


def _parse_synset(line: str) -> Synset:
    """synset_offset lex_filenum ss_type w_cnt [word lex_id]... p_cnt [symbol offset pos source/target]... | gloss"""
    head, bar, gloss = line.partition("|")
    fields = head.split()
    end = 4 + 2 * int(fields[3], 16)
    if fields[2] != "n" or not bar or len(fields) != end + 1 + 4 * int(fields[end]):
        raise ValueError
    pointers = zip(fields[end + 1 :: 4], fields[end + 2 :: 4])
    parents = tuple([_name(offset) for symbol, offset in pointers if symbol in HYPERNYMS])
    return Synset(_name(fields[0]), tuple(fields[4:end:2]), parents, gloss.strip())


def _parse_exception(line: str) -> tuple[str, list[str]]:
    """inflected base..."""
    inflected, *bases = line.split()
    if not bases:
        raise ValueError
    return inflected, bases


def _name(offset: str) -> str:
    """The id of the synset at this offset, 8 digits."""
    if len(offset) != 8 or not offset.isdigit():
        raise ValueError
    return f"n{offset}"


def _is_original(data: Sequence[str]) -> bool:
    """Whether synsets lie at the offsets that name them. In an excerpt they do not, and lemmas may have senses it lacks."""
    start = 0
    for line in data:
        if not line.startswith("  "):
            return line.startswith(f"{start:08d}")
        start += len(line) + 1
    return False


def _walk(start: str, follow: Callable[[str], Iterable[str]]) -> dict[str, int]:
    """Everything that `follow` leads to, and in how many steps."""
    steps, edge = {start: 0}, [start]
    for step in itertools.count(1):
        edge = list(
            dict.fromkeys(each for known in edge for each in follow(known) if each not in steps)
        )
        if not edge:
            break
        steps.update(dict.fromkeys(edge, step))
    del steps[start]
    return steps
