"""Nouns of captions: curation of tables of captions, and the SQL behind it."""

import json
import shutil
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.captions import find_nouns, make_lexicon
from swag_models.recipe.curation.columns import Columns
from swag_models.recipe.curation.curate import curate
from swag_models.recipe.curation.posts import CAPTION_MARK
from swag_models.recipe.wordnet import Synset, WordNet

CAPTIONS = Columns(source="captions")
NOUNS = [
    "golden_retriever",
    "retriever",
    "puppy",
    "dog",
    "couch",
    "dog_house",
    "house",
    "new_york",
    "new_york_city",
    "city_hall",
    "hall",
    "tower",
    "city",
    "st._bernard",
    "t-shirt",
    "bird_of_prey",
    "bird",
    "cafe",
    "bear",
    "a",
    "can",
    "it",
    "at_bat",
    "hot_dog",
    "sun",
    "cavalier_king_charles_spaniel",
    "king",
    "spaniel",
    "city_hall_tower",
    "hall_tower_clock",
    "clock",
    "he",
    "tv",
    "o",
]
TEXTS = {
    "A golden retriever puppy sits on the couch.": ["golden retriever", "puppy", "couch"],
    "Golden Retrievers, PUPPIES": ["golden retrievers", "puppies"],
    "the dog's house": ["dog house"],
    "a hot, dog": ["dog"],
    "It can be a dog-house": ["dog house"],
    "He can't stand at bat": [],
    "new york city hall": ["new york city", "hall"],
    "new york city hall tower clock": ["new york city", "hall tower clock"],
    "new york city hall tower": ["new york city", "hall", "tower"],
    "a St. Bernard, a st bernard": ["st. bernard", "st. bernard"],
    "Birds of prey in T-shirts": ["birds of prey", "t-shirts"],
    "caf\u00e9 with two cafe\u0301s": ["cafe", "cafes"],
    "see https://dog.example/bear or www.sun.com &bear; #goldenretriever": ["golden retriever"],
    '\u2018dog\u2019 "bear" (sun) dog_bear\n\tsun': ["dog", "bear", "sun", "dog", "bear", "sun"],
    "two Cavalier King Charles spaniels watch TV": ["cavalier king charles spaniels", "tv"],
    "\u72ac \u0441\u043e\u0431\u0430\u043a\u0430 \u0130stanbul": [],
    "": [],
    "   ": [],
}


@pytest.fixture(scope="module")
def nouns() -> WordNet:
    ids = {lemma: f"n{number:08}" for number, lemma in enumerate(NOUNS)}
    synsets = {synset: Synset(synset, (lemma,), (), "") for lemma, synset in ids.items()}
    return WordNet(synsets, {lemma: [synset] for lemma, synset in ids.items()}, {})


def write_tables(folder: Path, wordnet: WordNet) -> list[Path]:
    """Write posts with `TEXTS` as captions, and the tables of the nouns."""
    posts = pa.table(
        {
            "id": [str(number) for number in range(len(TEXTS))],
            "hashtags": [["#dog", CAPTION_MARK + text] for text in TEXTS],
        }
    )
    paths = [folder / f"{name}.parquet" for name in ("posts", "roots", "branches")]
    for path, table in zip(paths, (posts, *make_lexicon(wordnet)), strict=True):
        pq.write_table(table, path)
    return paths


def collect(connection: Any, paths: list[Path]) -> dict[str, list[str]]:
    found = find_nouns(*[connection.read_parquet(str(path)) for path in paths])
    path = paths[0].with_name(f"{connection.name}.parquet")
    connection.to_parquet(found, path)
    rows = pq.read_table(path).to_pylist()
    return {row["id"]: sorted(row["hashtags"]) for row in rows}


def test_the_longest_phrase_wins_and_uses_up_its_words(nouns: WordNet, tmp_path: Path) -> None:
    found = collect(ibis.duckdb.connect(), write_tables(tmp_path, nouns))
    assert [found.get(str(n), []) for n in range(len(TEXTS))] == [
        sorted(tags) for tags in TEXTS.values()
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")
def test_spark_finds_the_same_nouns(nouns: WordNet, tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    if not shutil.which("java"):
        pytest.skip("no Java: apt install openjdk-17-jre-headless")
    from pyspark.sql import SparkSession

    paths = write_tables(tmp_path, nouns)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    try:
        found = collect(ibis.pyspark.connect(session), paths)
    finally:
        session.stop()
    assert found == collect(ibis.duckdb.connect(), paths)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        pytest.param(".jsonl", ("key", "url", "caption"), marks=pytest.mark.slow),  # img2dataset
        pytest.param(".csv", ("uid", "url", "text"), marks=pytest.mark.slow),  # DataComp
        (".parquet", (None, "URL", "TEXT")),  # LAION
    ],
)
def test_columns_of_data_sets_of_captions_are_found(
    wordnet: Path, tmp_path: Path, suffix: str, names: tuple[str | None, ...]
) -> None:
    texts = ["A brown bear", "two birds of prey and a bear", "nothing"]
    values = [(f"k{n}", f"https://a.example/{n}", text) for n, text in enumerate(texts)]
    rows: list[dict[str, Any]] = [
        {name: value for name, value in zip(names, row) if name} for row in values
    ]
    if not names[0]:
        rows = [row | {"hash": 2**40 + number} for number, row in enumerate(rows)]
    path = write_rows(tmp_path / f"posts{suffix}", rows)
    manifest = curate([path], tmp_path / "out", columns=CAPTIONS, wordnet=wordnet, progress=False)
    labels = pq.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    keys = [row[0] if names[0] else row[1] for row in values]
    assert [row["id"] for row in labels] == keys[:2]
    vocabulary = pq.read_table(tmp_path / "out" / "vocabulary.parquet").to_pylist()
    assert {row["synset"] for row in vocabulary} == {"n02132136", "n01604330", "n02131653"}
    assert manifest["posts"]["kept"] == 3
    assert manifest["posts"]["tagged"] == 2
    assert manifest["parameters"]["columns"]["source"] == "captions"


@pytest.mark.parametrize(
    "line",
    [
        "A bear, with mice\thttps://a.example/1",
        pytest.param("https://a.example/1\tA bear, with mice", marks=pytest.mark.slow),
    ],
)
def test_conceptual_captions_have_no_header(wordnet: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "cc.tsv").write_text(f"{line}\n{line.replace('/1', '/2')}\n")
    curate([tmp_path / "cc.tsv"], tmp_path / "o", columns=CAPTIONS, wordnet=wordnet, progress=False)
    labels = pq.read_table(tmp_path / "o" / "labels.parquet").to_pylist()
    assert labels[0]["id"].startswith("https://a.example/")
    assert [len(row["classes"]) for row in labels] == [2, 2]


def test_both_sources_are_united(wordnet: Path, tmp_path: Path) -> None:
    rows = [{"id": "1", "tags": ["crane"], "text": "a bear #mouse"}, {"id": "2", "text": "#raptor"}]
    found = {}
    for source in ("hashtags", "both"):
        path = write_rows(tmp_path / "p.jsonl", rows)
        columns = Columns(source=source)
        curate([path], tmp_path / source, columns=columns, wordnet=wordnet, progress=False)
        table = pq.read_table(tmp_path / source / "vocabulary.parquet").to_pylist()
        found[source] = {tag for row in table for tag in row["hashtags"]}
    assert found == {
        "hashtags": {"crane", "raptor"},
        "both": {"crane", "bear", "mouse", "raptor"},
    }


def test_wrong_sources_are_refused_in_one_line(wordnet: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.csv", [{"id": "1", "tags": "bear"}])
    for columns, message in [
        (Columns(source="text"), "invalid source 'text': allowed: hashtags, captions, both"),
        (Columns(hashtags="tags", source="captions"), "source='captions' reads no hashtags"),
        (CAPTIONS, "no column of captions; its columns: id, tags; name one with caption="),
    ]:
        with pytest.raises(ConfigError) as caught:
            curate([path], tmp_path / "out", columns=columns, wordnet=wordnet, progress=False)
        assert message in str(caught.value)
