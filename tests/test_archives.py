"""Damaged and hostile tar files are refused in one line, by every reader of tar files."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_support import write_tar

from swag_models.archives import MAX_HEADER, find_members
from swag_models.errors import ConfigError, ShardError
from swag_models.recipe.curation.posts import NOT_JSON, Post, Reject
from swag_models.recipe.curation.readers import read_posts
from swag_models.recipe.data.shards import MAX_FILE_SIZE, read_shard

BLOCK = tarfile.BLOCKSIZE


def make_pax(records: bytes, size: int | None = None, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A member with an extended header, which may claim another size than it has."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(records) if size is None else size
    content = records + bytes(-len(records) % BLOCK)
    return header.tobuf(tarfile.GNU_FORMAT) + content + make_member("a.json", b'{"id": "a"}')


def make_member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % BLOCK)


def make_record(key: str, value: str) -> bytes:
    """A record of an extended header: its own length, key and value."""
    rest = f" {key}={value}\n"
    length = len(rest)
    while len(f"{length}{rest}") != length:
        length += 1
    return f"{length}{rest}".encode()


HEADERS = {
    "size is not a number": make_pax(make_record("size", "x")),
    "size is negative": make_pax(make_record("size", "-1024")),
    "size has 30 digits": make_pax(make_record("size", "9" * 30)),
    "size has 5,000 digits": make_pax(make_record("size", "9" * 5000)),
    "length has 5,000 digits": make_pax(b"9" * 5000 + b" path=x\n"),
    "sparse map is not a number": make_pax(make_record("GNU.sparse.map", "0,x")),
    "sparse map is odd": make_pax(
        make_record("GNU.sparse.map", "0,1,2") + make_record("GNU.sparse.size", "5")
    ),
    "sparse file of 8 EB": make_pax(
        make_record("GNU.sparse.map", f"{2**62},1")
        + make_record("GNU.sparse.size", f"{2**63 - 1}")
        + make_record("GNU.sparse.realsize", f"{2**63 - 1}")
    ),
    "sparse format 1.0 without a map": make_pax(
        make_record("GNU.sparse.major", "1") + make_record("GNU.sparse.minor", "0")
    ),
    "charset is unknown": make_pax(make_record("hdrcharset", "?")),
    "header of 8 GB": make_pax(b"", size=8**11 - 1),
    "header above the limit": make_pax(b"", size=MAX_HEADER + 1, kind=tarfile.GNUTYPE_LONGNAME),
    "5,000 headers without a member": make_pax(b"")[:BLOCK] * 5000,
    "member beyond the end": make_member("a.json", bytes(9 * BLOCK))[:BLOCK],
    "junk between two members": b"x" * BLOCK + make_member("b.json", b"{}"),
    "block of zeros after a header": make_pax(b"")[:BLOCK],
}
# One that is harmless: a header whose only record is unknown.
HARMLESS = {"charset is unknown"}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("end", [b"", bytes(2 * BLOCK)], ids=["cut", "complete"])
def test_damaged_headers_are_refused_by_every_reader(name: str, end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(make_member("0.json", b'{"id": "0", "tags": []}') + HEADERS[name] + end)
    if name in HARMLESS and end:
        assert [member for member, _ in find_members(path, Counter())] == ["0.json", "a.json"]
        return
    with pytest.raises(ConfigError, match=r"cannot be read as an uncompressed tar file: .") as one:
        find_members(path, Counter())
    with pytest.raises(ShardError, match=r"x.tar cannot be read: .") as two:
        list(read_shard(str(path)))
    for error in (one, two):
        assert str(error.value).isprintable()
    rows = list(read_posts(path))
    assert isinstance(rows[-1], Reject)
    assert rows[-1].reason == "unreadable from here on"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_bombs_are_refused_before_they_fill_the_memory(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """1 GiB of zeros in a few kilobytes: as the content of a file, and as a header."""
    limit = 1 << 20
    piece = compress(bytes(limit))  # both formats allow several streams in one file
    header = tarfile.TarInfo("a.jpg")
    header.size = MAX_FILE_SIZE + 1
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    for start in (header, long_name):
        path = tmp_path / f"{start.name}.tar.{'gz' if compress is gzip.compress else 'bz2'}"
        path.write_bytes(compress(start.tobuf(tarfile.GNU_FORMAT)) + piece * 4)
        with pytest.raises(ShardError, match="cannot be read: "):
            list(read_shard(str(path)))


def test_a_python_that_parses_headers_elsewhere_is_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases from 2026 on parse headers in `_frombuf`, and check extensions after it."""
    if not hasattr(tarfile.TarInfo, "_frombuf"):
        parse: Any = tarfile.TarInfo.frombuf.__func__  # type: ignore[attr-defined]

        def read(cls: Any, archive: Any) -> Any:
            buf = archive.fileobj.read(BLOCK)
            header = cls._frombuf(buf, archive.encoding, archive.errors, dircheck=True)
            if header.size < 0:
                raise tarfile.InvalidHeaderError("invalid header")  # type: ignore[attr-defined]
            return header._proc_member(archive)

        monkeypatch.setattr(
            tarfile.TarInfo,
            "_frombuf",
            classmethod(lambda cls, buf, encoding, errors, **_: parse(cls, buf, encoding, errors)),
            raising=False,
        )
        monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(read))
    first = make_member("0.json", b'{"id": "0", "tags": []}')
    negative, long_name = tarfile.TarInfo("x"), tarfile.TarInfo("x")
    negative.size = -1
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, MAX_HEADER + 1
    path = tmp_path / "x.tar"
    for end in (b"", *(info.tobuf(tarfile.GNU_FORMAT) for info in (negative, long_name)), b"0" * 9):
        path.write_bytes(first + end)
        with pytest.raises(ConfigError, match="cannot be read as an uncompressed tar file: "):
            find_members(path, Counter())


def test_an_intact_file_is_read_by_every_reader(tmp_path: Path) -> None:
    """Long names, links and folders, in both formats."""
    name = "f" * 300 + "/a.json"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format}.tar"
        with tarfile.open(path, "w", format=format) as archive:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size = 27
            archive.addfile(info, io.BytesIO(b'{"id": "a", "tags": ["b"]} '))
            link = tarfile.TarInfo("link.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            pipe = tarfile.TarInfo("pipe.json")
            pipe.type = tarfile.FIFOTYPE
            archive.addfile(pipe)
        left_out = Counter[str]()
        ((member, (_, size)),) = find_members(path, left_out)
        assert (member, size) == (name, 27)
        assert left_out == {"link in a tar file": 1, "named pipe in a tar file": 1}
        samples = list(read_shard(str(path)))
        contents = [b'{"id": "a", "tags": ["b"]} ', b"", b""]
        assert [sample["json"] for sample in samples] == contents
        post, *rejects = read_posts(path)
        assert post == Post("a", None, ["b"], None)
        assert [reject.reason for reject in rejects] == [NOT_JSON] * 2


def test_every_changed_byte_of_a_header_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {"a.json": b'{"id": "a", "tags": ["b"]}', "b.jpg": b"x"})
    content = path.read_bytes()
    for place in range(0, BLOCK, 3):
        for value in (0, 0x39, 0x80, 0xFF):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            with contextlib.suppress(ConfigError):
                find_members(path, Counter())
            with contextlib.suppress(ShardError):
                list(read_shard(str(path)))
            list(read_posts(path))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_cut_at_any_of_its_first_bytes_is_an_error(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    content = compress(make_member("a.jpg", b"x" * 600) + make_member("a.cls", b"1"))
    for size in [*range(1, 40), len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ShardError, match=r"x\.tar"):
            list(read_shard(str(path)))
