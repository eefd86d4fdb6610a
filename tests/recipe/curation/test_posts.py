"""The columns of a Parquet file of posts are found by name and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.columns import Columns, find_columns, find_parquet_columns
from swag_models.recipe.curation.curate import curate

TAGS = pa.list_(pa.string())


def test_columns_of_parquet_files_are_found() -> None:
    img2dataset = pa.schema(
        dict.fromkeys(("url", "caption", "key", "status", "error_message", "sha256"), pa.string())
    )
    assert find_parquet_columns(img2dataset) == Columns("key", "url", None, "caption", "sha256")
    large = pa.schema(
        {"id": pa.int64(), "tags": pa.large_list(pa.large_string()), "md5": pa.string_view()}
    )
    assert find_parquet_columns(large) == Columns("id", None, "tags", None, "md5")
    assert (
        find_parquet_columns(
            pa.schema({"id": pa.string(), "n": pa.uint8(), "w": pa.string()}),
            Columns(id="n", hashtags="w"),
        ).id
        == "n"
    )


@pytest.mark.parametrize(
    ("schema", "columns", "message"),
    [
        (
            {"n": pa.int64(), "tags": TAGS},
            Columns(),
            r"x\.parquet has no column of ids; its columns: n, tags",
        ),
        (
            {"id": pa.int64()},
            Columns(),
            "no column of hashtags or captions; its columns: id",
        ),
        (
            {"id": pa.int64(), "tags": TAGS},
            Columns(hash="md5"),
            "no column 'md5' for hash; its columns: id, tags",
        ),
        (
            {"id": pa.bool_(), "tags": TAGS},
            Columns(),
            "has type bool in column 'id', which is not allowed for id",
        ),
        (
            {"id": pa.int64(), "tags": pa.list_(pa.int8())},
            Columns(),
            "column 'tags', which is not allowed for hashtags",
        ),
        (
            {"id": pa.int64(), "caption": TAGS},
            Columns(),
            "column 'caption', which is not allowed for caption",
        ),
    ],
)
def test_parquet_files_without_the_columns_are_rejected(
    schema: dict[str, Any], columns: Columns, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_parquet_columns(pa.schema(schema), columns, "x.parquet")


def test_columns_of_other_types_are_passed_over_if_there_are_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text, number = pa.string(), pa.int64()
    captions = Columns("id", caption="caption")
    cases: list[tuple[dict[str, Any], Columns]] = [
        ({"id": text, "caption": text, "labels": number}, captions),
        ({"id": text, "labels": pa.list_(number), "caption": text}, captions),
        ({"id": text, "tags": number, "labels": TAGS}, Columns("id", hashtags="labels")),
        (
            {"path": pa.struct({"x": text}), "img": text, "tags": TAGS},
            Columns("img", None, "tags"),
        ),
        ({"id": pa.list_(number), "key": text, "tags": TAGS}, Columns("key", None, "tags")),
    ]
    for schema, columns in cases:
        caplog.clear()
        assert find_parquet_columns(pa.schema(schema), path="x.parquet") == columns
        (message,) = caplog.messages
        assert "of x.parquet has type" in message
    with pytest.raises(ConfigError, match="not allowed for hashtags"):  # chosen by the user
        find_parquet_columns(pa.schema(cases[0][0]), Columns(hashtags="labels"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl", "p.json"])
def test_numbers_of_classes_beside_captions_are_no_hashtags(
    name: str, wordnet: Path, tmp_path: Path
) -> None:
    for part, labels in enumerate(([1, 3], 7)):
        path = tmp_path / f"{part}{name}"
        rows = [{"id": f"{part}{n}", "labels": labels, "caption": "a #bear"} for n in (1, 2)]
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            path.write_text(json.dumps(rows) if path.suffix == ".json" else lines)
    files = sorted(tmp_path.iterdir())
    manifest = curate(files, tmp_path / "out", wordnet=wordnet, progress=False)
    assert (manifest["posts"]["kept"], manifest["labels"]["images"]) == (4, 4)
    assert manifest["hashtags"]["uses"]["all"] == 4


@pytest.mark.parametrize(
    ("names", "identifier", "hashtags"),
    [
        ([" ID ", "Tags"], " ID ", "Tags"),
        (["FileName", "KEYWORDS "], "FileName", "KEYWORDS "),
        (["file_name", "image_id", "labels"], "image_id", "labels"),
        (["image", "url", "tags"], "url", "tags"),
        (["Id", "id", "HashTags"], "id", "HashTags"),
    ],
)
def test_the_usual_names_are_found_in_any_case(
    names: list[str], identifier: str, hashtags: str
) -> None:
    columns = find_columns(names, Columns(), "x")
    assert (columns.id, columns.hashtags) == (identifier, hashtags)
    chosen = Columns(hashtags=hashtags.swapcase().strip())
    assert find_columns(names, chosen, "x").hashtags == hashtags
