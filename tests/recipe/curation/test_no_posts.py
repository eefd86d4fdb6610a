"""If no post or no class is left, one line says why, shows the values and names the columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.curate import curate
from swag_models.recipe.curation.posts import Columns

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
        ("p.json", '[{"file": "a", "tags": []}]', {}, ["1 no id (its fields: file, tags)"]),
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
    content: str | list[Any],
    columns: dict[str, str],
    messages: list[str],
    wordnet: Path,
    tmp_path: Path,
) -> None:
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
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
    for part in messages:
        assert part in message
    rejects = tmp_path / "out" / "rejects.jsonl"
    if "rejected" in message:
        assert f"listed in {rejects}" in message
        assert json.loads(rejects.read_text().splitlines()[0])["reason"]
