"""The nouns of WordNet 3.0, read from its database files: synsets, their lemmas and hypernyms.

Formats: wndb(5WN) for index.noun and data.noun, morphy(7WN) for noun.exc; see
https://wordnet.princeton.edu/documentation
"""

import hashlib
import itertools
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

from swag_models.archives import ZIP_ERRORS, is_zip
from swag_models.errors import ConfigError
from swag_models.paths import expand_path, open_regular

DATABASE_FILES = ("index.noun", "data.noun", "noun.exc")
COUNTS_FILE = "cntlist.rev"  # optional
# ss_type in sense keys, senseidx(5WN)
NOUN, VERB = 1, 2
VERSION = "3.0"  # ImageNet's class ids are offsets in the files of this version
HYPERNYM_SYMBOLS = ("@", "@i")  # hypernym, instance hypernym
INSTALL_HINT = (
    "install it: apt install wordnet-base, or python -m nltk.downloader wordnet; "
    f"or pass the folder of {', '.join(DATABASE_FILES)} (wordnet=, WNHOME)"
)

MAX_DATABASE_SIZE = 1 << 26  # bytes; data.noun has 15 million

T = TypeVar("T")
Folder = Path | zipfile.Path


class Synset(NamedTuple):
    """A set of synonyms.

    Attributes:
        id: "n" and the 8 digits of the offset, for example "n02132136".
        lemmas: lemmas in WordNet's spelling, for example "Ursus_arctos".
        parents: ids of the hypernyms.
        gloss: the definition, with examples.
        lexfile: number of its lexicographer file in lexnames(5WN): 5 for animals, 6 for artifacts.
    """

    id: str
    lemmas: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str
    lexfile: int = 3  # noun.Tops, the file of the most general nouns


class WordNet:
    """All noun synsets.

    Args:
        synsets: the synsets, by id.
        senses: for each lemma (lower case, with "_"), the ids of its synsets, the most frequent
            sense first.
        exceptions: for each irregular inflection, its base forms.
        digest: SHA-256 of the lines of the files.
        counts: for each lemma, how often each of its synsets was meant in WordNet's sense-tagged
            texts. Without cntlist.rev, 1 for each synset that was meant at all (tagsense_cnt).
        adjective_uses: for each word, how often it was an adjective or adverb in these texts; empty
            without cntlist.rev.
    """

    def __init__(
        self,
        synsets: dict[str, Synset],
        senses: dict[str, list[str]],
        exceptions: dict[str, list[str]],
        digest: str = "",
        counts: Mapping[str, Mapping[str, int]] = {},
        adjective_uses: Mapping[str, int] = {},
    ) -> None:
        self.synsets = synsets
        self.senses = senses
        self.exceptions = exceptions
        self.digest = digest
        self.counts = counts
        self.adjective_uses = adjective_uses

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None) -> "WordNet":
        """Read the database files.

        Args:
            folder: folder of the files; by default see `find_wordnet`.

        Raises:
            ConfigError: the database is missing, damaged, or of another version.
        """
        source = find_wordnet(folder)
        index, data, exceptions = texts = [_read_lines(source / name) for name in DATABASE_FILES]
        parsed = _parse_lines(source / "data.noun", data, _parse_synset)
        synsets = {synset.id: synset for synset in parsed}
        senses, counts = {}, {}
        for lemma, ids, num_tagged in _parse_lines(source / "index.noun", index, _parse_senses):
            present = [synset for synset in ids if synset in synsets]
            # in an excerpt some synsets may be missing, but not in the original files
            if len(present) < len(ids) and _is_original(data):
                raise ConfigError(
                    f"{source / 'data.noun'} lacks a synset of {lemma!r} and may be truncated; "
                    f"{INSTALL_HINT}"
                )
            if present:
                senses[lemma] = present
            if num_tagged:
                counts[lemma] = dict.fromkeys(ids[:num_tagged], 1)
        if not senses:
            raise ConfigError(f"{source / 'index.noun'} contains no nouns; {INSTALL_HINT}")
        adjective_uses: dict[str, int] = {}
        if (path := source / COUNTS_FILE).is_file():
            texts.append(tagged := _read_lines(path))
            counts, adjective_uses = _collect_counts(
                _parse_lines(path, tagged, _parse_count), senses
            )
        # joined lines, so that line endings do not change the digest
        text = "\n".join(line for lines in texts for line in lines)
        irregular = dict(_parse_lines(source / "noun.exc", exceptions, _parse_exception))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return cls(synsets, senses, irregular, digest, counts, adjective_uses)

    def ancestors(self, synset: str) -> dict[str, int]:
        """All synsets above this one with their distance in steps, the nearest first."""
        return _walk(synset, self._list_parents)

    def descendants(self, synset: str) -> dict[str, int]:
        """All synsets below this one with their distance in steps, the nearest first."""
        return _walk(synset, lambda parent: self._children.get(parent, ()))

    def _list_parents(self, synset: str) -> list[str]:
        # in an excerpt, parents and the synset itself may be missing
        parents = self.synsets[synset].parents if synset in self.synsets else ()
        return [parent for parent in parents if parent in self.synsets]

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for synset in self.synsets.values():
            for parent in synset.parents:
                children.setdefault(parent, []).append(synset.id)
        return children


def find_wordnet(folder: str | os.PathLike[str] | None = None) -> Folder:
    """Find the database files.

    Args:
        folder: folder of the files, WordNet's home, or a zip file downloaded by nltk. By default
            these are searched, in this order: $WNHOME/dict, $WNSEARCHDIR, nltk's data folders
            (unpacked, or the zip file), /usr/share/wordnet.

    Raises:
        ConfigError: no database was found; the message says how to install it.
    """
    if folder is not None and not expand_path(folder).exists():
        raise ConfigError(f"wordnet {expand_path(folder)} does not exist")
    folders: Iterable[Path]
    folders = (
        _list_folders() if folder is None else (expand_path(folder), expand_path(folder) / "dict")
    )
    for path in folders:
        try:
            packed = path.is_file() and is_zip(path)
            source = zipfile.Path(path, f"{path.stem}/") if packed else path
        except ZIP_ERRORS as error:
            raise ConfigError(f"{path} cannot be read: {error}; {INSTALL_HINT}") from None
        if all((source / name).is_file() for name in DATABASE_FILES):
            return source
    problem = (
        "no WordNet database was found" if folder is None else f"{folder} has no WordNet database"
    )
    raise ConfigError(f"{problem}; {INSTALL_HINT}")


def _list_folders() -> Iterator[Path]:
    if "WNHOME" in os.environ:
        yield Path(os.environ["WNHOME"], "dict")
    if "WNSEARCHDIR" in os.environ:
        yield Path(os.environ["WNSEARCHDIR"])
    # nltk's search path: https://www.nltk.org/data.html
    roots = [Path(root) for root in os.environ.get("NLTK_DATA", "").split(os.pathsep) if root]
    roots.append(Path.home() / "nltk_data")
    roots += [Path(sys.prefix, *parts, "nltk_data") for parts in ((), ("share",), ("lib",))]
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
        with open_regular(path) if isinstance(path, Path) else path.open("rb") as file:
            content = file.read(MAX_DATABASE_SIZE + 1)
        if len(content) > MAX_DATABASE_SIZE:
            raise OSError(f"it has more than {MAX_DATABASE_SIZE:,} bytes")
        lines = content.decode().splitlines()
    except ZIP_ERRORS as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {INSTALL_HINT}"
        ) from None
    # each file begins with the license, which names the version; excerpts may lack it
    header = " ".join(line for line in lines[:40] if line.startswith("  "))
    if (version := re.search(r"WordNet (\d+\.\d+)", header)) and version[1] != VERSION:
        raise ConfigError(
            f"{path} is from WordNet {version[1]}; allowed: {VERSION}, whose offsets are the ids; "
            f"{INSTALL_HINT}"
        )
    return lines


def _parse_lines(path: Folder, lines: Sequence[str], parse: Callable[[str], T]) -> Iterator[T]:
    """Parse every line except those of the license, which begin with two spaces."""
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("  "):
            try:
                yield parse(line)
            except (ValueError, IndexError):
                raise ConfigError(
                    f"invalid line {number} in {path}: {line[:40]!r} is not in WordNet's format; "
                    f"{INSTALL_HINT}"
                ) from None


def _parse_senses(line: str) -> tuple[str, list[str], int]:
    """Parse "lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt offset..."."""
    fields = line.split()
    lemma, count = fields[0], int(fields[2])
    offsets = fields[6 + int(fields[3]) :]  # fields[3] is p_cnt
    if len(offsets) != count:
        raise ValueError
    num_tagged = int(fields[5 + int(fields[3])])  # tagsense_cnt
    return lemma, [_make_id(offset) for offset in offsets], num_tagged


def _parse_synset(line: str) -> Synset:
    """Parse a line of data.noun.

    offset lex_filenum ss_type w_cnt [word lex_id]... p_cnt [symbol offset pos source/target]... |
    gloss
    """
    head, bar, gloss = line.partition("|")
    fields = head.split()
    end = 4 + 2 * int(fields[3], 16)  # index of p_cnt; w_cnt is hexadecimal
    if fields[2] != "n" or not bar or len(fields) != end + 1 + 4 * int(fields[end]):
        raise ValueError
    # each pointer has 4 fields, of which the first two are symbol and offset
    pointers = zip(fields[end + 1 :: 4], fields[end + 2 :: 4])
    parents = tuple([_make_id(offset) for symbol, offset in pointers if symbol in HYPERNYM_SYMBOLS])
    lemmas = tuple(fields[4:end:2])
    return Synset(_make_id(fields[0]), lemmas, parents, gloss.strip(), int(fields[1]))


def _parse_exception(line: str) -> tuple[str, list[str]]:
    """Parse "inflected base..."."""
    inflected, *bases = line.split()
    if not bases:
        raise ValueError
    return inflected, bases


def _parse_count(line: str) -> tuple[str, int, int, int]:
    """Parse "lemma%ss_type:lex_filenum:lex_id:head:head_id sense_number tag_cnt", cntlist(5WN)."""
    key, sense, count = line.split()
    lemma, _, fields = key.rpartition("%")
    return lemma, int(fields[0]), int(sense), int(count)


def _collect_counts(
    lines: Iterable[tuple[str, int, int, int]], senses: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """The counts of nouns by lemma and synset, and those of adjectives and adverbs by lemma."""
    counts: dict[str, dict[str, int]] = {}
    adjective_uses: dict[str, int] = {}
    for lemma, part_of_speech, sense, count in lines:
        if part_of_speech == VERB:
            continue
        if part_of_speech != NOUN:
            adjective_uses[lemma] = adjective_uses.get(lemma, 0) + count
        # a few numbers are beyond the last sense; in an excerpt, senses are missing
        elif sense <= len(synsets := senses.get(lemma, ())):
            counts.setdefault(lemma, {})[synsets[sense - 1]] = count
    return counts, adjective_uses


def _make_id(offset: str) -> str:
    """The id of the synset at an offset of 8 digits."""
    if len(offset) != 8 or not offset.isdigit():
        raise ValueError
    return f"n{offset}"


def _is_original(data: Sequence[str]) -> bool:
    """Whether the first synset's offset equals its id, which is not the case in an excerpt."""
    start = 0
    for line in data:
        if not line.startswith("  "):
            return line.startswith(f"{start:08d}")
        start += len(line) + 1
    return False


def _walk(start: str, follow: Callable[[str], Iterable[str]]) -> dict[str, int]:
    """All synsets that are reached by `follow` (breadth-first), with their distance in steps."""
    distances, frontier = {start: 0}, [start]
    for distance in itertools.count(1):
        reached = (synset for source in frontier for synset in follow(source))
        frontier = list(dict.fromkeys(synset for synset in reached if synset not in distances))
        if not frontier:
            break
        distances.update(dict.fromkeys(frontier, distance))
    del distances[start]
    return distances
