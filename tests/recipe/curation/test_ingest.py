"""Posts in any format become the same rows, and damaged tables are reported."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.backends import Backend, open_backend
from swag_models.recipe.curation.ingest import ReadOptions, unite_posts
from swag_models.recipe.curation.posts import BAD_HASHTAGS, ESCAPED_HASHTAGS

POSTS = [  # hashtags, a caption, and the resulting hashtags
    ("brown bear, hot dog ,crane", None, ["brown bear", "hot dog", "crane"]),
    ("bear\u3000mouse\tcrane \x85bank", "#raptor", ["bear", "mouse", "crane", "bank"]),
    ("#bear#mouse and #café", None, ["bear", "mouse", "café"]),
    ("\uff03bear,crane", "#raptor", ["bear"]),
    ('["brown bear"]', "#raptor", ["brown bear"]),
    ('[ "hot dog", "#bear " , "mouse"]', None, ["hot dog", "bear", "mouse"]),
    (None, "a #bear, a #mouse", ["bear", "mouse"]),
    (None, None, []),
    ("[]", "#raptor", []),
]


@pytest.fixture(params=["duckdb", pytest.param("spark", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "spark":
        pytest.importorskip("pyspark")
        if not shutil.which("java"):
            pytest.skip("no Java: apt install openjdk-17-jre-headless")
    master = "local[1]" if request.param == "spark" else None
    with open_backend(
        request.param, scratch=tmp_path / "scratch", memory=None, threads=None, master=master
    ) as opened:
        yield opened


def read(backend: Backend, folder: Path, files: Sequence[str]) -> list[dict[str, Any]]:
    work = folder / "steps"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    posts, rejected = unite_posts(
        backend,
        [folder / file for file in files],
        ReadOptions(progress=False),
        work,
        folder / "rejects.jsonl",
    )
    assert not rejected
    rows: list[dict[str, Any]] = backend.fetch(posts.order_by("id")).to_pylist()
    return rows


def test_hashtags_are_the_same_in_every_format(backend: Backend, tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}", "hashtags": hashtags, "caption": caption}
        for n, (hashtags, caption, _) in enumerate(POSTS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "hashtags", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("p.parquet", "p.jsonl", "p.csv"):
        assert [row["hashtags"] or [] for row in read(backend, tmp_path, [name])] == [
            tags for *_, tags in POSTS
        ], name


def test_lists_of_hashtags_are_the_same_in_every_format(backend: Backend, tmp_path: Path) -> None:
    rows = [{"id": "0", "hashtags": [" #hot dog", "bear, mouse", "#"], "caption": "#raptor"}]
    rows += [{"id": "1", "hashtags": None, "caption": "#raptor"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("p.parquet", "p.jsonl"):
        assert [row["hashtags"] for row in read(backend, tmp_path, [name])] == [
            ["hot dog", "bear, mouse"],
            ["raptor"],
        ], name


def test_a_list_in_text_that_parquet_cannot_give_back_is_rejected(
    backend: Backend, tmp_path: Path
) -> None:
    cells = (
        "['bear' 'mouse']",
        "['bear', 'mouse']",
        '["bear"',
        "[1, 2]",
        '["bear"] x',
        '["a\\u00e9"]',
    )
    rows = [{"id": f"{n}", "hashtags": cell} for n, cell in enumerate((*cells, '["bear"]', "[ ]"))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    posts, rejected = unite_posts(
        backend,
        [tmp_path / "p.parquet"],
        ReadOptions(progress=False),
        tmp_path,
        tmp_path / "rejects.jsonl",
    )
    assert rejected == {BAD_HASHTAGS: 5, ESCAPED_HASHTAGS: 1}
    kept = backend.fetch(posts.order_by("id")).to_pylist()
    assert [row["hashtags"] for row in kept] == [["bear"], []]


def test_columns_can_have_other_types_in_each_file(backend: Backend, tmp_path: Path) -> None:
    for name, identifier, hashtags in (
        ("a", 1, ["bear"]),
        ("b", "two", ["bear"]),
        ("c", "three", "#bear"),
    ):
        pq.write_table(
            pa.Table.from_pylist([{"id": identifier, "hashtags": hashtags}]),
            tmp_path / f"{name}.parquet",
        )
    rows = read(backend, tmp_path, ["a.parquet", "b.parquet", "c.parquet"])
    assert [(row["id"], row["hashtags"]) for row in rows] == [
        ("1", ["bear"]),
        ("three", ["bear"]),
        ("two", ["bear"]),
    ]


def test_a_damaged_file_is_reported_in_one_line(tmp_path: Path) -> None:
    rows = [{"id": f"{number * 7919 % 1000}", "hashtags": ["bear"]} for number in range(1000)]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[100:200] = bytes(100)
    path.write_bytes(content)
    with (
        open_backend(
            "duckdb", scratch=tmp_path / "scratch", memory=None, threads=None, master=None
        ) as backend,
        pytest.raises(
            ConfigError,
            match=r"^DuckDB cannot read the posts: .+; replace or remove damaged files$",
        ),
    ):
        read(backend, tmp_path, ["p.parquet"])


def test_a_table_replaces_that_of_another_backend(tmp_path: Path) -> None:
    (tmp_path / "labels.parquet").mkdir()
    (tmp_path / "labels.parquet" / "part-0.parquet").touch()
    with open_backend(
        "duckdb", scratch=tmp_path / "scratch", memory=None, threads=None, master=None
    ) as backend:
        backend.write(
            backend.store(pa.table({"id": ["a"]}), tmp_path / "rows.parquet"),
            tmp_path / "labels.parquet",
        )
    assert pq.ParquetFile(tmp_path / "labels.parquet").read().to_pylist() == [{"id": "a"}]
