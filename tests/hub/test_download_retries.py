"""Which responses are retried, how often and after how long; rates and sizes at their limits."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fetch_support import MIB, isolate, make_bytes
from raw_server import RawServer, respond
from server import Fault, Server, sha256

from swag_models.errors import FetchError, HashMismatchError
from swag_models.hub import download as download_module
from swag_models.hub.download import ClaimedSizeError, download
from swag_models.hub.transport import RetryableError

CONTENT = make_bytes(2 * MIB)
OTHER = make_bytes(2 * MIB, seed=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of part files."""
    return isolate(tmp_path, monkeypatch) / "parts"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, in seconds, which take no time; each is the longest possible."""
    waits: list[float] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=waits.append)
    monkeypatch.setattr(download_module, "time", clock)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    return waits


def fail(url: str, folder: Path, sha: str | None = None) -> str:
    """Return the message of a download that fails."""
    with pytest.raises(FetchError) as caught:
        download(url, folder, key="key", sha256=sha)
    return str(caught.value)


def test_the_waits_double(server: Server, folder: Path, waits: list[float]) -> None:
    assert fail(server.put("/x.pth", CONTENT, *[Fault(status=503)] * 9), folder) == (
        "HTTP 503, 5 times in a row"
    )
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_retried(server: Server, folder: Path, status: int) -> None:
    path, _ = download(
        server.put("/x.pth", CONTENT, Fault(status=status)), folder, key="key", sha256=None
    )
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [201, 204, 400, 403, 407, 409, 410, 416, 428, 430, 501, 505])
def test_another_status_is_an_error_at_once(server: Server, folder: Path, status: int) -> None:
    url = server.put("/x.pth", CONTENT, Fault(status=status))
    assert fail(url, folder).startswith(f"HTTP {status} ")
    assert len(server.requests) == 1


def test_a_failure_after_progress_counts_as_the_first(server: Server, folder: Path) -> None:
    url = server.put("/x.pth", CONTENT, Fault(cut=MIB), *[Fault(status=503)] * 9)
    assert fail(url, folder) == "HTTP 503, 5 times in a row"
    assert len(server.requests) == 5


def test_a_server_that_stops_during_a_download_gets_more_attempts(
    server: Server, folder: Path
) -> None:
    with Server() as stopped:
        pass
    assert fail(stopped.url + "/x.pth", folder).endswith(", 2 times in a row")
    url = server.put("/x.pth", CONTENT, Fault(cut=MIB), Fault(status=404))
    assert fail(url, folder) == "HTTP 404 Not Found"
    assert fail(stopped.url + "/x.pth", folder).endswith(", 5 times in a row")


@pytest.mark.parametrize("seconds", [60, 61])
def test_the_longest_wait_that_a_server_may_ask_for(
    server: Server, folder: Path, waits: list[float], seconds: int
) -> None:
    fault = Fault(status=429, headers={"Retry-After": str(seconds)})
    url = server.put("/x.pth", CONTENT, fault, Fault(status=404))
    message = fail(url, folder)
    if seconds == 60:
        assert (message, waits) == ("HTTP 404 Not Found", [60])
    else:
        assert (message, waits) == ("HTTP 429, and the server asks to wait 61 s", [])


def test_wrong_bytes_of_several_responses_are_fetched_once_more(
    server: Server, folder: Path
) -> None:
    url = server.put("/x.pth", OTHER, *[Fault(cut=MIB), Fault()] * 9)
    assert fail(url, folder, sha256(CONTENT)).startswith(f"SHA-256 is {sha256(OTHER)}")
    assert len(server.requests) == 4
    assert not list(folder.iterdir())


def test_a_file_may_be_empty_or_at_the_root(server: Server, folder: Path) -> None:
    path, digest = download(server.put("/x.pth", b""), folder, key="key", sha256=None)
    assert (path.read_bytes(), digest) == (b"", sha256(b""))
    assert fail(server.url, folder) == "HTTP 404 Not Found"


def test_a_content_encoding_is_an_error_that_names_it(folder: Path) -> None:
    for status in (b"200 OK", b"206 Partial"):
        with RawServer(
            lambda connection, _, status=status: respond(
                connection, b"abc", status, Content_Encoding=b" Br" + b"x" * 60
            )
        ) as raw:
            message = fail(raw.url + "/x.pth", folder)
        assert message == f"the server sent the file with Content-Encoding 'br{'x' * 38}'"
    with RawServer(
        lambda connection, _: respond(connection, b"abc", Content_Encoding=b" Identity ")
    ) as raw:
        assert download(raw.url + "/x.pth", folder, key="key", sha256=sha256(b"abc"))
    with RawServer(
        lambda connection, _: respond(connection, b"", b"410 Gone", Content_Encoding=b"gzip")
    ) as raw:
        assert fail(raw.url + "/x.pth", folder) == "HTTP 410 Gone"


@pytest.mark.parametrize("short", [None, 1, 3])
def test_the_minimum_rate_is_over_a_minute(
    monkeypatch: pytest.MonkeyPatch, short: int | None
) -> None:
    """1,024 bytes per second are enough; one byte less in any 60 seconds is not."""
    times = iter([0.0, *(moment for end in (59.0, 60.0, 119.0, 120.0) for moment in (end, end))])
    monkeypatch.setattr(download_module.time, "monotonic", lambda: next(times))
    sizes = [30 * 1024 - (piece == short) for piece in range(4)]
    received = download_module.require_rate((bytes(size) for size in sizes), deadline=1000)
    if short is None:
        assert [len(piece) for piece in received] == sizes
    else:
        with pytest.raises(RetryableError, match="slower than 1024 bytes per second") as caught:
            list(received)
        assert caught.value.attempts == 2


def test_the_last_moment_of_the_overall_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for now, fits in ((10.0, True), (10.5, False)):
        times = iter([0.0, 0.0, now])
        monkeypatch.setattr(download_module.time, "monotonic", lambda times=times: next(times))
        received = download_module.require_rate([b"a"], deadline=10)
        if fits:
            assert list(received) == [b"a"]
        else:
            with pytest.raises(FetchError, match=r"^not complete after 24 hours; try again to res"):
                list(received)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_file_may_fill_the_disk(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    usage = SimpleNamespace(free=len(CONTENT) - missing)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda _: usage)
    url = server.put("/x.pth", CONTENT)
    if missing:
        with pytest.raises(ClaimedSizeError, match="needs 2 MiB more and has 2 MiB free"):
            download(url, folder, key="key", sha256=None)
    else:
        assert download(url, folder, key="key", sha256=None)[0].read_bytes() == CONTENT


def test_a_hash_that_fits_is_enough(server: Server, folder: Path) -> None:
    """`accept` recognises weight files, and is called only if no hash is known."""
    asked: list[Path] = []

    def refuse(path: Path) -> bool:
        asked.append(path)
        return False

    url = server.put("/x.pth", CONTENT)
    assert download(url, folder, key="key", sha256=sha256(CONTENT), accept=refuse)
    assert not asked
    with pytest.raises(FetchError, match="truncated or not a weight file"):
        download(url, folder, key="key", sha256=None, accept=refuse)
    with pytest.raises(HashMismatchError):
        download(url, folder, key="key", sha256=sha256(OTHER), accept=lambda _: True)
    assert len(asked) >= 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_by_default(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    download(server.put("/a/x.pth?y=1", CONTENT), folder, key="key", sha256=None)
    assert "x.pth: 100%" in sys.stderr.getvalue()  # type: ignore[attr-defined]
