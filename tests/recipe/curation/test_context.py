"""The sense of a hashtag by its neighbours: SQL equals the definition, on DuckDB and Spark."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curation_support import SCHEMA, write_posts
from test_curate import SPARK_SETTINGS, spark_reason

from swag_models.recipe.curation.backends import open_backend
from swag_models.recipe.curation.pipeline import gather_synsets, match_posts
from swag_models.recipe.hashtags import Matcher
from swag_models.recipe.senses import list_cues, parse_senses
from swag_models.recipe.wordnet import WordNet

MOUSE, CRANE, MACHINE = "n02330245", "n02012849", "n03126707"
BANK, FIRM = "n09213565", "n08420278"
LINES = [
    f"crane\t{CRANE}\t{MACHINE}:building site truck\t{CRANE}:truck bird",
    f"bank\t-\t{FIRM}:money usb\t{BANK}:river mouse",
    f"mouse\t{MOUSE}\t-:usb crane",
]
TAGS = [
    *("crane", "Cranes", "bank", "BANK", "mouse", "mice", "usb", "#USB", "Building", "site"),
    *("truck", "bird", "money", "river", "bear", "nothing"),
]


def gather(engine: str, posts: Path, matcher: Matcher, work: Path) -> dict[str, set[str]]:
    """The synsets of each post, computed by a backend."""
    work.mkdir()
    parts, images = work / "parts", work / "images"
    names = ("tags", "matches", "codes", "rules")
    tables = {name: work / f"{name}.parquet" for name in names}
    master = "local[1]" if engine == "spark" else None
    with open_backend(
        engine, scratch=work / "scratch", memory=None, threads=None, master=master
    ) as backend:
        backend.write_parts(backend.read(posts).select("id", "hashtags"), parts)
        match_posts(backend, parts, matcher, matcher.ranker.wordnet, (0, 1), tables)
        gather_synsets(
            backend, parts, tables["codes"], tables["rules"], images, work / "senses.parquet"
        )
    rows = pq.read_table(tables["matches"]).to_pylist()
    synsets = {row["number"]: row["synset"] for row in rows}
    return {
        row["id"]: {synsets[number] for number in row["numbers"]}
        for row in pq.read_table(images).to_pylist()
    }


@pytest.mark.parametrize("engine", ["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def test_sql_chooses_the_senses_of_the_definition(
    engine: str, wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "spark":
        if reason := spark_reason():
            pytest.skip(reason)
        (tmp_path / "spark-defaults.conf").write_text(SPARK_SETTINGS)
        monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    make = random.Random(0)
    posts = [
        {"id": str(n), "hashtags": make.choices(TAGS, k=make.randrange(7))} for n in range(500)
    ]
    matcher = Matcher(WordNet.load(wordnet))
    matcher.table = parse_senses(LINES)
    matcher.cues = list_cues(matcher.table)
    expected = {}
    chosen = set()
    for post in posts:
        matches = matcher.match_post(post["hashtags"])
        chosen |= {(match.lemma, *match.synsets, match.reason) for match in matches}
        if synsets := {synset for match in matches for synset in match.synsets}:
            expected[post["id"]] = synsets
    rows = [{name: post.get(name) for name in SCHEMA.names} for post in posts]
    file = write_posts(tmp_path / "posts.parquet", rows)
    assert gather(engine, file, matcher, tmp_path / "work") == expected
    assert chosen >= {
        ("crane", CRANE, "table"),
        ("crane", CRANE, "context"),
        ("crane", MACHINE, "context"),
        ("bank", "table"),
        ("bank", BANK, "context"),
        ("bank", FIRM, "context"),
        ("mouse", "context"),
        ("mouse", MOUSE, "table"),
    }
