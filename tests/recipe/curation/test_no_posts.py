"""If no post or no class is left, one line says why, shows the values and names the columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.columns import Columns
from swag_models.recipe.curation.curate import curate
from swag_models.recipe.curation.preview import preview

NESTED = "[['bear'], ['mouse']]"


@pytest.mark.parametrize(
    ("name", "content", "columns", "messages"),
    [
        (
            "p.csv",
            f'id,tags\n1,"{NESTED}"\n2,"{NESTED}"\n,bear\n',
            {},
            [
                'none of 3 posts is left; all rejected: 2 hashtags are not a list of text ("[[',
                "1 no id",
            ],
        ),
        (
            "p.parquet",
            [{"id": "1", "tags": NESTED}],
            {},
            ["all rejected: 1 hashtags are not a list of text (\"1 [['bear'], ['mouse']]\")"],
        ),
        (
            "p.jsonl",
            '{"id": 1, "tags": {"bear": 1}}\n{"id": 2, "tags": 5}\n',
            {},
            ["all rejected: 2 hashtags are not a list of text (of type dict)"],
        ),
        (
            "p.json",
            '[{"file": "a.jpg", "words": ["bear"]}]',
            {},
            ["1 no hashtags and no caption (its fields: file, words)", "with id=, hashtags= or"],
        ),
        ("p.json", '[{"photo": "a", "tags": []}]', {}, ["1 no id (its fields: photo, tags)"]),
        ("p.csv", "", {}, ["no post is in ", "p.csv; pass other files"]),
        ("p.csv", "id,tags\n", {}, ["no post is in ", "p.csv; pass other files"]),
        ("p.jsonl", "", {}, ["no post is in ", "p.jsonl; pass other files"]),
        ("p.csv", "\n", {}, ["no column of ids and none of hashtags or captions; the file is e"]),
        (
            "p.csv",
            "a,b\n1,2\n",
            {},
            ["its columns: a, b; name each with id= and hashtags= or caption="],
        ),
        ("p.csv", b"id,tags\n1,caf\xe9\n", {}, ["1 bad UTF-8", "; save the files as UTF-8"]),
        ("p.jsonl", b'{"id": 1, "tags": "\xe9"}', {}, ["1 bad UTF-8", "; save the files as UTF-8"]),
        (
            "p.jsonl",
            '{"id": "a", "tags": []}',
            {"id": "photo"},
            ["1 no id (its fields: id, tags)"],
        ),
        (
            "p.jsonl",
            "".join(f'{{"id": {value}, "tags": []}}\n' for value in ("true", "[]", "1.5"))
            + '{"id": 1, "tags": [], "url": 5}\n{"id": 1, "tags": [], "hash": 1.5}\n{\nx\n[]\n',
            {},
            ["3 id is not text or a whole number (True), 2 not JSON ('{'), ", ", ...; listed in"],
        ),
        (
            "p.jsonl",
            '{"id": 1, "tags": ["dog;qwxz", "qwxz\\u001b[31m"]}\n',
            {},
            ["no hashtag of the posts is a noun of WordNet; the most used: 'dog;qwxz', 'qwx"],
        ),
        ("p.jsonl", '{"id": 1, "tags": []}\n', {}, ["the most used: none; check hashtags="]),
    ],
)
def test_the_reason_is_shown(
    name: str,
    content: str | bytes | list[Any],
    columns: dict[str, str],
    messages: list[str],
    wordnet: Path,
    tmp_path: Path,
) -> None:
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        pq.write_table(pa.Table.from_pylist(content), tmp_path / name)
    with pytest.raises(ConfigError) as caught:
        curate(
            [tmp_path / name],
            tmp_path / "out",
            columns=Columns(**columns),
            wordnet=wordnet,
            progress=False,
        )
    message = str(caught.value)
    assert len(message) < 500
    assert message.isprintable()
    assert ("check format=" in message) == ("rejected" in message and "UTF-8" not in message)
    for part in messages:
        assert part in message
    rejects = tmp_path / "out" / "rejects.jsonl"
    if "rejected" in message:
        assert f"listed in {rejects}" in message
        assert json.loads(rejects.read_text().splitlines()[0])["reason"]


def test_a_dry_run_names_no_temporary_file(wordnet: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match="1 not JSON") as caught:
        preview([tmp_path / "p.jsonl"], wordnet=wordnet, progress=False)
    assert "rejects.jsonl" not in str(caught.value)


def test_the_output_must_be_a_folder(wordnet: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": 1, "tags": "bear"}\n')
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match=r"output= must be a folder; .*/out is a file"):
        curate([tmp_path / "p.jsonl"], tmp_path / "out", wordnet=wordnet, progress=False)
