"""WordNet is found in the usual folders and read; a damaged database is reported in one line."""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
from wordnet_support import (
    DATA,
    EXCEPTIONS,
    FILES,
    INDEX,
    LICENSE,
    has_wordnet,
    needs_wordnet,
    write_wordnet,
)

from swag_models.errors import ConfigError
from swag_models.recipe.wordnet import WordNet, find_wordnet


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without WordNet, and no environment variable that points to one."""
    for name in ("WNHOME", "WNSEARCHDIR", "NLTK_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_synsets_have_lemmas_parents_and_a_gloss(tmp_path: Path) -> None:
    wordnet = WordNet.load(write_wordnet(tmp_path))
    assert wordnet.synsets["n02132136"] == (
        "n02132136",
        ("brown_bear", "bruin", "Ursus_arctos"),
        ("n02131653",),
        "large bear of Eurasia",
        5,
    )
    assert wordnet.synsets["n02131653"].gloss == 'massive plantigrade mammals; "a bear | a cub"'
    assert wordnet.synsets["n09041785"].parents == ("n00001740",), "an instance"
    assert len(wordnet.synsets) == DATA.count("\n")


def test_senses_are_in_the_order_of_the_index(tmp_path: Path) -> None:
    wordnet = WordNet.load(write_wordnet(tmp_path))
    assert wordnet.senses["crane"] == ["n03126707", "n02012849"]
    assert wordnet.exceptions["mice"] == ["mouse"]


def test_ancestors_and_descendants_come_with_their_distance(tmp_path: Path) -> None:
    wordnet = WordNet.load(write_wordnet(tmp_path))
    assert wordnet.ancestors("n02132136") == {"n02131653": 1, "n00015388": 2, "n00001740": 3}
    assert wordnet.descendants("n02131653") == {"n02132136": 1, "n02132466": 2}
    assert wordnet.ancestors("n00001740") == {}
    assert wordnet.descendants("n99999999") == {}


def test_an_excerpt_may_lack_senses_and_parents(tmp_path: Path) -> None:
    lines = [
        line
        for line in DATA.splitlines(keepends=True)
        if not line.startswith(("09845191", "00015388"))
    ]
    wordnet = WordNet.load(write_wordnet(tmp_path, data="".join(lines)))
    assert wordnet.senses["bear"] == ["n02131653"]
    assert wordnet.ancestors("n02132136") == {"n02131653": 1}


@pytest.mark.parametrize(
    "location", ["WNHOME", "WNSEARCHDIR", "NLTK_DATA", "home", "prefix", "zip"]
)
def test_the_usual_folders_are_searched(
    location: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nltk = home / "data" / "corpora" / "wordnet"
    if location in ("WNHOME", "WNSEARCHDIR"):
        database = write_wordnet(home / "wn" / "dict")
        monkeypatch.setenv(location, str(database.parent if location == "WNHOME" else database))
    elif location == "NLTK_DATA":
        database = write_wordnet(nltk)
        monkeypatch.setenv(location, f"{home / 'nowhere'}:{home / 'data'}")
    elif location == "zip":  # as nltk's downloader leaves it
        write_wordnet(nltk)
        shutil.make_archive(str(nltk), "zip", nltk.parent, "wordnet")
        shutil.rmtree(nltk)
        monkeypatch.setenv("NLTK_DATA", str(home / "data"))
        database = nltk.with_suffix(".zip")
    else:
        if location == "prefix":
            monkeypatch.setattr(sys, "prefix", str(home / "venv"))
        database = write_wordnet(
            home
            / ("venv/share" if location == "prefix" else ".")
            / "nltk_data"
            / "corpora"
            / "wordnet"
        )
    assert str(find_wordnet()).rstrip("/").removesuffix("/wordnet") == str(database).removesuffix(
        "/wordnet"
    )
    assert WordNet.load().senses["bruin"] == ["n02132136"]


@pytest.mark.parametrize("kind", ["", "dict", "zip"])
def test_a_folder_or_archive_may_be_given(kind: str, tmp_path: Path) -> None:
    path = (
        write_wordnet(tmp_path / "wordnet" / kind).parent
        if kind == "dict"
        else write_wordnet(tmp_path / "wordnet")
    )
    if kind == "zip":
        path = Path(shutil.make_archive(str(path), "zip", tmp_path, "wordnet"))
    assert WordNet.load(path).senses["bruin"] == ["n02132136"]


def test_the_error_for_a_missing_database_says_how_to_install_it(home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has no WordNet database; .*apt install wordnet-base.*nltk.*wordnet="
    ) as caught:
        WordNet.load(home)
    assert "\n" not in str(caught.value)
    if not has_wordnet():
        with pytest.raises(ConfigError, match=r"no WordNet database was found; .*apt install"):
            WordNet.load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": (LICENSE + DATA).replace("3.0", "3.1")}, r"data\.noun is from WordNet 3\.1"),
        ({"data": DATA[:-60]}, r"invalid line 19 in .*data\.noun: .*is not in WordNet's format"),
        ({"data": DATA.replace(" n 03 brown", " n 04 brown")}, r"line 4 in .*data\.noun.*02132136"),
        ({"data": '{"synsets": []}\n'}, r"line 1 in .*data\.noun.*synsets"),
        ({"data": "\x00\x01\n"}, r"line 1 in .*data\.noun"),
        ({"index": INDEX.replace("bank n 2", "bank n 3")}, r"line 2 in .*index\.noun.*bank n 3"),
        ({"index": LICENSE}, r"index\.noun contains no nouns"),
        ({"noun": EXCEPTIONS + "geese\n"}, r"line 3 in .*noun\.exc.*geese"),
        (
            {"data": "00000000" + DATA[8:]},
            r"data\.noun lacks a synset of 'entity' and may be truncated",
        ),
    ],
)
def test_a_damaged_file_or_other_version_is_reported_in_one_line(
    changed: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        WordNet.load(write_wordnet(tmp_path, **changed))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    (write_wordnet(tmp_path) / "noun.exc").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"noun\.exc cannot be read"):
        WordNet.load(tmp_path)


@needs_wordnet
@pytest.mark.slow
def test_the_complete_wordnet_is_read_fast() -> None:
    start = time.process_time()
    wordnet = WordNet.load()
    assert time.process_time() - start < 5, "it takes 1.2 s on a machine of 2026"
    assert (len(wordnet.synsets), len(wordnet.senses)) == (82115, 117798)
    assert wordnet.ancestors("n02084071").keys() >= {"n02083346", "n01317541", "n00001740"}, (
        "a dog is a canine, and domestic"
    )
    assert len(wordnet.descendants("n00001740")) == 82114


@needs_wordnet
def test_a_truncated_database_is_rejected(tmp_path: Path) -> None:
    source = Path(str(find_wordnet()))
    for name in FILES:
        shutil.copy(source / name, tmp_path)
    lines = (source / "data.noun").read_bytes().splitlines(keepends=True)
    (tmp_path / "data.noun").write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(ConfigError, match=r"lacks a synset of .* and may be truncated"):
        WordNet.load(tmp_path)


def test_damaged_zip_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "wordnet.zip"
    write_wordnet(tmp_path / "files")
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in (tmp_path / "files").iterdir():
                archive.write(file, f"wordnet/{file.name}")
        intact = path.read_bytes()
        assert WordNet.load(path).synsets
        draw = random.Random(0)
        for _ in range(150):
            place = draw.randrange(len(intact))
            path.write_bytes(intact[:place] + bytes([draw.randrange(256)]) + intact[place + 1 :])
            with contextlib.suppress(ConfigError):
                WordNet.load(path)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wordnet.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("index.noun", "data.noun", "noun.exc"):
            with archive.open(f"wordnet/{name}", "w") as file:
                for _ in range(65):
                    file.write(bytes(1 << 20))
    with pytest.raises(ConfigError, match="it has more than 67,108,864 bytes"):
        WordNet.load(path)
