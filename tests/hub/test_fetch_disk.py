"""Cache folders on full or read-only disks, with real disks of a few MiB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fetch_support import MIB, isolate, list_files, make_safetensors, make_spec, remount, small_disk
from server import Fault, ServedFile, Server, sha256

from swag_models.errors import CacheError, FetchError
from swag_models.hub.fetch import fetch_weights
from swag_models.spec import ModelSpec, Source

CONTENT = make_safetensors(4 * MIB)
ADVICE = "set SWAG_MODELS_CACHE to another folder"


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 6 MiB with the cache folder."""
    isolate(tmp_path, monkeypatch)
    with small_disk(tmp_path / "disk", 6) as disk:
        monkeypatch.setenv("SWAG_MODELS_CACHE", str(disk / "cache"))
        yield disk


@pytest.fixture
def ballast(disk: Path) -> Path:
    """A file that leaves 3 MiB of the disk free."""
    path = disk / "ballast"
    path.write_bytes(bytes(3 * MIB))
    return path


def serve(
    server: Server, *faults: Fault, validators: bool = True, content: bytes = CONTENT
) -> ModelSpec:
    """A model whose weights the server has."""
    url = server.put("/x.pth", content, *faults, validators=validators)
    return make_spec(Source(url, "timm", sha256(content)))


def test_a_file_too_large_for_the_disk_is_not_downloaded(
    server: Server, disk: Path, ballast: Path
) -> None:
    spec = serve(server)
    message = r"needs 4 MiB more and has [23] MiB free; free some space, or "
    with pytest.raises(CacheError, match=message + ADVICE):
        fetch_weights(spec)
    assert not list_files(disk / "cache" / "parts")
    ballast.unlink()
    assert fetch_weights(spec).read_bytes() == CONTENT


def test_a_disk_that_fills_up_is_not_retried_with_the_next_source(
    server: Server, ballast: Path
) -> None:
    spec = serve(server, Fault(chunked=True))
    other = Source(server.put("/y.pth", CONTENT), "timm", sha256(CONTENT))
    with pytest.raises(CacheError, match="No space left on device"):
        fetch_weights(make_spec(*spec.sources, other))
    assert ballast.exists()
    assert not server.list_requests("/y.pth")


@pytest.mark.parametrize("size", ["99999999999999", "9" * 330, "9" * 5000])
def test_a_source_that_states_an_absurd_size_does_not_stop_the_next(
    server: Server, disk: Path, size: str
) -> None:
    spec = serve(server, Fault(headers={"Content-Length": size}))
    other = Source(server.put("/y.pth", CONTENT), "timm", sha256(CONTENT))
    assert fetch_weights(make_spec(*spec.sources, other)).read_bytes() == CONTENT
    assert not list_files(disk / "cache" / "parts")


@pytest.mark.parametrize("validators", [True, False], ids=["validators", "no-validators"])
def test_a_disk_that_fills_up_is_an_error_and_the_download_resumes(
    server: Server, ballast: Path, validators: bool
) -> None:
    spec = serve(server, Fault(chunked=True), validators=validators)
    with pytest.raises(CacheError, match=rf"No space left on device; free some space, or {ADVICE}"):
        fetch_weights(spec)
    assert len(server.requests) == 1
    ballast.unlink()  # leaves room for one copy of the file, not for two
    path = fetch_weights(spec)
    assert path.read_bytes() == CONTENT
    assert ((server.list_start_bytes("/x.pth")[1] or 0) > MIB) == validators, (
        "resumes where the server sends validators"
    )
    assert not list_files(path.parents[2] / "parts")


def test_the_part_of_an_outdated_version_is_deleted(server: Server, disk: Path) -> None:
    old = ServedFile(CONTENT, '"old"', None)
    spec = serve(
        server, Fault(served=old, cut=3 * MIB), Fault(status=404), content=make_safetensors(5 * MIB)
    )
    with pytest.raises(FetchError, match="404"):
        fetch_weights(spec)
    assert sum(path.stat().st_size for path in list_files(disk)) >= 2 * MIB
    assert fetch_weights(spec).stat().st_size > 5 * MIB


def test_a_read_only_cache_returns_its_files(server: Server, disk: Path) -> None:
    spec = serve(server)
    path = fetch_weights(spec)
    copied = disk / "cache" / "y.pth"
    copied.write_bytes(make_safetensors())
    remount(disk, "ro")
    assert fetch_weights(spec) == path
    assert fetch_weights(make_spec(Source(server.url + "/y.pth", "timm", sha256(copied)))) == copied
    assert len(server.requests) == 1


@pytest.mark.parametrize("used", [False, True], ids=["empty", "used"])
def test_a_read_only_cache_rejects_a_download(server: Server, disk: Path, used: bool) -> None:
    small = make_safetensors()
    if used:
        fetch_weights(make_spec(Source(server.put("/y.pth", small), "timm", sha256(small))))
    remount(disk, "ro")
    with pytest.raises(CacheError, match=rf"Read-only file system.*{ADVICE}"):
        fetch_weights(serve(server))
    remount(disk, "rw")
    assert fetch_weights(serve(server)).read_bytes() == CONTENT


def test_a_pin_that_cannot_be_written_is_not_logged(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (disk / "cache").mkdir()
    (disk / "cache" / "x.pth").write_bytes(CONTENT)
    remount(disk, "ro")
    spec = make_spec(Source("https://unreachable.invalid/x.pth", "timm"))
    assert fetch_weights(spec) == disk / "cache" / "x.pth"
    assert not [message for message in caplog.messages if "is pinned from now on" in message]
