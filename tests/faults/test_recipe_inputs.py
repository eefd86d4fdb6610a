"""Changed shards, posts, WordNet files, manifests and settings are read, or refused in one line."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_support import make_posts
from faults.counts import DEFECTS, judge, record, scaled
from shards_support import encode_jpeg, make_shards
from wordnet_support import FILES, write_wordnet

from swag_models.archives import find_members
from swag_models.errors import ImageError, ShardError
from swag_models.recipe.config_overrides import override
from swag_models.recipe.curation.columns import find_parquet_columns
from swag_models.recipe.curation.ingest import convert_posts
from swag_models.recipe.curation.readers import read_posts
from swag_models.recipe.data.loader import Loader
from swag_models.recipe.data.manifest import verify_shards
from swag_models.recipe.data.shards import find_shards, read_shard, read_vocabulary
from swag_models.recipe.data.sources import open_source
from swag_models.recipe.presets import PRESETS
from swag_models.recipe.wordnet import WordNet

pytestmark = pytest.mark.faults

COUNT = 100_000  # cases of each kind
# Texts that parsers treat specially, and numbers at the limits of their types.
TOKENS = (
    *(b"", b"\0", b"\n", b"\r", b"\r\n", b"\t", b'"', b"'", b",", b";", b"\\", b"/", b"..", b"%"),
    *(
        b"\xff",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"\x1b[31m",
        b"\\ud800",
        b"\\u0000",
        b"\xef\xbb\xbf",
    ),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e400", b"-1", b"0", b"9" * 400, b"9" * 5000),
    *(b"[", b"]", b"{", b"}", b"[" * 2000, b'{"a":' * 2000, b"x" * 300, b"pipe:id", b"s3://a/b"),
    *(
        str(2**63).encode(),
        str(-(2**63)).encode(),
        b"2147483648",
        b"<x>",
        b"#a#b",
        b"\xf0\x9f\x90\xbb",
    ),
)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Change, insert, remove, repeat or cut a few places."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0 | 1:
                data[place : place + 1] = bytes([draw.randrange(256)])
            case 2 | 3:
                token = draw.choice(TOKENS)
                data[place : place + draw.choice((0, 1, len(token)))] = token
            case 4:
                del data[place : place + draw.choice((1, 4, 64, 512))]
            case 5:
                data[place:place] = data[place : place + draw.choice((1, 32, 512))]
            case 6:
                del data[place:]
    return bytes(data)


def write_tar(members: dict[str, bytes], format: int, records: dict[str, str]) -> bytes:
    """A tar file whose members have these records in their extended headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if format == tarfile.PAX_FORMAT:
                info.pax_headers = records
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def run_campaign(row: str, count: int, call: Callable[[random.Random], object]) -> None:
    """Judge calls with a generator of its own each, and record the outcomes."""
    counts = Counter[str]()
    for number in range(scaled(count)):
        seed = f"{row} {number}"
        outcome = judge(lambda seed=seed: call(random.Random(seed)))  # type: ignore[misc]
        counts[outcome] += 1
        if outcome in DEFECTS and counts[outcome] <= 5:
            with contextlib.suppress(Exception):
                print(f"{outcome}: seed {seed!r}")
                call(random.Random(seed))
    record("recipe inputs", counts, row=row)
    assert not {outcome: counts[outcome] for outcome in DEFECTS if counts[outcome]}


def test_tar_shards(tmp_path: Path) -> None:
    image = encode_jpeg(0)
    members = {
        "a.jpg": image,
        "a.json": b'{"classes": [1], "repeat": 1.5}',
        "f" * 120 + "/b.jpg": image,
    }
    members |= {"c.jpg": image, "c.cls": b"3"}
    records = {"comment": "x", "mtime": "1.5", "path": "y.json", "GNU.sparse.name": "z"}
    sources = [
        write_tar(members, format, {key: records[key] for key in keys})
        for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)
        for keys in ((), ("comment", "mtime"), ("GNU.sparse.name",))
        if format != tarfile.USTAR_FORMAT or not keys
    ]
    path = tmp_path / "x.tar"

    def read(draw: random.Random) -> None:
        source = draw.choice(sources)
        if draw.random() < 0.5:  # a change of a header, not of an image
            block = 512 * draw.randrange(len(source) // 512)
            content = (
                source[:block] + mutate(source[block : block + 512], draw) + source[block + 512 :]
            )
        else:
            content = mutate(source, draw)
        compress = draw.choice((None, None, None, gzip.compress, bz2.compress))
        if compress:
            content = compress(content)
            content = mutate(content, draw) if draw.random() < 0.5 else content
        path.write_bytes(content)
        match draw.randrange(3):
            case 0:
                find_members(path, Counter())
            case 1:
                list(read_shard(str(path)))
            case 2:
                loader = Loader(str(path), batch_size=2, skip_broken=draw.random() < 0.5)
                with contextlib.suppress(ImageError, ShardError):
                    list(loader)

    run_campaign("tar shards", COUNT, read)


def test_posts(tmp_path: Path) -> None:
    posts = make_posts(8)
    lines = "".join(json.dumps(post) + "\n" for post in posts).encode()
    table = "id,url,tags,hash\n" + "".join(
        f'{post["id"]},{post["url"]},"{" ".join(post["hashtags"])}",{post["hash"]}\n'
        for post in posts
    )
    yfcc = "".join(
        "\t".join(
            [str(n), f"{n}", *("x",) * 6, "a+b,c%20d", *("y",) * 5, "http://z", *("w",) * 7, "0"]
        )
        + "\n"
        for n in range(8)
    )
    tar = write_tar(
        {f"{n}.json": json.dumps(post).encode() for n, post in enumerate(posts)},
        tarfile.PAX_FORMAT,
        {},
    )
    sources = {".jsonl": lines, ".csv": table.encode(), ".tsv": yfcc.encode(), ".tar": tar}

    def read(draw: random.Random) -> None:
        suffix = draw.choice(list(sources))
        content = mutate(sources[suffix], draw)
        packed, compress = draw.choice(
            (("", None), ("", None), (".gz", gzip.compress), (".bz2", bz2.compress))
        )
        if compress:
            content = compress(content)
            content = mutate(content, draw) if draw.random() < 0.7 else content
        path = tmp_path / f"x{suffix}{packed}"
        path.write_bytes(content)
        list(read_posts(path))

    run_campaign("posts", COUNT, read)


TYPES: tuple[pa.DataType, ...] = (
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.null(), pa.bool_()),
    *(pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(20, 2), pa.date32()),
    *(pa.timestamp("ns"), pa.duration("s"), pa.list_(pa.string()), pa.list_(pa.int32())),
    *(pa.list_(pa.list_(pa.string())), pa.struct([("a", pa.string())]), pa.large_list(pa.string())),
    *(
        pa.map_(pa.string(), pa.string()),
        pa.dictionary(pa.int8(), pa.string()),
        pa.list_(pa.string(), 2),
    ),
)
NAMES = (
    "id",
    "ID",
    "url",
    "hashtags",
    "tags",
    "caption",
    "hash",
    "license",
    "",
    "a\nb",
    "\x1b[31m",
)


def test_types_of_parquet_columns() -> None:
    def read(draw: random.Random) -> None:
        fields = [
            pa.field(draw.choice(NAMES), draw.choice(TYPES[: draw.choice((1, 20))]))
            for _ in range(draw.randint(0, 5))
        ]
        find_parquet_columns(pa.schema(fields))

    run_campaign("types of Parquet columns", COUNT, read)


def test_parquet_files(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.parquet"
    rows = [{"class": n, "synset": f"n{n:08}", "hashtag": "x"} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    source = path.read_bytes()

    def read(draw: random.Random) -> None:
        path.write_bytes(mutate(source, draw))
        read_vocabulary(path)

    run_campaign("Parquet files", COUNT // 10, read)


def test_conversion_of_posts(tmp_path: Path) -> None:
    """The whole way of a file of posts to a table, which is slower."""
    lines = "".join(json.dumps(post) + "\n" for post in make_posts(8)).encode()

    def convert(draw: random.Random) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(mutate(lines, draw))
        convert_posts([path], tmp_path / "work", progress=False)

    run_campaign("conversion of posts", COUNT // 10, convert)


def test_wordnet(tmp_path: Path) -> None:
    write_wordnet(tmp_path)

    def read(draw: random.Random) -> None:
        name = draw.choice(list(FILES))
        (tmp_path / name).write_bytes(mutate(FILES[name].encode(), draw))
        try:
            wordnet = WordNet.load(tmp_path)
            for synset in list(wordnet.synsets)[:3]:
                wordnet.ancestors(synset)
                wordnet.descendants(synset)
        finally:
            (tmp_path / name).write_text(FILES[name])

    run_campaign("WordNet", COUNT, read)


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        10**18,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
    ),
    *(
        "pipe:touch pwned",
        "/etc/passwd",
        "../x.tar",
        "s3://a/b",
        "a" * 300,
        "a\0b",
        "\ud800",
        "\x1b[31m",
    ),
    *([], {}, [[]], [{}], {"name": "x"}, ["x"], [None], {"a": {"b": {}}}),
)


def change_value(value: Any, draw: random.Random) -> Any:
    """Change one value anywhere in JSON values."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, draw.choice(("x", "", "name", "format")): draw.choice(VALUES)}
            case _:
                return {**value, key: change_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [
            *value[:place],
            change_value(value[place], draw),
            *value[place + draw.randrange(2) :],
        ]
    return draw.choice(VALUES)


def test_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_shards(tmp_path, 8, 4)
    monkeypatch.chdir(folder)
    path = folder / "manifest.json"
    source = path.read_bytes()
    before = {file.name for file in folder.iterdir()}

    def read(draw: random.Random) -> None:
        if draw.random() < 0.3:
            path.write_bytes(mutate(source, draw))
        else:
            manifest = json.loads(source)
            for _ in range(draw.choice((1, 1, 2))):
                manifest = change_value(manifest, draw)
            path.write_text(json.dumps(manifest))
        match draw.randrange(4):
            case 0:
                find_shards(folder)
            case 1:
                verify_shards(folder)
            case 2:
                open_source("manifest.json")
            case 3:
                for url in find_shards("manifest.json")[0]:
                    list(read_shard(url))

    run_campaign("manifests", COUNT, read)
    assert {file.name for file in folder.iterdir()} == before, "no command ran"


def test_settings() -> None:
    run = PRESETS[0].run
    names = [*vars(run), *(f"optimizer.{name}" for name in vars(run.optimizer)), "engine.workers"]
    names += [
        "ema.decay",
        "objective.kind",
        "augment.scale",
        "checkpoint.every",
        "x",
        "",
        "optimizer",
    ]
    texts = (
        *(
            "",
            "0",
            "-1",
            "1",
            "1.5",
            "1e400",
            "nan",
            "inf",
            "9" * 400,
            "9" * 5000,
            "true",
            "none",
            "None",
        ),
        *(
            "0.1,0.2",
            ",",
            "1,",
            "1,2,3",
            "1,,2",
            "[1]",
            "{}",
            "x" * 1000,
            "\0",
            "\n",
            "\x1b[31m",
            "\ud800",
        ),
        *(
            "\u00bd",
            "\u0663",
            "\uff11",
            "1_0",
            "0x10",
            "1e-400",
            "=",
            "a=b",
            " 1 ",
            "+1",
            "pipe:id",
            "softmax",
            "sgd",
        ),
    )

    def set_values(draw: random.Random) -> None:
        settings = []
        for _ in range(draw.randint(1, 3)):
            setting = f"{draw.choice(names)}={draw.choice(texts)}"
            if draw.random() < 0.3:
                setting = mutate(setting.encode("utf-8", "surrogatepass"), draw).decode(
                    "utf-8", "surrogateescape"
                )
            settings.append(setting)
        override(run, settings)

    run_campaign("--set", COUNT, set_values)
