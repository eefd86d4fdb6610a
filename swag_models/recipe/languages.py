"""Words of other languages: lexicons whose synsets are those of WordNet 3.0.

Two formats are read: WN-LMF (.xml, also .gz), and the tab files of the Open Multilingual Wordnet
(.tab .tsv). A synset is one of WordNet 3.0 if its id says so (`02084071-n` in a tab file,
`omw-fr-02084071-n` or `eng-30-02084071-n` in LMF), or by its ILI, if one of the files maps ILIs to
WordNet 3.0: an LMF file with both, or CILI's `ili-map-pwn30.tab`. Ids of other editions look alike
but mean something else, so they are refused.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat  # nosec B407

from swag_models.errors import ConfigError
from swag_models.formatting import describe, describe_error
from swag_models.paths import expand_path, open_regular, split_lines
from swag_models.recipe.spelling import canonicalise
from swag_models.recipe.wordnet import WordNet

LEXICON_SUFFIXES = (".xml", ".xml.gz", ".tab", ".tab.gz", ".tsv", ".tsv.gz")
ENGLISH = ("en", "eng")
MAX_LEXICON_BYTES = 1 << 30  # of a file once it is decompressed; the largest lexicons have 0.1 GB
PWN30 = re.compile(
    r"(?:[a-z]{2,3}-30-|(?:pwn-?|wn-?)3\.?0-|omw-(?!en\d)[a-z]{2,3}(?:-[A-Za-z]+)*-)(\d{8})-n"
)
TAB_SYNSET = re.compile(r"(\d{8})-([a-z])")
UNKNOWN_ENTITY = re.compile(
    rb"""writtenForm\s*=\s*(?:"[^"<]*?|'[^'<]*?)(&(?!(?:amp|lt|gt|quot|apos);|#)[\w.-]+;)"""
)
TAB_HINT = (
    "lines are '# name, TAB, language' (the first) and '02084071-n, TAB, fra:lemma, TAB, chien'"
)
ILI = re.compile(r"i\d+")
MIN_KNOWN = 0.5  # share of the synsets of a file that this WordNet must have


class Word(NamedTuple):
    """A noun of a lexicon.

    Attributes:
        lemma: in its own script; also an inflected form that the lexicon lists.
        synsets: ids as in the file.
        language: code of the language, as in the file.
    """

    lemma: str
    synsets: tuple[str, ...]
    language: str


class Lexicon(NamedTuple):
    """The content of a file.

    Attributes:
        path: the file.
        words: its nouns.
        offsets: id of each synset as in the file -> id in WordNet 3.0, where the file says so.
        ilis: id of each synset as in the file -> ILI.
        sha256: of the file's content.
    """

    path: Path
    words: list[Word]
    offsets: dict[str, str]
    ilis: dict[str, str]
    sha256: str


class Languages:
    """Words of other languages than English, by their canonical spelling.

    Args:
        words: canonical word -> language -> ids of its synsets in WordNet 3.0.
        facts: for the manifest, of each file: name, SHA-256, and for each language the numbers of
            words, and of words that have no synset in this WordNet.
    """

    def __init__(
        self, words: Mapping[str, Mapping[str, tuple[str, ...]]], facts: Sequence[object] = ()
    ) -> None:
        self.words, self.facts = words, list(facts)


NO_LANGUAGES = Languages({})


def is_english(language: str) -> bool:
    """Whether a code is that of English, also of a country: en-GB, en_US."""
    return re.split("[-_]", language.lower())[0] in ENGLISH


def is_lexicon(path: str | PathLike[str]) -> bool:
    """Whether the name of a file is that of a lexicon, and not of a WordNet database."""
    return str(path).lower().endswith(LEXICON_SUFFIXES)


def read_languages(paths: Sequence[str | PathLike[str]], wordnet: WordNet) -> Languages:
    """Read the words of other languages.

    Args:
        paths: files, see above; English words in them are left out.
        wordnet: has the synsets.

    Raises:
        ConfigError: a file cannot be read, is of another format or has no synset of WordNet 3.0.
    """
    lexicons = [read_lexicon(path) for path in paths]
    by_ili = {
        ili: lexicon.offsets[id]
        for lexicon in lexicons
        for id, ili in lexicon.ilis.items()
        if id in lexicon.offsets
    }
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    facts = []
    for lexicon in lexicons:
        offsets = {id: by_ili[ili] for id, ili in lexicon.ilis.items() if ili in by_ili}
        offsets |= lexicon.offsets
        _check_synsets(lexicon, offsets, wordnet)
        counts: dict[str, list[int]] = {}
        for lemma, ids, language in lexicon.words:
            key = canonicalise(lemma)
            synsets = [offsets[id] for id in ids if offsets.get(id) in wordnet.synsets]
            if is_english(language) or not key or (len(key) == 1 and key.isascii()):
                continue
            count = counts.setdefault(language, [0, 0])
            count[0] += 1
            count[1] += not synsets
            if synsets:
                known = words.setdefault(key, {})
                known[language] = tuple(dict.fromkeys((*known.get(language, ()), *synsets)))
        facts.append(
            {
                "file": lexicon.path.name,
                "sha256": lexicon.sha256,
                "languages": {
                    language: {"words": total, "without_synset": missing}
                    for language, (total, missing) in sorted(counts.items())
                },
            }
        )
    return Languages(words, facts)


def _check_synsets(lexicon: Lexicon, offsets: Mapping[str, str], wordnet: WordNet) -> None:
    """Raise ConfigError if few synsets of a file are those of this WordNet."""
    used = {id for word in lexicon.words for id in word.synsets}
    known = [id for id in used if offsets.get(id) in wordnet.synsets]
    # a database that is an excerpt has few of them
    mapped = [id for id in used if id in offsets]
    if used and not (known and len(mapped) >= MIN_KNOWN * len(used)):
        raise ConfigError(
            f"{lexicon.path} has synsets such as {describe(min(used - set(known)))}, which are not "
            "those of WordNet 3.0: give a lexicon of the Open Multilingual Wordnet, or with it a "
            "file that maps ILIs to WordNet 3.0 (ili-map-pwn30.tab)"
        )


def read_lexicon(path: str | PathLike[str]) -> Lexicon:
    """Read a lexicon, or a map of ILIs, which has no words.

    Raises:
        ConfigError: the file cannot be read, or is of another format.
    """
    path = expand_path(path, "wordnet")
    name = path.name.lower()
    if not name.endswith(LEXICON_SUFFIXES):
        raise ConfigError(f"{path} is no lexicon; allowed: {' '.join(LEXICON_SUFFIXES)}")
    if not path.exists():
        raise ConfigError(f"wordnet {path} does not exist")
    try:
        with open_regular(path) as file:
            opened = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file
            content = opened.read(MAX_LEXICON_BYTES + 1)
        if len(content) > MAX_LEXICON_BYTES:
            raise ValueError(f"it has more than {MAX_LEXICON_BYTES} bytes")
        parse = _parse_lmf if ".xml" in name[-7:] else _parse_tab
        words, offsets, ilis = parse(content)
        if not (words or ilis):
            raise ValueError("it has no nouns" if content.strip() else "it is empty")
    except (OSError, EOFError, ValueError, LookupError, zlib.error, expat.ExpatError) as error:
        kind = "a WN-LMF" if ".xml" in name[-7:] else "an Open Multilingual Wordnet tab"
        raise ConfigError(
            f"{path} cannot be read as {kind} file: {describe_error(error)}"
        ) from None
    return Lexicon(path, words, offsets, ilis, hashlib.sha256(content).hexdigest())


Content = tuple[list[Word], dict[str, str], dict[str, str]]


def _parse_tab(content: bytes) -> Content:
    """Parse a tab file: `offset-pos`, `lemma` or `fra:lemma`, word; or ILI, `offset-pos`."""
    words, offsets, ilis, language = list[Word](), dict[str, str](), dict[str, str](), ""
    for number, line in enumerate(split_lines(content), 1):
        fields = line.split("\t")
        if line.startswith("#"):  # name, language, URL, license
            language = fields[1].strip() if len(fields) > 1 and not language else language
            continue
        if not line.strip():
            continue
        if len(fields) > 1 and ILI.fullmatch(fields[0]):
            if match := TAB_SYNSET.fullmatch(fields[1].strip()):
                ilis[match[0]] = fields[0]
                offsets[match[0]] = f"n{match[1]}" if match[2] == "n" else ""
            continue
        match = TAB_SYNSET.fullmatch(fields[0])
        if len(fields) < 3 or not match:
            raise ValueError(f"line {number} is {describe(line)}; {TAB_HINT}")
        prefix, _, kind = fields[1].rpartition(":")
        if kind == "lemma" and match[2] == "n":
            if not (prefix or language):
                raise ValueError(f"its words have no language; {TAB_HINT}")
            offsets[match[0]] = f"n{match[1]}"
            words.append(Word(fields[2], (match[0],), prefix or language))
    return words, {id: synset for id, synset in offsets.items() if synset}, ilis


def _parse_lmf(content: bytes) -> Content:
    """Parse WN-LMF. The parser keeps nothing but the nouns: wn.lmf takes 1.5 times the memory."""
    words, offsets, ilis = list[Word](), dict[str, str](), dict[str, str]()
    language, forms, synsets, is_noun = "", list[str](), list[str](), False

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal language, is_noun
        if name == "Lexicon":
            language = attributes["language"]
        elif name == "LexicalEntry":
            forms.clear()
            synsets.clear()
        elif name == "Lemma":
            is_noun = attributes["partOfSpeech"] == "n"
            forms.append(attributes["writtenForm"])
        elif name == "Form":
            forms.append(attributes["writtenForm"])
        elif name == "Sense":
            synsets.append(attributes["synset"])
        elif name == "Synset":
            if match := PWN30.fullmatch(attributes["id"]):
                offsets[attributes["id"]] = f"n{match[1]}"
            if ILI.fullmatch(attributes.get("ili", "")):
                ilis[attributes["id"]] = attributes["ili"]

    def end(name: str) -> None:
        if name == "LexicalEntry" and is_noun:
            words.extend(Word(form, tuple(synsets), language) for form in forms)

    parse_xml(content, start, end)
    if not language:
        raise ValueError("it has no Lexicon with a language")
    if entity := UNKNOWN_ENTITY.search(content):
        # the parser would leave it out, and the word would lack a letter
        raise ValueError(f"a word has the unknown entity {describe(entity[1].decode())}")
    for word in words:  # synsets that another file describes
        for id in word.synsets:
            if id not in offsets and (match := PWN30.fullmatch(id)):
                offsets[id] = f"n{match[1]}"
    return words, offsets, ilis


def parse_xml(
    content: bytes,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
) -> None:
    """Parse XML without entities, which could expand to gigabytes; expat reads no other files.

    Raises:
        ValueError: it has entities, or an element lacks an attribute.
        expat.ExpatError: it is not XML.
    """

    def refuse(name: str, *_: object) -> None:
        raise ValueError(f"it declares the entity {describe(name)}; remove it")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except KeyError as error:
        line = parser.CurrentLineNumber
        raise ValueError(f"an element in line {line} has no attribute {error}") from None
