"""What the user says of a hashtag is stronger than the stop list, the table and WordNet."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from curation_support import write_posts
from wordnet_support import write_wordnet

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.hashtags import Matcher, load_stoplist, load_stopwords
from swag_models.recipe.overrides import read_overrides
from swag_models.recipe.wordnet import WordNet

BEAR, INVESTOR, BANK, LAND = "n02131653", "n09845191", "n08420278", "n09213565"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(scope="module")
def wordnet(folder: Path) -> WordNet:
    return WordNet.load(folder)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bear n09845191", {"bear": (INVESTOR,)}),
        ("#Bear\tN09845191", {"bear": (INVESTOR,)}),
        ("brown bear, bear#2", {"brownbear": (INVESTOR,)}),
        ("rome,italy n02131653,n08420278", {"romeitaly": (BEAR, BANK)}),
        ("brown bear\tbear.n.01 bank#2 bear#1  # two", {"brownbear": (BEAR, BANK)}),
        ("bank   banking_company#1", {"bank": (BANK,)}),
        ("bank Banking-Company#1", {"bank": (BANK,)}),
        ("drop\tdrop", {"drop": ()}),
        ("bear DROP", {"bear": ()}),
        ("c#, bear#1", {"c": (BEAR,)}),
        ("# bear drop", {}),
        ("#", {}),
        ("bear drop\nBEAR drop", {"bear": ()}),
        ("\ufeffbear drop\r\n\r\n熊 bear#1\r\n", {"bear": (), "熊": (BEAR,)}),
    ],
)
def test_lines_of_the_file(
    line: str, expected: dict[str, tuple[str, ...]], wordnet: WordNet, tmp_path: Path
) -> None:
    path = tmp_path / "overrides.txt"
    path.write_text(line, encoding="utf-8")
    assert read_overrides(path, wordnet) == expected


def test_overrides_from_python(wordnet: WordNet) -> None:
    overrides = read_overrides({"Bear": "bear#2", "x": [BEAR, BANK], "y": "drop"}, wordnet)
    assert overrides == {"bear": (INVESTOR,), "x": (BEAR, BANK), "y": ()}
    assert read_overrides(None, wordnet) == {}
    with pytest.raises(ConfigError, match=r"overrides, entry 'x': 'x' has no synset"):
        read_overrides({"x": []}, wordnet)
    with pytest.raises(ConfigError, match="is no sense"):
        read_overrides({"x": "bear#" + "1" * 5000}, wordnet)
    other_types: list[Any] = [{5: "bear#1"}, {"x": None}, {"x": 5}, {"x": [5]}]
    for source in other_types:
        with pytest.raises(ConfigError, match="a synset"):
            read_overrides(source, wordnet)


def test_a_file_that_is_no_list_of_overrides_is_refused_at_once(
    wordnet: WordNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = list[str]()

    def search(word: str, *_: object, **__: object) -> list[str]:
        searched.append(word)
        return ["bear"]

    monkeypatch.setattr(difflib, "get_close_matches", search)
    path = tmp_path / "overrides.txt"
    spaces, senses = f"x{' ' * 100_000}y", f"x {'bear#1 ' * 50_000}y"
    path.write_text("x baer#1\n" * 1000 + f"{spaces}\n{senses}\n")
    with pytest.raises(ConfigError, match="and 993 more cannot be used either"):
        read_overrides(path, wordnet)
    assert len(searched) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bear", r"line 1: 'bear' has no synset; write a hashtag, then a synset id"),
        ("\nbear n0213165", "line 2: 'bear n0213165' has no synset"),
        ("bear\tn0213165", "line 1: 'n0213165' is no sense; write a hashtag"),
        ("bear n99999999", r"no noun of this WordNet has the id n99999999; its senses: bear#1 n02"),
        ("x n99999999", "the id n99999999; ids are those of WordNet 3.0, and an excerpt"),
        ("x bear#3", r"'bear' has 2 senses, not 3; its senses: bear#1 n02131653 \(massive"),
        ("x bear#0", "'bear' has 2 senses, not 0"),
        ("x baer#1", r"'baer' is no noun of this WordNet; did you mean bear"),
        ("bear drop n02131653", "'bear' has synsets and drop"),
        ("!!! drop", "'!!!' is no hashtag: it has no letter"),
        ("bear drop\nBear bear#1", "line 2: 'Bear' has another sense in line 1; keep one"),
        ("a\nb drop\nc\nd", r"line 1: 'a' has no synset.*; line 3, line 4 cannot be used either"),
    ],
)
def test_bad_lines_are_explained_with_their_number(
    text: str, message: str, wordnet: WordNet, tmp_path: Path
) -> None:
    path = tmp_path / "overrides.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as info:
        read_overrides(path, wordnet)
    assert str(path) in str(info.value)
    assert len(str(info.value)) < 500


def test_overrides_are_stronger_than_all_lists(wordnet: WordNet) -> None:
    overrides = read_overrides({"love": "bear#1", "bank": [BANK, LAND], "mouse": "drop"}, wordnet)
    matcher = Matcher(wordnet, "drop", load_stoplist() | {"bank"}, overrides)
    assert matcher.match("LOVE").synsets == (BEAR,)
    assert matcher.match("bank").synsets == (BANK, LAND)
    assert matcher.match("Banks") == matcher.match("bank")  # inflections too
    for tag in ("mouse", "mice"):
        assert matcher.match(tag)[:2] == ((), "dropped")
    assert matcher.match("bear").how == "ambiguous"


def test_words_that_wordnet_lacks_are_listed_with_their_plurals(wordnet: WordNet) -> None:
    overrides = read_overrides({"bearbank": "bear#1", "bank man": "drop"}, wordnet)
    matcher = Matcher(wordnet, stop={"instabear"}, overrides=overrides)
    for tag in ("bearbank", "BearBanks", "#bear_banks"):
        assert matcher.match(tag)[:3] == ((BEAR,), "override", "bearbank")
    assert matcher.match("bankmen")[:2] == ((), "dropped")
    assert matcher.match("instabears")[:2] == ((), "stopped")


def test_the_command_records_overrides_and_names_unused_ones(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = [["bear", "love"], ["bank", "brownbear"], ["mouse", "animals"], ["hotdog"]]
    tags[1].append("istanbul_animal")
    rows = [
        {"id": str(n), "url": None, "hashtags": row, "hash": None} for n, row in enumerate(tags)
    ]
    posts = write_posts(tmp_path / "p.parquet", rows)
    (tmp_path / "o.txt").write_text("love n02131653 bank#2\nbank drop\nspoon bear#1\n")
    arguments = ["recipe", "curate", str(posts), "-o", str(tmp_path / "out"), "--wordnet"]
    arguments += [str(folder), "--quiet", "--overrides", str(tmp_path / "o.txt")]
    words = "hot dog,Mouse,Istanbul,raptors,bank"
    assert main([*arguments, "--add-stopwords", words]) == 0
    errors = capsys.readouterr().err
    assert "overrides of hashtags that no post has: spoon" in errors
    # bank is overridden; Istanbul is a word of a phrase
    assert "2 added stop words that match no hashtag: bank, raptors" in errors
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Added stop words that match no hashtag, 2: bank, raptors" in report
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["parameters"]["overrides"] == {
        "bank": [],
        "love": [BEAR, BANK],
        "spoon": [BEAR],
    }
    uses = manifest["hashtags"]["uses"]
    assert (uses["override"], uses["dropped"], uses["stopped"]) == (1, 1, 2)
    assert sum(count for kind, count in uses.items() if kind != "all") == uses["all"]
    vocabulary = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    assert {row["synset"]: row["images"] for row in vocabulary} == {
        BEAR: 1,
        BANK: 1,
        "n02132136": 1,
        "n00015388": 2,
    }
    (tmp_path / "o.txt").write_text("bank n1\n")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "o.txt, line 1: 'bank n1' has no synset" in error
    assert error.count("\n") == 1


def test_stop_words_are_added_and_the_list_can_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("hash  # of Perl\n#Stars\n")
    expected = frozenset({"hash", "stars"})
    for source in ("words.txt", tmp_path / "words.txt", "hash, Stars", ["#hash", "stars"]):
        assert load_stopwords(source) == expected
    for source in ("no/file", "stop.txt", "s.list", ".txt"):
        with pytest.raises(ConfigError, match=f"{source} cannot be read: No such file"):
            load_stopwords(source)
    with pytest.raises(ConfigError, match="invalid add_stopwords ''"):
        load_stopwords("a,,b")
    assert load_stopwords(()) == frozenset()
    assert main(["recipe", "stoplist"]) == 0
    (tmp_path / "copy.txt").write_text(capsys.readouterr().out)
    assert load_stoplist(tmp_path / "copy.txt") == load_stoplist()
