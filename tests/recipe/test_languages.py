"""Words of other languages join the classes of the same meaning; false friends are told apart."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from lexicons import HEAD, SYNSETS, make_lmf, write_database, write_lexicons

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe import languages
from swag_models.recipe.hashtags import Matcher
from swag_models.recipe.languages import read_languages
from swag_models.recipe.wordnet import WordNet


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_database(tmp_path_factory.mktemp("database"))


@pytest.fixture(scope="module")
def wordnet(database: Path) -> WordNet:
    return WordNet.load(database)


@pytest.fixture(scope="module")
def lexicons(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_lexicons(tmp_path_factory.mktemp("lexicons"))


@pytest.fixture(scope="module")
def matcher(wordnet: WordNet, lexicons: list[Path]) -> Matcher:
    return Matcher(wordnet, languages=read_languages(lexicons, wordnet))


def name(synset: str) -> str:
    return SYNSETS[synset[1:]][1].split()[0]


def mean(matcher: Matcher, *tags: str) -> list[str]:
    """The first lemma that each hashtag of a post means."""
    return ["".join(map(name, match.synsets)) for match in matcher.match_post(tags)]


@pytest.mark.parametrize(
    ("tags", "meaning", "how"),
    [
        ("dog Dog domestic_dog", "dog", "lemma"),
        ("Hund HUND chien Chien chiens perro \u72ac", "dog", "foreign"),
        ("Katze \u732b", "cat", "foreign"),
        ("Haus maison casa \u30cf\u30a6\u30b9", "house", "foreign"),
        ("K\u00e4se", "cheese", "foreign"),
        ("patedemaison P\u00e2t\u00e9_de_maison", "frankfurter", "foreign"),
        ("rose Rose", "rose", "lemma"),
        ("courir run Hunde animal", "", "unknown"),
    ],
)
def test_words_of_all_languages_have_one_class(
    tags: str, meaning: str, how: str, matcher: Matcher
) -> None:
    for tag in tags.split():
        if tag == "patedemaison":
            continue  # without its accents it is no French word
        match = matcher.match(tag)
        assert ("".join(map(name, match.synsets)), match.how) == (meaning, how), tag


@pytest.mark.parametrize(
    ("post", "meaning"),
    [
        ("gift", "gift"),
        ("gift hund", "poison"),
        ("Gift Sonne rose", "poison"),
        ("gift dog", "gift"),
        ("gift hund dog", "gift"),  # as much evidence for English
        ("gift hund baum haus sonne dog", "poison"),  # more for German
        ("gift chien maison", "gift"),  # of another language
        ("rock blume", "skirt"),
        ("boot katze", "boat"),
        ("chat", ""),  # the table of senses says that it is no noun that can be seen
        ("chat chien", "cat"),
        ("pain fleur soleil", "bread"),
        ("pain fleur soleil tree house flower cheese", "pain"),
        ("baum", "tree"),  # in English the name of a person only
        ("baum tree house flower cheese", "Baum"),
        ("bras", "bra"),
        ("bras maison", "arm"),
    ],
)
def test_false_friends_are_decided_by_the_other_hashtags(
    post: str, meaning: str, matcher: Matcher
) -> None:
    assert mean(matcher, *post.split())[0] == meaning


def test_a_word_of_the_same_meaning_is_no_false_friend(matcher: Matcher) -> None:
    assert matcher.match("rose").alternatives == ()
    assert matcher.match("hund").alternatives == ()


def test_the_likelier_sense_of_a_foreign_word_is_taken(
    wordnet: WordNet, lexicons: list[Path]
) -> None:
    languages = read_languages(lexicons, wordnet)
    for policy, expected in (
        ("context", ["dog"]),
        ("first", ["frankfurter"]),
        ("all", ["frankfurter", "dog"]),
        ("drop", []),
    ):
        match = Matcher(wordnet, policy, languages=languages).match("chien")
        assert list(map(name, match.synsets)) == expected
        assert match.how == ("foreign" if expected else "dropped")


def test_the_stop_list_and_overrides_come_first(wordnet: WordNet, lexicons: list[Path]) -> None:
    languages = read_languages(lexicons, wordnet)
    overrides = {"gift": ("n02084071",), "katze": ()}
    matcher = Matcher(wordnet, "context", {"hund"}, overrides, languages)
    assert matcher.match("Hund").how == "stopped"
    assert matcher.match("Katze").how == "dropped"
    assert mean(matcher, "gift", "baum", "haus") == ["dog", "tree", "house"]


def test_ilis_are_mapped_by_an_english_lexicon_too(
    wordnet: WordNet, lexicons: list[Path], tmp_path: Path
) -> None:
    text = make_lmf({"hound": ("02084071",), "home": ("03544360",)}, "en", "omw-en-")
    (tmp_path / "en.xml.gz").write_bytes(gzip.compress(text.encode()))
    languages = read_languages([lexicons[3], tmp_path / "en.xml.gz"], wordnet)
    assert languages.words["perro"] == {"es": ("n02084071",)}
    assert "hound" not in languages.words, "English is read from the database"
    assert languages.facts[1]["languages"] == {}


BOMB = (
    '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><LexicalResource>&b;</LexicalResource>'
)
MISTAKES = {
    "oewn.xml": (
        make_lmf({"chien": ("02084071",)}, "fr", "oewn-"),
        "synsets such as 'oewn-02084071-n', which are not those of WordNet 3.0: give a lexicon of",
    ),
    "en31.xml": (make_lmf({"chien": ("02084071",)}, "fr", "omw-en31-"), "ili-map-pwn30.tab"),
    "ili.xml": (make_lmf({"chien": ("02084071",)}, "fr", "odenet-1-"), "not those of WordNet 3.0"),
    "unknown.tab": ("# x\tdeu\n99999999-n\tlemma\tHund\n", "not those of WordNet 3.0"),
    "cut.xml": (
        HEAD + '<Lexicon language="fr">',
        "as a WN-LMF file: no element found",
    ),
    "other.xml": ("<html></html>", "as a WN-LMF file: it has no Lexicon with a language"),
    "less.xml": (
        HEAD + '<Lexicon language="fr"><LexicalEntry><Lemma partOfSpeech="n"/>',
        "an element in line 4 has no attribute 'writtenForm'",
    ),
    "entity.xml": (
        make_lmf({"p&acirc;t": ("02084071",)}, "fr", "omw-fr-"),
        "a word has the unknown entity '&acirc;'",
    ),
    "encoding.xml": (HEAD.replace("UTF-8", "x-8"), "as a WN-LMF file: unknown encoding: x-8"),
    "bomb.xml": (BOMB, "declares the entity 'a'; remove it"),
    "words.tab": (
        "# x\tdeu\nHund\tdog\n",
        (
            "an Open Multilingual Wordnet tab file: "
            "line 2 is 'Hund\\tdog'; lines are '# name, TAB, "
            "language' (the first) and '02084071-n, TAB, fra:lemma, TAB, chien'"
        ),
    ),
    "head.tab": ("02084071-n\tlemma\tHund\n", "its words have no language; lines are '# name, TAB"),
    "bytes.tab": (b"# x\tdeu\n02084071-n\tlemma\t\xff\n", "'utf-8' codec can't decode byte"),
    "gz.xml.gz": (b"\x1f\x8b\x08", "cannot be read as a WN-LMF file: Compressed file ended"),
    "not.xml.gz": (b"<a/>", "cannot be read as a WN-LMF file: Not a gzipped file"),
    "words.txt": ("Hund", "is no lexicon; allowed: .xml .xml.gz .tab"),
    "empty.tab": (" \n", "an Open Multilingual Wordnet tab file: it is empty"),
    "header.tab": ("# x\tdeu\n", "tab file: it has no nouns"),
    "verbs.tab.gz": (gzip.compress(b"# x\tdeu\n02084071-v\tlemma\tgehen\n"), "it has no nouns"),
    "empty.xml": ("", "as a WN-LMF file: no element found"),
    "words.xml": (make_lmf({}, "fr", "omw-fr-"), "as a WN-LMF file: it has no nouns"),
    "none.xml": (None, "none.xml does not exist"),
}


@pytest.mark.parametrize("file", MISTAKES)
def test_what_is_no_lexicon_is_refused_in_a_line(
    file: str, wordnet: WordNet, tmp_path: Path
) -> None:
    content, message = MISTAKES[file]
    if content is not None:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / file).write_bytes(data)
    with pytest.raises(ConfigError) as raised:
        read_languages([tmp_path / file], wordnet)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_english_words_and_unicode_line_separators(wordnet: WordNet, tmp_path: Path) -> None:
    for language in ("en", "EN", "en-GB", "en_US", "eng"):
        text = make_lmf({"chien": ("02084071",)}, language, "omw-fr-")
        (tmp_path / "x.xml").write_text(text)
        assert not read_languages([tmp_path / "x.xml"], wordnet).words
    (tmp_path / "x.tab").write_text("# x\tfra\r\n02084071-n\tlemma\tchi\u2028en\r\n")
    assert "chien" in read_languages([tmp_path / "x.tab"], wordnet).words


def test_a_compressed_lexicon_has_a_size_limit(
    wordnet: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(languages, "MAX_LEXICON_BYTES", 1000)
    path = tmp_path / "x.tab.gz"
    path.write_bytes(gzip.compress(b"# x\tfra\n" * 1000))
    with pytest.raises(ConfigError, match="it has more than 1000 bytes"):
        read_languages([path], wordnet)


def test_the_command_of_the_documentation_runs(
    database: Path, lexicons: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text()
    (command,) = re.findall(r"^swag-models (recipe curate .* omw-fr\.xml .*)$", document, re.M)
    for source, name in ((lexicons[0], "omw-fr.xml"), (lexicons[1], "wn-data-deu.tab")):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "posts.jsonl").write_text('{"id": 1, "tags": ["Hund", "chien"]}\n')
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command), "--wordnet", str(database), "--quiet"]) == 0
    report = (tmp_path / "curated" / "report.md").read_text()
    assert "| wn-data-deu.tab | deu | 11 | 0 |" in report


def test_curate_says_what_became_of_the_words(
    database: Path, lexicons: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    posts = [
        *(["Hund", "Baum"], ["chien"], ["perro"], ["\u72ac"], ["dog"]),
        *(["gift", "Hund", "Haus"], ["gift"], ["Gift", "tree"]),
    ]
    lines = [json.dumps({"id": n, "tags": tags}) + "\n" for n, tags in enumerate(posts)]
    (tmp_path / "posts.jsonl").write_text("".join(lines))
    out = tmp_path / "out"
    paths = [f"--wordnet={path}" for path in (database, *lexicons)]
    command = ["recipe", "curate", str(tmp_path / "posts.jsonl"), "-o", str(out), "--quiet"]
    assert main([*command, *paths]) == 0
    import pyarrow.parquet as pq

    classes = pq.read_table(out / "vocabulary.parquet").to_pylist()
    images = {row["synset"]: row["images"] for row in classes}
    assert images == {
        "n02084071": 6,
        "n13104059": 2,
        "n13265011": 2,
        "n15032376": 1,
        "n03544360": 1,
    }
    facts = json.loads((out / "manifest.json").read_text())
    assert facts["hashtags"]["distinct"]["foreign"] == 6
    assert [row[:2] for row in facts["hashtags"]["false_friends"]] == [
        ["gift", 2],
        ["Baum", 1],
        ["Gift", 1],
    ]
    report = (out / "report.md").read_text()
    assert "| fr.xml | fr | 20 | 0 |" in report
    assert "## Words of several languages, by the other hashtags of the post" in report
    assert "| gift | 2 | n13265011 gift: a gift (" in report
    assert main([*command, *paths[:-2]]) == 0, "without Spanish"
    classes = pq.read_table(out / "vocabulary.parquet").to_pylist()
    assert {row["synset"]: row["images"] for row in classes}["n02084071"] == 5
    capsys.readouterr()
    assert main([*command, *paths, "--wordnet", str(tmp_path)]) == 2
    assert "--wordnet is given 2 times" in capsys.readouterr().err
