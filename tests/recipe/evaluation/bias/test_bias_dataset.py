"""Tables of each format give the same images and groups; invalid tables are rejected."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from image_support import write_images

from swag_models.errors import ConfigError, ImageError
from swag_models.recipe.evaluation.bias.dataset import open_grouped_images

ROWS = [
    {"file": "images/0000.png", "country": "nl", "year": 2020},
    {"file": "images/0001.png", "country": "ke", "year": 2021},
    {"file": None, "country": "ke", "year": 2021},
    {"file": "images/0002.png", "country": None, "year": 2020},
    {"file": "gone.png", "country": "nl", "year": 2021},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 3, height=8, width=8)
    table = pd.DataFrame(ROWS)
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_json(tmp_path / "table.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "table.parquet")
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_table_lists_images_and_groups(suffix: str, folder: Path) -> None:
    images = open_grouped_images(folder / f"table.{suffix}", "country", "file")
    assert images.class_names == ("ke", "nl")
    assert [(images.name(row), images.labels[row]) for row in range(len(images))] == [
        ("images/0000.png", (1,)),
        ("images/0001.png", (0,)),
        ("gone.png", (1,)),
    ]
    assert (images.without_group, images.without_path) == (1, 1)
    assert images.sha256 == open_grouped_images(folder / "table.csv", "country", "file").sha256
    assert images.read(0).size == (8, 8)
    with pytest.raises(ImageError, match=r"gone\.png"):
        images.read(2)
    assert open_grouped_images(folder / f"table.{suffix}", "year", "file").class_names == (
        "2020",
        "2021",
    )


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_missing_column_is_named(suffix: str, folder: Path) -> None:
    table = folder / f"table.{suffix}"
    with pytest.raises(
        ConfigError,
        match="has no column 'land'; its columns: file, country, year; name one of them as group",
    ):
        open_grouped_images(table, "land", "file")
    with pytest.raises(
        ConfigError,
        match="has no column 'path'; its columns: file, country, year; name one of them as path",
    ):
        open_grouped_images(table, "country")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.txt", b"", r"invalid table .*x\.txt: allowed: \.csv \.tsv"),
        ("x.jsonl", b'{"path": "a", "group": "b"}\n{"pa', r"x\.jsonl cannot be read: "),
        ("x.jsonl", b"[1]\n", r"element 1 of .*x\.jsonl is not a JSON object"),
        (
            "x.jsonl",
            b'{"path": "a", "group": ["b"]}\n',
            r"invalid group \['b'\] in row 1 of .*: allowed: text",
        ),
        ("x.csv", b"path,group\na,\xff\n", r"x\.csv cannot be read: "),
        ("x.csv", b"", r"has no column 'group'; its columns: none"),
        ("x.parquet", b"nothing", r"x\.parquet cannot be read: "),
    ],
)
def test_unreadable_table_is_rejected(
    name: str, content: bytes, problem: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=problem):
        open_grouped_images(tmp_path / name, "group")


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.csv cannot be read: No such file"):
        open_grouped_images(tmp_path / "gone.csv", "group")
