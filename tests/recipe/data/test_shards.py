"""Shards are opened from any storage, read completely or rejected, and checked for damage."""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from image_support import write_tar
from shards_support import make_shards

from swag_models.errors import ConfigError, ShardError
from swag_models.recipe.data.manifest import verify_shards
from swag_models.recipe.data.shards import find_shards, read_shard


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("packed"), 12, 4)


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    """A copy that tests can change."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


@pytest.fixture(scope="module")
def site(packed: Path) -> Iterator[str]:
    """URL of the packed folder, served over HTTP.

    The first request for a file below /busy/ gets status 503; files below /cut/ are truncated.
    """
    answered = set[str]()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.startswith("/busy/") and self.path not in answered:
                answered.add(self.path)
                return self.send_error(503)
            self.path = self.path.removeprefix("/busy")
            if not self.path.startswith("/cut/"):
                return super().do_GET()
            content = (packed / self.path.removeprefix("/cut/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            return None

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(packed))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def read_all(shards: Any) -> list[dict[str, Any]]:
    """Read every sample, without its URL."""
    urls, _ = find_shards(shards)
    return [
        {key: value for key, value in sample.items() if key != "__url__"}
        for url in urls
        for sample in read_shard(url)
    ]


SOURCES: dict[str, Callable[[Path, str], Any]] = {
    "folder": lambda folder, site: str(folder),
    "path": lambda folder, site: folder,
    "manifest": lambda folder, site: folder / "manifest.json",
    "braces": lambda folder, site: f"{folder}/shard-{{000000..000002}}.tar",
    "pattern": lambda folder, site: f"{folder}/*.tar",
    "list": lambda folder, site: sorted(folder.glob("*.tar")),
    "list of patterns": lambda folder, site: [
        f"{folder}/shard-00000{{0,1}}.tar",
        f"{folder}/*2.tar",
    ],
    "file": lambda folder, site: f"file://{folder}/shard-{{000000..000002}}.tar",
    "pipe": lambda folder, site: f"pipe:cat {folder}/shard-{{000000..000002}}.tar",
    "pipe that unpacks": lambda folder, site: (
        f"pipe:gzip -c {folder}/shard-{{000000..000002}}.tar | gunzip"
    ),
    "compressed": lambda folder, site: f"pipe:gzip -c {folder}/shard-{{000000..000002}}.tar",
    "http": lambda folder, site: f"{site}/shard-{{000000..000002}}.tar",
    "busy server": lambda folder, site: f"{site}/busy/shard-{{000000..000002}}.tar",
    "manifest over http": lambda folder, site: f"{site}/manifest.json",
    "manifest through a pipe": lambda folder, site: f"pipe:cat {folder}/manifest.json",
}


@pytest.mark.parametrize("source", SOURCES)
def test_shards_are_read_from_any_source(source: str, packed: Path, site: str) -> None:
    expected = read_all([str(path) for path in sorted(packed.glob("*.tar"))])
    assert len(expected) == 12
    assert read_all(SOURCES[source](packed, site)) == expected


def test_other_protocols_are_read_through_fsspec(packed: Path) -> None:
    """The in-memory file system represents all others, which differ only in the protocol."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(str(packed), "/bucket/my shards", recursive=True)
    try:
        assert read_all("memory://bucket/my shards/shard-{000000..000002}.tar") == read_all(packed)
        assert read_all("memory://bucket/my shards/manifest.json") == read_all(packed)
    finally:
        files.rm("/bucket", recursive=True)


def test_a_missing_package_of_a_protocol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    with pytest.raises(
        ConfigError,
        match=r"^s3:// URLs need a package that is not installed; "
        r"install s3fs with: pip install s3fs$",
    ):
        list(read_shard("s3://bucket/shard-000000.tar"))
    with pytest.raises(ConfigError, match="pip install s3fs"):
        find_shards("s3://bucket/manifest.json")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by webdataset
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_samples_are_those_of_webdataset(suffix: str, packed: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    members = {
        "a.jpg": b"1",
        "a.cls": b"2",
        "deep.er/b.0.JPG": b"3",
        "deep.er/b.0.json": b"{}",
        "deep.er/b": b"no suffix",
        "c.seg.png": b"4",
        "a.txt": b"a key that appears again starts a new sample",
    }
    path = tmp_path / f"x.{suffix}"
    content = write_tar(tmp_path / "plain.tar", members).read_bytes()
    path.write_bytes(gzip.compress(content) if suffix == "tar.gz" else content)
    for url in (path, packed / "shard-000000.tar"):
        peer = [
            {key: value for key, value in sample.items() if key != "__local_path__"}
            for sample in webdataset.WebDataset(str(url), shardshuffle=False)
        ]
        assert list(read_shard(str(url))) == peer
        assert len(peer) == 4
    twice = write_tar(tmp_path / "twice.tar", {"a.jpg": b"", "a.JPG": b""})
    with pytest.raises(ShardError, match=r"twice\.tar cannot be read: it has a\.JPG twice"):
        list(read_shard(str(twice)))


def test_a_manifest_is_read_with_its_folder_only(packed: Path) -> None:
    urls, manifest = find_shards(packed)
    assert manifest is not None
    assert [shard["name"] for shard in manifest["shards"]] == [
        os.path.basename(url) for url in urls
    ]
    assert find_shards(f"{packed}/*.tar") == (urls, None)


def test_a_shard_cut_off_anywhere_is_an_error_that_names_it(packed: Path, tmp_path: Path) -> None:
    content = (packed / "shard-000001.tar").read_bytes()
    path = tmp_path / "cut.tar"
    last = content.rindex(b".json\0")
    for length in (
        0,
        100,
        512,
        1000,
        last - 512,
        last // 512 * 512,
        last // 512 * 512 + 100,
        last // 512 * 512 + 512,
    ):
        for url in (str(path), f"pipe:cat {path}"):
            path.write_bytes(content[:length])
            with pytest.raises(
                ShardError, match=re.escape(f"shard {url} cannot be read: ")
            ) as caught:
                list(read_shard(url))
            assert "\n" not in str(caught.value)


def test_a_shard_that_cannot_be_fetched_is_an_error_with_the_reason(
    packed: Path, site: str, tmp_path: Path
) -> None:
    shard = packed / "shard-000000.tar"
    for url, reason in {
        f"{site}/gone.tar": "HTTP 404 ",
        f"{site}/cut/shard-000000.tar": "the download failed: ",
        "http://127.0.0.1:1/x.tar": "Failed to establish a new connection: [Errno 111] Conn",
        f"pipe:cat {shard}; exit 3": "the command that fetches it ended with exit code 3",
        f"pipe:head -c 700 {shard}": "unexpected end of data",
        "pipe:echo no tar file": "",
        "pipe:no-such-command 2>/dev/null": "the command that fetches it ended with exit code 127",
        "gopher://x/y.tar": "Protocol not known: gopher",
        str(tmp_path / "gone.tar"): "No such file or directory",
    }.items():
        with pytest.raises(ShardError, match=re.escape(f"shard {url} cannot be read: {reason}")):
            list(read_shard(url))


def test_a_reader_that_stops_early_ends_its_command(packed: Path) -> None:
    for _ in range(3):
        samples = read_shard(f"pipe:cat {packed}/shard-000000.tar; cat /dev/zero")
        next(samples)
        samples.close()  # type: ignore[attr-defined]


def test_invalid_shards_are_rejected_in_one_line(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    newer = {**json.loads((packed / "manifest.json").read_text()), "format": 2}
    (tmp_path / "newer-manifest.json").write_text(json.dumps(newer))
    for name, entries in (
        ("curated", ("posts", "hashtags", "labels")),
        ("copies", ("copies", "threshold")),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(dict.fromkeys(entries)))
    for shards, message in {
        tmp_path
        / "curated": "curated was written by curate; pack it first: swag-models recipe pack",
        tmp_path / "copies": "copies was written by duplicates; give its exclude.txt",
        tmp_path / "unfinished": "unfinished has no manifest.json: packing was not finished",
        tmp_path / "gone": "gone does not exist; give a packed folder",
        tmp_path / "x-{0..1}.tar": "x-0.tar does not exist; give a packed folder",
        tmp_path / "*.tar": "no shard in ",
        tmp_path
        / "manifest.json": "manifest.json is not the manifest of packed shards: format is None",
        tmp_path / "newer-manifest.json": "format is 2; this version reads 1: update swag-models",
        "x-{0..1.tar": "invalid shards 'x-{0..1.tar': ",
        (): "no shard in ()",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            find_shards(shards)
        assert "\n" not in str(caught.value)


NAMES = (
    "pipe:touch run; cat shard-000000.tar",
    "file:///etc/passwd",
    "https://example.org/x.tar",
    "s3://bucket/x.tar",
    "../shard-000000.tar",
    "/etc/passwd",
    "below/shard-000000.tar",
    "..",
    "",
    "-.tar",
    "shard-{000000..000001}.tar",
    "*.tar",
    "a\n.tar",
    7,
    None,
)


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_names_plain_files_only(
    name: object, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in a manifest is never used as a path, a URL or a command."""
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["shards"][1]["name"] = name
    (shards / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(shards)
    for source in ("manifest.json", ".", shards, f"file://{shards}/manifest.json"):
        with pytest.raises(
            ConfigError, match=re.escape(f"shards[1].name is {name!r}; allowed: a ")
        ) as caught:
            find_shards(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"allowed: a (plain file name|text)"):
        verify_shards(shards)
    assert not (shards / "run").exists()


def test_a_manifest_by_a_relative_path(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_all(shards)
    monkeypatch.chdir(shards)
    assert read_all("manifest.json") == expected


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, r"was changed: its SHA-256 is \w{64} instead of \w{64}"),
    "missing": (Path.unlink, "is missing"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        r"has \d+ bytes instead of \d+",
    ),
    "appended": (
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        r"has \d+ bytes instead of \d+",
    ),
    "another shard": (
        lambda path: shutil.copy(path.with_name("shard-000000.tar"), path),
        r"(was changed|has \d+ bytes)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_damage_is_found(damage: str, shards: Path) -> None:
    assert verify_shards(shards) == []
    apply_damage, problem = DAMAGES[damage]
    apply_damage(shards / "shard-000001.tar")
    (flaw,) = verify_shards(shards)
    assert flaw.name == "shard-000001.tar"
    assert re.match(problem, flaw.problem)


def test_a_shard_that_is_not_in_the_manifest_is_found(shards: Path) -> None:
    write_tar(shards / "shard-000003.tar", {})
    assert verify_shards(shards) == [("shard-000003.tar", "is not in manifest.json")]
