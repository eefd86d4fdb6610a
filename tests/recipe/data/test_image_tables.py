"""Tables of images: every format is read alike, and a missing column is named in the same words."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards_support import make_images, write_labels

from swag_models.cli import main
from swag_models.errors import ConfigError
from swag_models.recipe.data.image_index import find_locations

NAMES = (
    *("t.csv", "t.semicolon.csv", "t.tsv", "t.tab", "t.csv.gz", "t.jsonl", "t.jsonl.bz2"),
    *("t.array.ndjson", "t.parquet"),
)


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    content = "\n".join(map(json.dumps, rows))
    if "array" in path.name:
        content = json.dumps(rows, indent=1)
    elif "jsonl" not in path.name:
        plain = path.with_suffix(".plain")
        with plain.open("w", newline="") as file:
            delimiter = {"t.csv": ",", "t.csv.gz": ",", "t.semicolon.csv": ";"}
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter.get(path.name, "\t"))
            writer.writeheader()
            writer.writerows(rows)
        content = plain.read_text()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(content.encode()))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_images(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_images(tmp_path, ["007"])
    (tmp_path / "a, b.jpg").write_bytes((tmp_path / "007.jpg").read_bytes())
    rows = [
        {"id": "007", "path": "007.jpg", "tags (a;b;c)": "x"},
        {"id": "8", "path": "a, b.jpg", "tags (a;b;c)": None},
        {"id": "9", "path": None, "tags (a;b;c)": None},
        {"id": None, "path": "007.jpg", "tags (a;b;c)": None},
    ]
    table = write_table(tmp_path / name, rows)
    found = [(image.id, image.name, image.size > 0) for image in find_locations([table])]
    assert found == [
        ("007", f"{tmp_path}/007.jpg", True),
        ("8", f"{tmp_path}/a, b.jpg", True),
    ]
    assert "2 row without id or path" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_column_is_named_in_the_same_words(name: str, tmp_path: Path) -> None:
    make_images(tmp_path, ["7"])
    table = write_table(tmp_path / name, [{"id": 7, "file": "7.jpg"}])
    end = "its columns: id, file; name one with"
    with pytest.raises(ConfigError, match=f"{name} has no column 'path'; {end} path_column="):
        list(find_locations([table]))
    with pytest.raises(ConfigError, match=f"{name} has no column 'photo'; {end} key_column="):
        list(find_locations([table], "photo", "file"))
    (image,) = find_locations([table], path_column="file")
    assert (image.id, image.name) == ("7", f"{tmp_path}/7.jpg")
    (image,) = find_locations([table], "__key__", "file")
    assert (image.id, image.kind) == ("7", "file name")


def test_the_command_takes_the_name_of_the_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path, ["7"])
    table = write_table(tmp_path / "t.jsonl", [{"photo": 7, "file": "7.jpg"}])
    labels = write_labels(tmp_path / "labels.parquet", {"7": ((0,), 1.0)})
    command = ["recipe", "pack", "--labels", str(labels), "--images", str(table), "--quiet"]
    command += ["-o", str(tmp_path / "shards"), "--processes", "1"]
    assert main([*command, "--key-column", "photo"]) == 2
    assert "no column 'path'; its columns: photo, file; name one with --path-column" in (
        capsys.readouterr().err
    )
    command += ["--key-column", "photo", "--path-column", "file"]
    for _ in range(2):  # a rerun does nothing
        assert main(command) == 0
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert (manifest["count"], manifest["parameters"]["path_column"]) == (1, "file")
    assert main([*command[:-1], "photo"]) == 2  # other work
