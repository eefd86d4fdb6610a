"""Images of img2dataset, which are named by their place in a shard, find their labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_support import write_tar
from shards_support import encode_jpeg, pack_images
from test_pack import read_all

from swag_models.cli import main
from swag_models.errors import ConfigError

LABELS: dict[str, Any] = {f"90{number}": ([number], 1.0) for number in range(4)}
Rows = list[dict[str, Any]]


def make_rows(*names: str, count: int = 4) -> Rows:
    """Records of downloads: image n is that of label 90n."""
    values = {"id": "90{}", "url": "http://a.test/{}.jpg", "photo": "90{}", "other": "x{}"}
    return [
        {name: values[name].format(number) for name in names} | {"key": f"{number:09}"}
        for number in range(count)
    ]


def write_images(folder: Path, rows: Rows, layout: str) -> Path:
    """Write images and records as img2dataset does: `tar`, `files`, or either with `table`."""
    kind, _, record = layout.partition("+")
    members = {}
    for number, row in enumerate(rows):
        members[f"{row['key']}.jpg"] = encode_jpeg(number)
        if not record:
            members[f"{row['key']}.json"] = json.dumps(row).encode()
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    if kind == "tar":
        write_tar(folder / "00000.tar", members)
    else:
        (folder / "00000").mkdir()
        for name, content in members.items():
            (folder / "00000" / name).write_bytes(content)
    return folder


def write_urls(folder: Path, count: int = 4) -> None:
    rows = [{"id": f"90{number}", "url": f"http://a.test/{number}.jpg"} for number in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "urls.parquet")


def check_packed(folder: Path, count: int = 4) -> None:
    images = {name: image for name, (_, _, image) in read_all(folder / "shards").items()}
    assert images == {f"90{number}": encode_jpeg(number) for number in range(count)}


@pytest.mark.parametrize("layout", ["tar", "files", "tar+table", "files+table"])
@pytest.mark.parametrize(
    ("fields", "kind"), [(("id", "url"), "id"), (("url",), "url"), (("url", "other"), "url")]
)
def test_labels_are_found_by_id_otherwise_by_url(
    layout: str, fields: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    write_urls(tmp_path)
    images = write_images(tmp_path / "images", make_rows(*fields), layout)
    manifest = pack_images(tmp_path, [images], LABELS)
    assert (manifest["joined"], manifest["unlabelled"]) == ({kind: 4}, 0)
    check_packed(tmp_path)


@pytest.mark.parametrize(
    ("fields", "key_column"),
    [(("other", "photo"), "photo"), (("id", "url"), "url"), (("url", "id"), "id")],
)
def test_the_field_of_the_ids_can_be_named(
    fields: tuple[str, ...], key_column: str, tmp_path: Path
) -> None:
    write_urls(tmp_path)
    rows = make_rows(*fields)
    if key_column == "url":  # ids of something else, which match the wrong labels
        rows = [{**row, "id": f"90{3 - number}"} for number, row in enumerate(rows)]
    images = write_images(tmp_path / "images", rows, "tar")
    manifest = pack_images(tmp_path, [images], LABELS, key_column=key_column)
    assert manifest["joined"] == {key_column: 4}
    check_packed(tmp_path)
    assert pack_images(tmp_path, [images], LABELS, key_column=key_column) == manifest
    with pytest.raises(ConfigError, match="is not empty"):
        pack_images(tmp_path, [images], LABELS, key_column="key")


def test_a_key_is_never_taken_for_the_id_of_another_image(tmp_path: Path) -> None:
    """Keys have nine digits, as photo ids of Flickr may have."""
    labels = {"000000000": ([0], 1.0), "000000001": ([1], 1.0)}
    urls = {"id": list(labels), "url": ["http://a.test/1.jpg", "http://a.test/0.jpg"]}
    pq.write_table(pa.table(urls), tmp_path / "urls.parquet")
    images = write_images(tmp_path / "images", make_rows("url", count=3), "tar")
    manifest = pack_images(tmp_path, [images], labels)
    assert (manifest["joined"], manifest["unlabelled"]) == ({"url": 2}, 1)
    found = {name: image for name, (_, _, image) in read_all(tmp_path / "shards").items()}
    assert found == {"000000000": encode_jpeg(1), "000000001": encode_jpeg(0)}


def test_without_urls_the_keys_are_the_ids(tmp_path: Path) -> None:
    labels = {"000000000": ([0], 1.0), "000000001": ([1], 1.0), "000000007": ([1], 1.0)}
    images = write_images(tmp_path / "images", make_rows("url", count=3), "tar")
    manifest = pack_images(tmp_path, [images], labels)
    assert (manifest["joined"], manifest["unlabelled"]) == ({"key": 2}, 1)
    assert manifest["rejects"] == {"no image": 1}


@pytest.mark.parametrize("value", [900, 900.0, "900"])
def test_ids_may_be_numbers(value: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", [{"id": value, "key": "000000000"}], "tar")
    assert pack_images(tmp_path, [images], LABELS)["joined"] == {"id": 1}


@pytest.mark.parametrize("value", [None, True, [900], 900.5])
def test_what_is_no_id_is_passed_over(value: Any, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", [{"id": value, "key": "900"}], "tar")
    assert pack_images(tmp_path, [images], LABELS)["joined"] == {"key": 1}


def test_json_files_beside_loose_images_need_not_belong_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, content in enumerate([b"{", b"[1]", b"\xff"]):
        (images / f"90{number}.jpg").write_bytes(encode_jpeg(number))
        (images / f"90{number}.json").write_bytes(content)
    assert pack_images(tmp_path, [images], LABELS)["joined"] == {"file name": 3}
    assert "2 unreadable .json beside an image" in caplog.text


def test_mistakes_are_named(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", make_rows("url", "other"), "tar")
    cases = {
        None: r"ids of images: '000000000' \(key\); of labels: '900': use the same .*key_column=",
        "other": r"ids of images: 'x0' \(other\); of labels: '900'",
        "url": r"urls\.parquet does not exist; give the labels beside it",
        "photo": r"none of 4 images has 'photo' in the \.json or \.parquet file beside it; give",
        "__key__": r"ids of images: '000000000' \(file name\)",
    }
    for key_column, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            pack_images(tmp_path, [images], LABELS, key_column=key_column)
        assert not (tmp_path / "shards.work").exists()
    pq.write_table(pa.table({"id": ["900"], "url": ["http://b.test/"]}), tmp_path / "urls.parquet")
    with pytest.raises(ConfigError, match=r"ids of images: 'http://a\.test/0\.jpg' \(url\)"):
        pack_images(tmp_path, [images], LABELS, key_column="url")


def test_the_command_says_how_labels_were_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_urls(tmp_path)
    images = write_images(tmp_path / "images", make_rows("url", count=3), "tar")
    pack_images(tmp_path, [images], LABELS)
    arguments = ["--labels", str(tmp_path / "labels.parquet"), "--images", str(images)]
    assert main(["recipe", "pack", *arguments, "-o", str(tmp_path / "shards"), "--quiet"]) == 0
    errors = capsys.readouterr().err
    assert "labels found: 3 by url" in errors
    assert "1 rejected: no image" in errors
    assert "0 images without a label" in errors
