"""Posts in any format become the same rows, and damaged tables are reported."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.backends import Backend, open_backend
from swag_models.recipe.curation.ingest import ReadOptions, unite_posts
from swag_models.recipe.curation.posts import BAD_HASHTAGS, BAD_ID, NO_ID, NOT_DOWNLOADED

BEARS = ["brown bear", "mouse"]
# a cell of hashtags, a caption, and the resulting hashtags; None if the row is rejected
CELLS: list[tuple[str | None, str | None, list[str] | None]] = [
    # separators
    ("brown bear, hot dog ,crane", None, ["brown bear", "hot dog", "crane"]),
    ("brown bear;mouse", "#raptor", BEARS),
    ("brown bear | mouse", None, BEARS),
    ("brown bear,mouse;crane|", None, [*BEARS, "crane"]),
    ("brown bear\nmouse\r\n", None, BEARS),
    ("brown bear\u3001mouse\uff0c\u718a\uff1b", None, [*BEARS, "\u718a"]),
    ("bear\u3000mouse\tcrane \x85bank\xa0", None, ["bear", "mouse", "crane", "bank"]),
    ("bear", None, ["bear"]),
    ("#bear#mouse and #café", None, ["bear", "mouse", "café"]),
    ("\uff03bear,crane", "#raptor", ["bear"]),
    ("C#, bear", None, ["C#", "bear"]),
    ("#C#, bear", None, ["C#", "bear"]),
    ("#C# #F#", None, ["C#", "F#"]),
    ("a #\x85;bear \x85,", None, ["a #\x85", "bear \x85"]),
    ("R&B; bear", None, ["R&B", "bear"]),
    # entities contain ";" and "#"
    ("&Aacute;rbol rojo", None, ["&Aacute;rbol", "rojo"]),
    ("caf&#233;, bear&amp;eacute; x;mouse", None, ["caf&#233;", "bear&amp;eacute; x", "mouse"]),
    ("a&b;mouse&", None, ["a&b", "mouse&"]),
    # lists, as JSON, Python, NumPy, PostgreSQL and Spark write them
    ('["brown bear", "mouse"]', "#raptor", BEARS),
    (' [ "hot dog", \'#bear \' , "it\'s"\n]\n', None, ["hot dog", "bear", "it's"]),
    ('["caf\\u00e9", "a\\"b"]', None, ["caf\\u00e9", 'a\\"b']),
    ("['brown bear', 'mouse', None, nan]", None, BEARS),
    ("['brown bear' 'mouse']", None, BEARS),
    ("['brown bear'\n 'mouse' \"it's\"]", None, [*BEARS, "it's"]),
    ("('brown bear',)", None, ["brown bear"]),
    ("{'brown bear', 'mouse'}", None, BEARS),
    ("[np.str_('brown bear'), np.str_('mouse')]", None, BEARS),
    ("[b'bear' b'mouse']", None, ["bear", "mouse"]),
    ("array(['brown bear', 'mouse'], dtype='<U10')", None, BEARS),
    ("frozenset({'mouse'})", None, ["mouse"]),
    ('{bear,"brown bear",NULL,90s}', None, ["bear", "brown bear", "90s"]),
    ("[brown bear, mouse]", None, BEARS),
    ('"brown bear", "mouse"', None, BEARS),
    ("[]", "#raptor", []),
    ("{ }", "#raptor", []),
    # not lists
    ("[bear", "#raptor", None),
    ('["bear"] x', None, None),
    ("['bear' ... 'mouse']", None, None),
    ("[1, 2]", None, None),
    ('{"bear": 1}', None, None),
    ("[['bear'], ['mouse']]", None, None),
    ("(see) bear", None, ["(see)", "bear"]),
    # missing
    (None, "a #bear, a #mouse", ["bear", "mouse"]),
    ("", "a #bear", ["bear"]),
    ("  ", "a #bear", ["bear"]),
    ("nan", "a #bear", ["bear"]),
    ("\\N", "a #bear", ["bear"]),
    (None, None, []),
    ("# , ;", "#raptor", []),
]
LISTS: list[tuple[list[str | None] | None, list[str]]] = [
    ([" #hot dog", "bear; mouse", "#", ""], ["hot dog", "bear; mouse"]),
    (["bear", None], ["bear"]),
    ([], []),
    (None, ["raptor"]),
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


def read(
    backend: Backend, folder: Path, files: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The posts of files, in the order of their ids, and the number of rejects by reason."""
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
    return backend.fetch(posts.order_by("id")).to_pylist(), rejected


def write_posts(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write posts in the format of a file's suffixes."""
    kinds = path.name.split(".")[1:]
    lines = [json.dumps(row) for row in rows]
    if kinds == ["parquet"]:
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kinds == ["jsonl"]:
        path.write_text("\n".join(lines))
    elif kinds == ["json"]:
        path.write_text("[" + ",\n".join(lines) + "]\n")
    elif kinds == ["indented", "json"]:
        path.write_text(json.dumps(rows, indent=2, ensure_ascii=False))
    elif kinds == ["tar"]:
        with tarfile.open(path, "w") as archive:
            for row in rows:
                member = tarfile.TarInfo(f"{row['id']}.json")
                member.size = len(json.dumps(row))
                archive.addfile(member, io.BytesIO(json.dumps(row).encode()))
    else:
        delimiter = {"semicolon": ";", "bar": "|", "tsv": "\t", "csv": ","}[kinds[0]]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)


TEXT_NAMES = ("p.parquet", "p.jsonl", "p.json", "p.indented.json", "p.tar")
TABLE_NAMES = ("p.csv", "p.semicolon.csv", "p.bar.csv", "p.tsv")


def test_text_becomes_the_same_hashtags_in_every_format(backend: Backend, tmp_path: Path) -> None:
    rows = [
        {"id": f"{n:03}", "hashtags": hashtags, "caption": caption}
        for n, (hashtags, caption, _) in enumerate(CELLS)
    ]
    rows.append({"id": None, "hashtags": "bear", "caption": None})
    accepted = {row["id"]: tags for row, (*_, tags) in zip(rows, CELLS) if tags is not None}
    for name in TEXT_NAMES + TABLE_NAMES:
        write_posts(tmp_path / name, rows)
        posts, rejects = read(backend, tmp_path, [name])
        found = {row["id"]: row["hashtags"] or [] for row in posts}
        assert found == accepted, name
        assert rejects == {BAD_HASHTAGS: len(rows) - 1 - len(accepted), NO_ID: 1}, name


def test_lists_become_the_same_hashtags_in_every_format(backend: Backend, tmp_path: Path) -> None:
    rows = [
        {"id": f"{n}", "hashtags": hashtags, "caption": "#raptor"}
        for n, (hashtags, _) in enumerate(LISTS)
    ]
    for name in TEXT_NAMES + TABLE_NAMES:
        write_posts(tmp_path / name, rows)
        posts, rejects = read(backend, tmp_path, [name])
        assert [row["hashtags"] or [] for row in posts] == [tags for _, tags in LISTS], name
        assert not rejects


def test_numbers_and_missing_columns_of_pandas_are_read(backend: Backend, tmp_path: Path) -> None:
    schema = pa.schema(
        {
            "id": pa.float64(),
            "url": pa.null(),
            "tags": pa.list_(pa.null()),
            "caption": pa.dictionary(pa.int8(), pa.string()),
            "status": pa.string(),
        }
    )
    rows = [
        {"id": 12345678901.0, "caption": "#bear", "status": "success"},
        {"id": 2.5, "caption": "#bear"},
        {"id": float("inf"), "caption": "#bear"},
        {"id": float("nan"), "caption": "#bear"},
        {"id": None, "caption": "#bear"},
        {"id": 4, "caption": "#mouse", "tags": [None], "status": "public"},
        {"id": 5, "caption": "#mouse", "status": "failed_to_download"},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("p.parquet", "p.jsonl"):
        posts, rejects = read(backend, tmp_path, [name])
        assert [(row["id"], row["hashtags"]) for row in posts] == [
            ("12345678901", ["bear"]),
            ("4", []),
        ]
        assert rejects == {BAD_ID: 2, NO_ID: 2, NOT_DOWNLOADED: 1}


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
    rows, _ = read(backend, tmp_path, ["a.parquet", "b.parquet", "c.parquet"])
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
