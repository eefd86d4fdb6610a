"""Posts are read from every format; malformed rows become rejects, the rows around them posts."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from swag_models.errors import ConfigError
from swag_models.recipe.curation.columns import DEFAULT_COLUMNS, Columns, find_parquet_columns
from swag_models.recipe.curation.post_files import find_files, find_format
from swag_models.recipe.curation.posts import Post, Reject
from swag_models.recipe.curation.readers import MAX_ROW_BYTES, read_posts

GOOD: list[tuple[Any, Post]] = [
    (
        {"id": "a", "url": "http://x", "hashtags": ["bear", "#Bear", " cat "]},
        Post("a", "http://x", ["bear", "Bear", "cat"], None),
    ),
    ({"id": 12345, "hashtags": []}, Post("12345", None, [], None)),
    ({"id": 12345.0, "hashtags": ["", "#"]}, Post("12345", None, [], None)),
    ({"id": 10**30, "tags": None}, Post("1" + "0" * 30, None, [], None)),
    ({"id": "a", "hashtags": "bear brown_bear"}, Post("a", None, ["bear", "brown_bear"], None)),
    ({"id": "a", "hashtags": "bear, brown bear"}, Post("a", None, ["bear", "brown bear"], None)),
    ({"id": "a", "hashtags": "#bear#cat, #dog"}, Post("a", None, ["bear", "cat", "dog"], None)),
    (
        {"id": "a", "hashtags": '["bear", "brown bear"]'},
        Post("a", None, ["bear", "brown bear"], None),
    ),
    (
        {"key": "000", "url": None, "caption": "see #\u718a &#39;", "sha256": "ff"},
        Post("000", None, ["\u718a"], "ff"),
    ),
    ({"photo_id": 7, "text": None}, Post("7", None, [], None)),
    ({"id": "a", "hashtags": ["x"], "caption": "#y"}, Post("a", None, ["x"], None)),
    ({"id": "a", "hashtags": None, "caption": "#y"}, Post("a", None, ["y"], None)),
    ({"id": "a", "caption": "\U0001f43b\u0000 #bear"}, Post("a", None, ["bear"], None)),
]
BAD: list[tuple[bytes, str]] = [
    (b"{", "not JSON"),
    (b'{"id": "a", "hashtags": ["x"]} x', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"id": ' + b"1" * 5000 + b', "hashtags": []}', "not JSON"),
    (b'["id", "a"]', "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b'{"hashtags": ["x"]}', "no id"),
    (b'{"id": null, "hashtags": ["x"]}', "no id"),
    (b'{"id": "", "hashtags": ["x"]}', "no id"),
    (b'{"id": true, "hashtags": ["x"]}', "id is not text or a whole number"),
    (b'{"id": 1.5, "hashtags": ["x"]}', "id is not text or a whole number"),
    (b'{"id": NaN, "hashtags": ["x"]}', "no id"),
    (b'{"id": Infinity, "hashtags": ["x"]}', "id is not text or a whole number"),
    (b'{"id": ["a"], "hashtags": ["x"]}', "id is not text or a whole number"),
    (b'{"id": "a"}', "no hashtags and no caption"),
    (b'{"id": "a", "hashtags": 5}', "hashtags are not a list of text"),
    (b'{"id": "a", "hashtags": {"x": 1}}', "hashtags are not a list of text"),
    (b'{"id": "a", "hashtags": ["x", 5]}', "hashtags are not a list of text"),
    (b'{"id": "a", "hashtags": "[\'x\', 1]"}', "hashtags are not a list of text"),
    (b'{"id": "a", "caption": 5}', "caption is not text"),
    (b'{"id": "a", "url": 5, "hashtags": []}', "url is not text"),
    (b'{"id": "a", "hash": 1.5, "hashtags": []}', "hash is not text"),
    (b'{"id": "a", "hashtags": ["caf\xe9"]}', "bad UTF-8"),
    (b'{"id": "\\ud83d", "hashtags": ["x"]}', "bad UTF-8"),
    (b'{"id": "a", "hashtags": ["' + b"x" * MAX_ROW_BYTES + b'"]}', "row too large"),
]
BY = "Attribution License"
TAIL = ["", "1", "2", "s", "so", "jpg"]  # of a row of YFCC100M, before the marker


def make_row(
    identifier: str,
    tags: str,
    marker: str = "0",
    number: str | None = None,
    digest: str | None = None,
) -> str:
    """A row of YFCC100M: 23 columns, or more with line number and hash."""
    start = [field for field in (number, identifier, digest) if field is not None]
    photo = [
        "39019111@N00",
        "guck%20xzs",
        "2012-02-16 09:56:37.0",
        "1331840483",
        "Canon+PowerShot",
        "IMG+0520",
        "My+%26+yours",
    ]
    links = [
        tags,
        "geo:lat=1",
        "-81.8",
        "24.5",
        "12",
        "http://www.flickr.com/photos/1/2/",
        f"http://farm8/{identifier}.jpg",
    ]
    return "\t".join([*start, *photo, *links, "Attribution+License", *TAIL, marker])


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def split(
    path: Path, columns: Columns = DEFAULT_COLUMNS, **options: Any
) -> tuple[list[Post], list[Reject]]:
    rows = list(read_posts(path, columns, **options))
    return [row for row in rows if isinstance(row, Post)], [
        row for row in rows if isinstance(row, Reject)
    ]


@pytest.mark.parametrize(("row", "post"), GOOD)
def test_a_json_object_is_a_post(row: Any, post: Post, tmp_path: Path) -> None:
    for ascii_only in (True, False):
        path = write(tmp_path / "posts.jsonl", json.dumps(row, ensure_ascii=ascii_only))
        assert list(read_posts(path)) == [post]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_malformed_line_is_a_reject_between_posts(
    row: bytes, reason: str, tmp_path: Path
) -> None:
    good = b'{"id": "%d", "hashtags": ["bear"]}\n'
    path = write(tmp_path / "posts.jsonl", good % 1 + b"\n" + row + b"\n" + good % 2)
    posts, rejects = split(path)
    assert [post.id for post in posts] == ["1", "2"]
    (reject,) = rejects
    text = row.decode("utf-8", "backslashreplace")[:200]
    assert reject[:4] == (str(path), 3, reason, text)
    json.dumps(reject).encode()


def test_byte_order_marks_and_other_line_endings_are_accepted(tmp_path: Path) -> None:
    text = '\ufeff{"id": 1, "hashtags": ["a"]}\r\n\r\n  \n{"id": 2, "hashtags": ["b"]}'
    assert [post.id for post in split(write(tmp_path / "posts.json", text))[0]] == ["1", "2"]
    text = "\ufeffid,hashtags\r\n1,a b\r\n\r\n2,c"
    assert split(write(tmp_path / "posts.csv", text)) == (
        [Post("1", None, ["a", "b"], None), Post("2", None, ["c"], None)],
        [],
    )


def test_a_csv_file_has_a_header_and_quoted_fields(tmp_path: Path) -> None:
    text = (
        'id,caption,url,other\n1,"a #bear,\nand #cat",http://x,y\n2,,,\n3,x\n,#dog,,\n4,#last,,\n'
    )
    path = write(
        tmp_path / "posts.csv",
        text.encode() + b"5,caf\xe9,,\n6," + b"x" * 200_000 + b",,\n7,#z,,\n",
    )
    posts, rejects = split(path)
    assert posts == [
        Post("1", "http://x", ["bear", "cat"], None),
        *(
            Post(str(number), None, tags, None)
            for number, tags in ((2, []), (4, ["last"]), (7, ["z"]))
        ),
    ]
    assert [reject[1:4] for reject in rejects] == [
        (3, "wrong number of columns", "3,x"),
        (4, "no id", ",#dog,,"),
        (6, "bad UTF-8", "5,caf\\xe9,,"),
        (7, "not CSV", "field larger than field limit (131072)"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id;hashtags\n1;brown bear, mouse\n"),
        ("a.csv", "sep=;\r\nid;hashtags\r\n1;brown bear, mouse\r\n"),
        ("a.csv", '"id"\t"title, or name"\t"tags"\n1\tx\t"brown bear, mouse"\n'),
        ("a.csv", "id|tags|a,b,c,d,e\n1|brown bear, mouse|\n"),
        ("a.csv", 'id,tags\n1,"brown bear, mouse"\n'),
        ("a.tsv", "\ufeffid\ttags\n1\tbrown bear, mouse\n"),
        (
            "a.tsv",
            "\t".join(["id", "tags", *"abcdefghijklmnopqrstu"])
            + "\n1\tbrown bear, mouse"
            + "\t" * 21,
        ),
        ("a.tsv", "id,tags\n1,brown bear;mouse\n"),
        (  # as many columns as YFCC100M, and its last values
            "a.tsv",
            "\t".join(["id", "tags", *"abcdefghijklmnopqrstu"])
            + "\n1\tbrown bear, mouse"
            + "\t1" * 21
            + "\n",
        ),
        ("a.tab", "key\tcaption\thashtags\n1\t#x\tbrown bear|mouse\n"),
    ],
)
def test_the_separator_of_a_table_is_found(name: str, text: str, tmp_path: Path) -> None:
    assert split(write(tmp_path / name, text)) == (
        [Post("1", None, ["brown bear", "mouse"], None)],
        [],
    )


def test_a_tab_table_without_the_columns_names_those_it_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "file\twords\nx\ty\n")
    with pytest.raises(ConfigError, match=r"a\.tsv has no column of hashtags or .*: file, words"):
        split(path)
    with pytest.raises(ConfigError, match=r"a\.tsv is UTF-16; save it as UTF-8"):
        split(write(path, "id\ttags\n".encode("utf-16")))


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        assert split(write(tmp_path / name, "")) == ([], [])


@pytest.mark.parametrize(
    "name", ["yfcc100m_dataset", "yfcc100m_dataset-0.bz2", "photos.tsv", "photos.tsv.gz"]
)
def test_the_table_of_yfcc100m_is_decoded(name: str, tmp_path: Path) -> None:
    rows = [
        make_row("6185218911", "canon,brown+bear,caf%C3%A9,a%2Cb,100%25,%23x"),
        make_row("2", "", number="17"),
        make_row("3", "bear", number="18", digest="d41d8cd98f00b204e9800998ecf8427e"),
        make_row("4", "bear", digest="d41d8cd98f00b204e9800998ecf8427e"),
        make_row("5", "bear", marker="1"),
        make_row("6", "bear%FF"),
        make_row("7", "bear") + "\t\t\t",
        "photoid" + make_row("", "usertags", marker="marker"),
        make_row("", "bear"),
        make_row("8", "bear", digest="3" * 32),
    ]
    text = "\n".join(rows).encode() + b"\n"
    packed = {".bz2": bz2.compress, ".gz": gzip.compress}.get(Path(name).suffix, bytes)(text)
    posts, rejects = split(write(tmp_path / name, packed))
    assert posts == [
        Post(
            "6185218911",
            "http://farm8/6185218911.jpg",
            ["canon", "brown bear", "caf\u00e9", "a,b", "100%", "x"],
            None,
            BY,
        ),
        *(
            Post(name, f"http://farm8/{name}.jpg", tags, digest, BY)
            for name, tags, digest in (
                ("2", [], None),
                ("3", ["bear"], "d41d8cd98f00b204e9800998ecf8427e"),
                ("4", ["bear"], "d41d8cd98f00b204e9800998ecf8427e"),
                ("8", ["bear"], "3" * 32),
            )
        ),
    ]
    assert [(reject.row, reject.reason) for reject in rejects] == [
        (5, "a video"),
        (6, "bad UTF-8"),
        (7, "wrong number of columns"),
        (8, "last column is neither 0 nor 1"),
        (9, "no id"),
    ]


@pytest.mark.parametrize("suffix", [".bz2", ".gz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "foreign"])
def test_rows_before_damage_in_compressed_data_are_read(
    suffix: str, damage: str, tmp_path: Path
) -> None:
    compress = {".bz2": lambda data: bz2.compress(data, 1), ".gz": gzip.compress}[suffix]
    lines = [
        b'{"id": %d, "hashtags": ["bear%d"]}\n' % (number, number * 7919 % 10007)
        for number in range(20_000)
    ]
    packed = bytearray(
        compress(b"".join(lines[:10_000])) + compress(b"".join(lines[10_000:]))
    )  # two streams are one file
    if damage == "cut":
        del packed[len(packed) * 3 // 4 :]
    elif damage == "changed":
        packed[len(packed) * 3 // 4] ^= 0xFF
    else:
        packed[:] = b"not compressed" * 9
    path = write(tmp_path / f"posts.jsonl{suffix}", bytes(packed))
    posts, rejects = split(path)
    sure = (
        0 if damage == "foreign" else 10_000
    )  # checksums come last: of the broken stream, rows may be wrong
    assert [post.id for post in posts[:sure]] == [str(number) for number in range(sure)]
    assert sure <= len(posts) <= 2 * sure
    assert rejects[-1][:3] == (str(path), len(posts) + len(rejects), "unreadable from here on")


def test_all_streams_of_a_compressed_file_are_read(tmp_path: Path) -> None:
    line = b'{"id": 1, "hashtags": []}\n'
    assert len(split(write(tmp_path / "posts.jsonl.bz2", bz2.compress(line * 3) * 2))[0]) == 6


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "a.json"
        archive.addfile(link)
    return path


MEMBERS = {
    "a/000.jpg": b"x" * 5000,
    "a/000.json": b'{"caption": "a #bear", "url": "http://x", "key": "000", "sha256": "ff"}',
    "a/000.txt": b"text",
    "001.json": b'{"caption": "a #cat"}',
    "b/002.x.json": b'{"hashtags": ["dog"]}',
    "003.json": b"{",
    "004.json": b'{"caption": "' + b"x" * MAX_ROW_BYTES + b'"}',
    "005.json": b'{"id": null, "caption": "#x"}',
}


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz", "shard.tgz"])
def test_json_members_of_shards_are_posts_named_by_their_key(name: str, tmp_path: Path) -> None:
    posts, rejects = split(write_shard(tmp_path / name, MEMBERS))
    assert posts == [
        Post("000", "http://x", ["bear"], "ff"),
        Post("001", None, ["cat"], None),
        Post("b/002", None, ["dog"], None),
    ]
    assert [(reject.row, reject.reason) for reject in rejects] == [
        (4, "not JSON"),
        (5, "row too large"),
        (6, "no id"),
        (7, "not JSON"),  # a link has no content
    ]


@pytest.mark.parametrize("size", [512 * 9, 512 * 11 + 100, 512 * 13, 512 * 13 + 300])
def test_members_before_a_truncation_are_read(size: int, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "shard.tar", MEMBERS)
    write(path, path.read_bytes()[:size])
    posts, rejects = split(path)
    assert [post.id for post in posts] == (["000"] if size >= 512 * 13 else [])
    assert [reject.reason for reject in rejects] == ["unreadable from here on"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "posts.jsonl",
        '{"id": 1, "n": 2, "tags": ["a"], "words": "b c", "said": "#d", "sum": "ff"}',
    )
    assert split(path, Columns(id="n", hashtags="words", hash="sum"))[0] == [
        Post("2", None, ["b", "c"], "ff")
    ]
    assert split(path, Columns(id="missing"))[1][0].reason == "no id"
    path = write(tmp_path / "posts.csv", "number,said\n1,#d\n")
    assert split(path, Columns(id="number", caption="said"))[0] == [Post("1", None, ["d"], None)]


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        (
            "number,hashtags",
            Columns(),
            r"posts\.csv has no column of ids; its columns: number, hashtags; name one",
        ),
        (
            "id,words",
            Columns(),
            r"has no column of hashtags or captions; its columns: id, words",
        ),
        ("id,tags", Columns(url="link"), r"has no column 'link' for url; its columns: id, tags"),
    ],
)
def test_a_table_without_the_columns_is_rejected(
    header: str, columns: Columns, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        split(write(tmp_path / "posts.csv", f"{header}\n1,2\n"), columns)


def test_the_name_of_a_file_determines_its_format(tmp_path: Path) -> None:
    names = {
        "a.jsonl": "json",
        "A.NDJSON.GZ": "json",
        "a.csv.bz2": "csv",
        "yfcc100m_dataset.bz2": "yfcc",
        "b.parquet": "parquet",
        "photos.tsv.gz": "tsv",
        "x.tab": "csv",
    }
    for name, format in names.items():
        assert find_format(Path(name)) == format
    for name in ("yfcc100m_hash.bz2", "yfcc100m_autotags-v1", "yfcc100m_places"):
        with pytest.raises(ConfigError, match=f"{name} is a table of YFCC100M without user tags"):
            find_format(Path(name))
    for name in ("posts.txt", "posts.jsonl.zst", "posts"):
        with pytest.raises(
            ConfigError,
            match=rf"unknown format of {name}: allowed: \.jsonl .* a format=, one of json, .*yfcc",
        ):
            find_format(Path(name))
    assert len(split(write(tmp_path / "posts.txt", '{"id": 1, "tags": []}'), format="json")[0]) == 1
    for format in ("parquet", "xml"):
        with pytest.raises(
            ConfigError,
            match=f"invalid format '{format}' for .*: allowed: json, csv, tsv, yfcc, tar",
        ):
            split(tmp_path / "posts.txt", format=format)


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl cannot be read: No such file"):
        split(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match=r"cannot be read: .* is a folder, not a regular file"):
        split(tmp_path, format="json")


def test_progress_is_reported_in_bytes_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "posts.jsonl.gz", gzip.compress(b'{"id": 1, "hashtags": []}\n' * 50_000, 0)
    )
    seen: list[int] = []
    assert sum(1 for _ in read_posts(path, on_progress=seen.append)) == 50_000
    assert seen == sorted(seen)
    assert len(seen) == 50
    assert path.stat().st_size // 2 < seen[-1] <= path.stat().st_size


@pytest.mark.parametrize(
    "text",
    [
        b"id\rtags\n1,dog\n",  # the line ends of old Macs
        b"id\r\rtags\n1,dog\n",
        b'"' + b"x" * 131_073 + b'",id,tags\n1,2,3\n',
        b"id," + b"y" * 200_000 + b",tags\n1,2,3\n",
        b'id,tags\0\r,"x\n',
    ],
)
def test_a_line_of_names_that_is_not_csv_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(text)
    with pytest.raises(ConfigError, match=r"the first line of .* names of columns: .+; lines must"):
        split(tmp_path / "x.csv")


@pytest.mark.parametrize("names", ["id,id,tags", "id,tags,tags", "id,caption,tags,caption"])
def test_columns_of_the_same_name_are_refused(names: str, tmp_path: Path) -> None:
    """Which of them is meant is not known."""
    (tmp_path / "x.csv").write_text(f"{names}\n" + ",".join("1" for _ in names.split(",")) + "\n")
    with pytest.raises(ConfigError, match=r"has more than one column '(id|tags|caption)'"):
        split(tmp_path / "x.csv")
    columns = names.split(",")
    schema = pa.schema([pa.field(name, pa.string()) for name in columns])
    with pytest.raises(ConfigError, match=r"has more than one column '(id|tags|caption)'"):
        find_parquet_columns(schema)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(ConfigError, match=r"x\.csv is a named pipe, not a regular file"):
        split(tmp_path / "x.csv")


def test_a_folder_of_yfcc100m_is_searched_for_its_table(tmp_path: Path) -> None:
    names = ["yfcc100m_dataset", "yfcc100m_dataset-1.bz2", "yfcc100m_hash.bz2", "readme.txt"]
    for name in names:
        write(tmp_path / name, "")
    assert [path.name for path in find_files([tmp_path], None)] == names[:2]
