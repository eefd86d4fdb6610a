"""Packing writes every labelled image once, in an order that depends only on the seed."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from image_support import encode_image, write_images, write_tar
from PIL import Image
from shards_support import (
    COUNT,
    Label,
    encode_jpeg,
    make_images,
    make_labels,
    make_shards,
    pack_images,
    read_bytes,
    write_labels,
)

from swag_models.cli import main
from swag_models.errors import ConfigError, OutputError
from swag_models.recipe.data.pack import pack
from swag_models.recipe.data.shards import read_shard


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), COUNT, 16)


def read_all(folder: Path) -> dict[str, tuple[list[int], float, bytes]]:
    """Read the classes, repeat factor and image of every sample in a folder of shards, by id."""
    samples: dict[str, tuple[list[int], float, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        for sample in read_shard(str(path)):
            record = json.loads(sample["json"])
            assert record["id"] not in samples
            samples[record["id"]] = (
                record["classes"],
                record["repeat"],
                sample.get("jpg") or sample["png"],
            )
    return samples


def count_samples(labels: Iterable[Label]) -> list[float]:
    """The samples of an epoch that have each class."""
    counts = [0.0] * 10
    for classes, repeat in labels:
        for number in classes:
            counts[number] += repeat
    while not counts[-1]:
        counts.pop()
    return counts


def read_rejects(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def test_every_image_is_packed_once_with_its_label(packed: Path) -> None:
    expected = {
        name: (classes, repeat, encode_jpeg(int(name)))
        for name, (classes, repeat) in make_labels(COUNT).items()
    }
    assert read_all(packed) == expected
    manifest = json.loads((packed / "manifest.json").read_text())
    assert [shard["count"] for shard in manifest["shards"]] == [15, 15, 15, 15], (
        "equal shards, none with more than 16 samples"
    )
    assert manifest["count"] == COUNT
    assert manifest["samples"] == sum(repeat for _, repeat in make_labels(COUNT).values())
    assert manifest["num_classes"] == 1 + max(
        max(classes) for classes, _ in make_labels(COUNT).values()
    )
    assert manifest["class_samples"] == count_samples(make_labels(COUNT).values())
    assert manifest["bytes"] == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert manifest["rejects"] == {}
    assert not packed.with_name("shards.work").exists()


def test_members_have_no_owner_and_no_time(packed: Path) -> None:
    with tarfile.open(packed / "shard-000000.tar") as archive:
        members = archive.getmembers()
    assert {
        (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
        for member in members
    } == {(0, 0, 0, "", "", 0o644)}
    assert [member.name.partition(".")[2] for member in members[:4]] == ["jpg", "json"] * 2


def test_the_order_of_input_and_the_number_of_processes_do_not_matter(
    packed: Path, tmp_path: Path
) -> None:
    names = list(make_labels(COUNT))
    first, second = make_images(tmp_path / "a", names[40:]), make_images(tmp_path / "b", names[:40])
    pack_images(tmp_path, [first, second], shard_size=16, processes=2)
    assert read_bytes(tmp_path / "shards") == read_bytes(packed)


def test_the_seed_decides_the_order_of_the_samples(packed: Path, tmp_path: Path) -> None:
    pack_images(tmp_path, [packed.with_name("images")], shard_size=16, seed=1)
    orders = []
    for folder in (packed, tmp_path / "shards"):
        orders.append(list(read_all(folder)))
        assert orders[-1] != sorted(orders[-1])
    assert orders[0] != orders[1]
    assert read_all(packed) == read_all(tmp_path / "shards")


def test_max_bytes_limits_the_size_of_shards(packed: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in packed.with_name("images").iterdir())
    manifest = pack_images(tmp_path, packed.with_name("images"), max_bytes=size // 6 + 1)
    assert [shard["count"] for shard in manifest["shards"]] == [10] * 6


def test_images_that_cannot_be_packed_are_listed_with_the_reason(tmp_path: Path) -> None:
    labels = make_labels(8)
    images = make_images(tmp_path / "images", [*labels, "9998", "9999"])
    (images / "0001.jpg").unlink()
    (images / "0002.jpg").write_bytes(encode_jpeg(2)[:-30])
    (images / "0003.jpg").write_bytes(b"<html>not found</html>")
    (images / "deep").mkdir()
    (images / "deep" / "0004.png").write_bytes(encode_image(4))
    manifest = pack_images(tmp_path, [images], labels)
    assert manifest["rejects"] == {"another image has its id": 1, "no image": 1, "unreadable": 2}
    assert (manifest["count"], manifest["unlabelled"]) == (5, 2)
    kept = [labels[name] for name in ("0000", "0004", "0005", "0006", "0007")]
    assert manifest["samples"] == sum(repeat for _, repeat in kept)
    samples = count_samples(kept)
    missing = manifest["num_classes"] - len(samples)
    assert manifest["class_samples"] == samples + [0.0] * missing
    rejects = {row["id"]: row for row in read_rejects(tmp_path / "shards")}
    assert rejects["0001"] == {"id": "0001", "reason": "no image"}
    assert rejects["0004"]["path"] == str(images / "deep" / "0004.png")
    assert re.search(r"0002\.jpg cannot be read: image file is truncated", rejects["0002"]["error"])
    assert re.search(r"0003\.jpg is not an image that Pillow can read", rejects["0003"]["error"])
    assert set(read_all(tmp_path / "shards")) == {"0000", "0004", "0005", "0006", "0007"}


@pytest.mark.parametrize("source", ["images", "images/00000.tar"])
def test_images_in_tar_shards_have_the_ids_of_their_json(source: str, tmp_path: Path) -> None:
    members = {
        "00000/000.jpg": encode_jpeg(0),
        "00000/000.json": json.dumps({"id": "0000", "key": "000"}).encode(),
        "0001.jpg": encode_jpeg(1),
        "x.json": b'{"key": "0002"}',
        "x.txt": b"a caption",
        "x.jpg": encode_jpeg(2),
    }
    (tmp_path / "images").mkdir()
    write_tar(tmp_path / "images" / "00000.tar", members)
    manifest = pack_images(tmp_path, [tmp_path / source], make_labels(4))
    assert manifest["rejects"] == {"no image": 1}
    images = {name: image for name, (_, _, image) in read_all(tmp_path / "shards").items()}
    assert images == {f"000{number}": encode_jpeg(number) for number in range(3)}


def test_packed_shards_can_be_packed_again(packed: Path, tmp_path: Path) -> None:
    pack_images(tmp_path, [packed], shard_size=16)
    again, before = read_bytes(tmp_path / "shards"), read_bytes(packed)
    manifests = [json.loads(files.pop("manifest.json")) for files in (again, before)]
    assert [manifest.pop("joined") for manifest in manifests] == [
        {"id": COUNT},  # of the .json in the shards
        {"file name": COUNT},
    ]
    assert again == before
    assert manifests[0] == manifests[1]


TABLES = {
    "posts.jsonl": lambda rows: "".join(
        json.dumps({"id": a, "path": b, "hashtags": ["x"]}) + "\n" for a, b in rows
    ),
    "posts.csv": lambda rows: (
        "url,path,id\n" + "".join(f"https://x.test/,{b or ''},{a}\n" for a, b in rows)
    ),
}


@pytest.mark.parametrize("name", [*TABLES, "posts.parquet"])
def test_tables_list_the_paths_of_images(name: str, tmp_path: Path) -> None:
    tmp_path = tmp_path / "it's [1] here*"  # special characters of SQL and of patterns
    tmp_path.mkdir()
    make_images(tmp_path / "it's here", ["0000", "0001", "0003"])
    rows = [
        ("0001", "it's here/0000.jpg"),
        ("0000", "it's here/0001.jpg"),
        ("0002", None),
        ("0003", "gone.jpg"),
    ]
    if name in TABLES:
        (tmp_path / name).write_text(TABLES[name](rows))
    else:
        pq.write_table(
            pa.table({"id": [a for a, _ in rows], "path": [b for _, b in rows]}), tmp_path / name
        )
    pack_images(tmp_path, [tmp_path / name], make_labels(4))
    samples = read_all(tmp_path / "shards")
    assert {name: image for name, (_, _, image) in samples.items()} == {
        "0000": encode_jpeg(1),
        "0001": encode_jpeg(0),
    }
    assert [(row["id"], row["reason"]) for row in read_rejects(tmp_path / "shards")] == [
        ("0002", "no image"),
        ("0003", "unreadable"),
    ]


def test_large_images_are_resized(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3, height=40, width=60)
    pack_images(tmp_path, [tmp_path / "images"], make_labels(3), image_short_side=20)
    assert {
        Image.open(io.BytesIO(image)).size for _, _, image in read_all(tmp_path / "shards").values()
    } == {(30, 20)}


def test_a_finished_folder_is_not_packed_again(tmp_path: Path) -> None:
    images, shards = make_images(tmp_path / "images", list(make_labels(3))), tmp_path / "shards"
    manifest = pack_images(tmp_path, images, make_labels(3))
    times = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert pack_images(tmp_path, images, make_labels(3)) == manifest
    for labels, seed in ((3, 1), (2, 0)):
        with pytest.raises(ConfigError, match=r"shards is not empty; delete it"):
            pack_images(tmp_path, images, make_labels(labels), seed=seed)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == times


def test_other_work_is_neither_resumed_nor_overwritten(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shards is not empty; delete it"):
        pack(packed.with_name("labels.parquet"), [packed.with_name("images")], packed)
    work = tmp_path / "shards.work"
    work.mkdir()
    (work / "job.json").write_text("{}")
    with pytest.raises(
        ConfigError,
        match=r"shards holds other work, with images None, not \[.*; delete .*shards\.work",
    ):
        pack_images(tmp_path, [packed.with_name("images")])


def test_labels_can_be_a_folder_of_files_as_spark_writes_them(packed: Path, tmp_path: Path) -> None:
    labels = pq.read_table(packed.with_name("labels.parquet"))
    (tmp_path / "labels").mkdir()
    for number in range(2):
        pq.write_table(
            labels.slice(number * 10, 10 if number == 0 else None),
            tmp_path / "labels" / f"part-{number}.parquet",
        )
    pack(
        tmp_path / "labels",
        [packed.with_name("images")],
        tmp_path / "shards",
        shard_size=16,
        progress=False,
    )
    for shard in packed.glob("*.tar"):
        assert (tmp_path / "shards" / shard.name).read_bytes() == shard.read_bytes()


def test_two_processes_cannot_write_the_same_shards(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "shards.work").mkdir()
    with (
        FileLock(tmp_path / "shards.work" / ".lock"),
        pytest.raises(ConfigError, match="another process is writing"),
    ):
        pack_images(tmp_path, [packed.with_name("images")])


def test_invalid_input_is_rejected_in_one_line(packed: Path, tmp_path: Path) -> None:
    images, labels = packed.with_name("images"), packed.with_name("labels.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "posts.csv").write_text("id,url\n1,2\n")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "bare.parquet")
    twice = pa.table({"id": ["a", "a"], "classes": [[0], [0]], "repeat": [1.0, 1.0]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    pq.write_table(twice.slice(1).set_column(2, "repeat", [[-1.0]]), tmp_path / "negative.parquet")
    unlabelled = (
        write_images(tmp_path / "others", 1)[0].rename(tmp_path / "others" / "x.png").parent
    )
    (tmp_path / "cut.tar").write_bytes((packed / "shard-000000.tar").read_bytes()[:5000])
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("invalid shard_size 0: allowed: 1 or more", labels, [images], {"shard_size": 0}),
        (
            "invalid image_short_side -1: allowed: 1 or more",
            labels,
            [images],
            {"image_short_side": -1},
        ),
        ("invalid processes 0: allowed: 1 or more", labels, [images], {"processes": 0}),
        ("gone.parquet cannot be read: No such file", tmp_path / "gone.parquet", [images], {}),
        (
            "text.parquet is not a table with columns id, classes and repeat: ",
            tmp_path / "text.parquet",
            [images],
            {},
        ),
        (
            "bare.parquet has no column 'classes'; its columns: id; give labels.parquet, as",
            tmp_path / "bare.parquet",
            [images],
            {},
        ),
        (
            "twice.parquet id 'a' is missing, repeated or invalid",
            tmp_path / "twice.parquet",
            [images],
            {},
        ),
        (
            "negative.parquet id 'a' is missing, repeated or invalid",
            tmp_path / "negative.parquet",
            [images],
            {},
        ),
        ("no image has a label in ", labels, [unlabelled], {}),
        ("no images in ", labels, [unlabelled / "x.png"], {}),
        ("nodir does not exist; give folders", labels, [tmp_path / "nodir"], {}),
        ("emptydir has no images; give folders", labels, [tmp_path / "emptydir"], {}),
        ("is a folder; give ", tmp_path / "curated", [images], {}),
        ("curated was written by curate; pack it first", labels, [tmp_path / "curated"], {}),
        (
            "posts.csv has no column 'path'; its columns: id, url; name one with path_column=",
            labels,
            [tmp_path / "posts.csv"],
            {},
        ),
        ("cut.tar cannot be read as an uncompressed tar file", labels, [tmp_path / "cut.tar"], {}),
    ]
    (tmp_path / "emptydir").mkdir()
    (tmp_path / "curated").mkdir()
    shutil.copy(tmp_path / "bare.parquet", tmp_path / "curated" / "labels.parquet")
    (tmp_path / "curated" / "manifest.json").write_text(
        '{"posts": {}, "hashtags": {}, "labels": {}}'
    )
    for number, (message, rows, sources, options) in enumerate(cases):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            pack(rows, sources, tmp_path / f"shards {number}", progress=False, **options)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob(f"shards {number}*")), "no file or folder is left behind"


def test_a_missing_extra_is_named(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)  # as if it were not installed
    with pytest.raises(
        ConfigError,
        match=re.escape(
            "the recipe needs duckdb; install it with: pip install 'swag-models[recipe]'"
        ),
    ):
        pack_images(tmp_path, [packed.with_name("images")])


def test_an_output_that_cannot_be_written_is_an_error_in_one_line(packed: Path) -> None:
    with pytest.raises(
        OutputError, match="/proc/shards cannot be written: No such file or directory"
    ):
        pack(packed.with_name("labels.parquet"), [packed.with_name("images")], "/proc/shards")


def test_the_command_packs_and_verifies(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, images, output = (
        str(path)
        for path in (packed.with_name("labels.parquet"), packed.with_name("images"), tmp_path / "x")
    )
    options = [
        "--labels",
        labels,
        "--images",
        images,
        "-o",
        output,
        "--shard-size",
        "16",
        "--processes",
        "1",
    ]
    assert main(["recipe", "pack", *options]) == 0
    out, err = capsys.readouterr()
    assert out == f"{output}\n"
    assert "60 images in 4 shards; 0 images without a label" in err
    assert read_bytes(tmp_path / "x") == read_bytes(packed)
    assert main(["recipe", "shards", "verify", output]) == 0
    assert capsys.readouterr() == ("ok\n", "")
    shard = tmp_path / "x" / "shard-000002.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    assert main(["recipe", "shards", "verify", output]) == 1
    assert re.fullmatch(
        r"shard-000002\.tar was changed: its SHA-256 is \w{64} instead of \w{64}\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize("names", [("id", "id"), ("ID", "id"), ("classes", "Classes")])
def test_tables_with_two_columns_of_one_name_are_refused(
    names: tuple[str, str], tmp_path: Path
) -> None:
    """DuckDB would read the first of them."""
    labels = write_labels(tmp_path / "labels.parquet", {"0001": ((1,), 1.0)})
    table = pq.read_table(labels)
    columns = [table[name.lower()] for name in names] + [table[n] for n in table.schema.names]
    pq.write_table(pa.table(columns, [*names, *table.schema.names]), labels)
    folder = make_images(tmp_path / "images", ["0001"])
    with pytest.raises(ConfigError, match=r"has more than one column '(id|classes)'"):
        pack(labels, folder, tmp_path / "out", processes=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_labels_out_of_range_are_refused(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", ["0001"])
    for label, message in (
        (((-1,), 1.0), "is missing, repeated or invalid"),
        (((10**6,), 1.0), "has class 1000000; allowed: below 1,000,000"),
        (((1,), 1e7), "is missing, repeated or invalid"),
        (((1,), float("nan")), "is missing, repeated or invalid"),
    ):
        labels = write_labels(tmp_path / "labels.parquet", {"0001": label})
        with pytest.raises(ConfigError, match=message):
            pack(labels, folder, tmp_path / "out", processes=1, progress=False)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("classes", [[0.5]], r"column classes of .* is DOUBLE\[\]; give lists of whole numbers"),
        ("classes", [[True]], r"column classes of .* is BOOLEAN\[\]"),
        ("classes", [["1"]], r"column classes of .* is VARCHAR\[\]"),
        ("classes", [1], r"column classes of .* is BIGINT"),
        ("classes", [[[1]]], r"column classes of .* is BIGINT\[\]\[\]"),
        ("repeat", ["1"], r"column repeat of .* is VARCHAR; give numbers"),
        ("repeat", [True], r"column repeat of .* is BOOLEAN"),
        ("id", [b"0001"], r"column id of .* is BLOB; give text or whole numbers"),
        ("id", [1.0], r"column id of .* is DOUBLE"),
    ],
)
def test_labels_of_other_types_are_refused(
    tmp_path: Path, name: str, values: list[Any], message: str
) -> None:
    columns: dict[str, Any] = {"id": ["0001"], "classes": [[0]], "repeat": [1.0], name: values}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    folder = make_images(tmp_path / "images", ["0001"])
    with pytest.raises(ConfigError, match=message):
        pack(tmp_path / "labels.parquet", folder, tmp_path / "out", processes=1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels.parquet"]


@pytest.mark.parametrize(
    "columns",
    [
        {"ID": ["0001"], "Classes": [[0]], "REPEAT": [1.0]},
        {"id": ["0001"], "classes": pa.array([[0]], pa.list_(pa.uint8())), "repeat": [1]},
    ],
)
def test_labels_with_other_names_and_widths_of_columns(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    folder = make_images(tmp_path / "images", ["0001"])
    pack(tmp_path / "labels.parquet", folder, tmp_path / "out", processes=1, progress=False)
    (sample,) = read_shard(str(tmp_path / "out" / "shard-000000.tar"))
    assert json.loads(sample["json"]) == {"id": "0001", "classes": [0], "repeat": 1.0}


def test_ids_that_are_numbers_match_the_same_text_only(tmp_path: Path) -> None:
    columns = {"id": [7, 8], "classes": [[0], [1]], "repeat": [1.0, 1.0]}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    folder = make_images(tmp_path / "images", ["7", "008"])
    path = tmp_path / "labels.parquet"
    manifest = pack(path, folder, tmp_path / "out", processes=1, progress=False)
    assert (manifest["count"], manifest["rejects"]) == (1, {"no image": 1})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("row.csv", b"id,path\n1," + b"x" * 10**6, "field larger than field limit"),
        ("latin.csv", b"id,path\n\xe9,x\n", "latin.csv cannot be read: .* can't decode byte 0xe9"),
        (
            "utf16.csv",
            "id,path\n1,x\n".encode("utf-16"),
            "utf16.csv cannot be read: .* can't decode",
        ),
        ("bad.jsonl", b'{"id": "1", "path": "x"}\n{\n', "bad.jsonl cannot be read: Expecting"),
        (
            "cut.csv.gz",
            gzip.compress(b"id,path\n" * 9, mtime=0)[:-9],
            "cut.csv.gz cannot be read: ",
        ),
        ("rows.ndjson", b"[[1]]", "element 1 of .* is not a JSON object"),
    ],
)
def test_damaged_tables_of_images(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    labels = write_labels(tmp_path / "labels.parquet", make_labels(1))
    with pytest.raises(ConfigError, match=message) as caught:
        pack(labels, tmp_path / name, tmp_path / "out", processes=1, progress=False)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


def test_rows_without_id_or_path_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_images(tmp_path, ["0001"])
    labels = write_labels(tmp_path / "labels.parquet", {"0001": ((0,), 1.0)})
    tables = []
    for name, text in {
        "a.csv": "id,path\n0001,0001.jpg\nx,\n,0001.jpg\n",
        "b.jsonl": '{"id": "y"}\n{"path": "z.jpg"}\n{}\n',
    }.items():
        (tmp_path / name).write_text(text)
        tables.append(tmp_path / name)
    manifest = pack(labels, tables, tmp_path / "out", processes=1, progress=False)
    assert manifest["count"] == 1
    assert "5 row without id or path" in caplog.text


def test_an_empty_folder_of_labels_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(ConfigError, match=r"labels has no \.parquet file"):
        pack(tmp_path / "labels", make_images(tmp_path / "images", ["1"]), tmp_path / "out")


@pytest.mark.parametrize("name", ["processes", "shard_size", "max_bytes"])
def test_packing_with_numbers_that_are_too_large(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is 1000000000000000000; allowed: \d+ or less"):
        pack(tmp_path, tmp_path, tmp_path / "out", **{name: 10**18})


def test_ids_that_are_not_unicode_are_escaped(tmp_path: Path) -> None:
    """As those of files: JSON and names in a tar file can have surrogates."""
    members = {
        "a.jpg": encode_jpeg(1),
        "a.json": b'{"id": "\\ud800"}',
        "b.jpg": encode_jpeg(2),
        "b.json": b'{"key": "x\\udcff"}',
        "c\udcff.jpg": encode_jpeg(3),
        "0001.jpg": encode_jpeg(4),
    }
    shard = write_tar(tmp_path / "x.tar", members)
    labels = write_labels(tmp_path / "labels.parquet", {"0001": ((0,), 1.0)})
    manifest = pack(labels, shard, tmp_path / "out", processes=1, progress=False)
    assert (manifest["count"], manifest["unlabelled"]) == (1, 3)
