"""Parquet files that `embed` did not write: one line, also from the command and the example."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.inference import ImageSearch

IMAGE = "examples/scenes/cup.jpg"
METADATA = {
    "width": 2,
    "images": 1,
    "rank": 0,
    "world_size": 1,
    "skipped": [],
    "files_hash": "00",
    "rows_sha256": "00",
    "model": "vit_nano_hashtags",
}
FLOATS = pa.list_(pa.float32(), 2)


def write_table(path: Path, columns: dict[str, Any], metadata: Any = METADATA) -> Path:
    table = pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"swag_models": json.dumps(metadata)})
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("columns", "metadata", "reason"),
    [
        ({"synset": ["n1"], "hashtags": [["a"]]}, None, r"its columns are synset \(string\), hash"),
        ({}, None, "its columns are none, not name"),
        ({"name": ["a"]}, METADATA, r"its columns are name \(string\), not name"),
        ({"name": [1], "embedding": pa.array([[1, 2]], FLOATS)}, METADATA, r"name \(int64\)"),
        ({"name": ["a"], "embedding": ["b"]}, METADATA, r"embedding \(string\), not"),
        ({"name": ["a"], "embedding": [None]}, METADATA, r"embedding \(null\), not"),
        ({"name": ["a"], "embedding": [{"x": 1}]}, METADATA, r"embedding \(struct"),
        ({"name": ["a"], "embedding": pa.array([[1, 2]], FLOATS)}, None, "does not say how its"),
        (
            {"name": ["a"], "embedding": pa.array([[1, 2]], FLOATS)},
            {"width": 2},
            "does not say how its rows were computed",
        ),
    ],
)
def test_other_columns_are_named(
    columns: dict[str, Any], metadata: Any, reason: str, tmp_path: Path, capsys: Any
) -> None:
    path = write_table(tmp_path / "x.parquet", columns, metadata)
    message = f"x.parquet was not written by swag-models embed: .*{reason}"
    with pytest.raises(ConfigError, match=message):
        ImageSearch(path)
    for command in (["nearest", str(path), IMAGE], ["merge", str(path), "-o", f"{path}.npy"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "was not written by swag-models embed" in line


@pytest.mark.slow
def test_the_example_prints_one_line(tmp_path: Path) -> None:
    path = write_table(tmp_path / "vocabulary.parquet", {"synset": ["n1"]})
    command = [sys.executable, "examples/nearest.py", path, IMAGE]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = process.stderr.splitlines()
    assert (process.returncode, process.stdout) == (1, "")
    assert line.startswith(f"error: {path} was not written by swag-models embed: its columns are")
