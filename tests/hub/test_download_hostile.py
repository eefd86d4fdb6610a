"""Servers that break HTTP, send slowly or state impossible numbers: each is one clear error."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fetch_support import isolate, list_files, make_bytes
from raw_server import RawServer, find_start, reset, respond
from server import sha256

from swag_models.errors import FetchError
from swag_models.hub import download as download_module
from swag_models.hub.download import download
from swag_models.hub.time_limit import iterate_within

# urllib3 leaves the socket of a response with two lengths to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CONTENT = make_bytes(20_000)
VALID = {"ETag": b'"a"'}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of part files; time limits and waits are short."""
    monkeypatch.setattr(download_module, "TIMEOUT", (1, 1))
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)
    return isolate(tmp_path, monkeypatch) / "parts"


def fail(answer: Callable[[socket.socket, bytes], None], folder: Path) -> str:
    """Return the message of a download that fails, which is one line."""
    with RawServer(answer) as server, pytest.raises(FetchError) as caught:
        download(server.url + "/x.pth", folder, key="key", sha256=sha256(CONTENT))
    assert str(caught.value).isprintable()
    return str(caught.value)


RESPONSES = {
    "negative chunk": (b"", {"Transfer_Encoding": b"chunked"}, b"-5\r\nabcde\r\n0\r\n\r\n"),
    "chunk of text": (b"", {"Transfer_Encoding": b"chunked"}, b"zz\r\nabcde\r\n"),
    "chunk of 5,000 digits": (b"", {"Transfer_Encoding": b"chunked"}, b"f" * 5000 + b"\r\n"),
    "length of 5,000 digits": (b"9" * 5000, {}, b"abc"),
    "length of 330 digits": (b"9" * 330, {}, b"abc"),
    "length with a superscript": (b"\xb2", {}, b"abc"),
    "two lengths": (b"3", {"content_length": b"4"}, b"abc"),
    "compressed": (b"3", {"Content_Encoding": b"gzip"}, b"abc"),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_an_invalid_length_or_chunk_is_one_clear_error(name: str, folder: Path) -> None:
    length, headers, body = RESPONSES[name]
    fail(lambda connection, head: respond(connection, body, length=length, **headers), folder)


@pytest.mark.parametrize(
    "target",
    [
        b"http://" + b"a" * 300 + b"/x",
        b"https://" + b"a" * 300 + b".example/x",
        b"https://\xff\xfe/x",
        b"/\xff\xfe",
        b"https://[::1/x",
        b"https://",
        b"https://127.0.0.1:99999/x",
        b"https://127.0.0.1:\xb2/x",
        b"//",
        b"file:///etc/passwd",
        b"\x00\x01",
    ],
)
def test_an_invalid_redirect_is_one_clear_error(target: bytes, folder: Path) -> None:
    fail(lambda connection, head: respond(connection, status=b"302 Found", Location=target), folder)


@pytest.mark.parametrize("value", [b"\xb2", b"\xb9\xb2", b"1e5", b"+3", b"", b"Thu, 99 Foo"])
def test_a_retry_after_that_is_not_a_number_is_ignored(value: bytes, folder: Path) -> None:
    message = fail(
        lambda connection, head: respond(connection, status=b"503 No", Retry_After=value), folder
    )
    assert message == "HTTP 503, 5 times in a row"


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_huge_retry_after_is_an_error(digits: int, folder: Path) -> None:
    message = fail(
        lambda connection, head: respond(connection, status=b"429 No", Retry_After=b"9" * digits),
        folder,
    )
    assert message.startswith("HTTP 429, and the server asks to wait")


@pytest.mark.parametrize("digits", [330, 5000])
def test_a_huge_content_range_is_an_error(digits: int, folder: Path) -> None:
    def answer(connection: socket.socket, head: bytes) -> None:
        if (start := find_start(head)) is None:
            respond(connection, CONTENT[:9000], length=b"20000", **VALID)
        else:
            span = f"bytes {start}-{'9' * digits}/{'9' * digits}".encode()
            respond(connection, b"", b"206 Partial", b"", Content_Range=span, **VALID)

    assert "MiB more" in fail(answer, folder)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n",
        b"HTTP/9.9 -1 \xff\r\n\r\n",
        b"\x00\xff" * 50,
        b"",
    ],
)
def test_an_invalid_head_is_one_clear_error(head: bytes, folder: Path) -> None:
    fail(lambda connection, request: connection.sendall(head), folder)


def dribble(connection: socket.socket, pieces: Iterator[bytes], pause: float = 0.05) -> None:
    """Send pieces with a pause between them, until the client closes the connection."""
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(pause)


def endless(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


SLOW = {
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "intermediate responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n", b"y"),
    "length of a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "body of a redirect": (b"HTTP/1.1 302 F\r\nLocation: /x\r\nContent-Length: 9999\r\n\r\n", b"y"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_server_that_sends_a_byte_at_a_time_ends_the_download(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT", (0.3, 0.3))
    head, piece = SLOW[name]

    stop = threading.Event()

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        dribble(connection, itertools.takewhile(lambda _: not stop.is_set(), endless(piece)))

    start_time = time.monotonic()
    fail(answer, folder)
    stop.set()
    assert time.monotonic() - start_time < 15


def test_a_byte_and_then_silence_is_not_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "TIMEOUT", (1, 1.2))  # the first second is free

    def answer(connection: socket.socket, head: bytes) -> None:
        start = find_start(head) or 0
        span = f"bytes {start}-19999/20000".encode()
        status, body = b"206 P" if start else b"200 OK", CONTENT[start : start + 1]
        respond(connection, body, status, str(20000 - start).encode(), Content_Range=span, **VALID)
        time.sleep(2)

    assert "5 times in a row" in fail(answer, folder)


@pytest.mark.parametrize("size", [1, 700, 1600])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_few_bytes_per_connection_are_progress(folder: Path, size: int, chunked: bool) -> None:
    content = CONTENT[: 12 * size]

    def answer(connection: socket.socket, head: bytes) -> None:
        start = find_start(head) or 0
        status = b"206 Partial" if start else b"200 OK"
        headers = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}".encode()}
        headers |= VALID
        body = content[start : start + size]
        if chunked:
            end = b"0\r\n\r\n" if start + size >= len(content) else b""
            body = b"%x\r\n%b\r\n" % (len(body), body) + end
            respond(connection, body, status, b"", Transfer_Encoding=b"chunked", **headers)
        else:
            respond(connection, body, status, str(len(content) - start).encode(), **headers)

    with RawServer(answer) as server:
        path, _ = download(server.url + "/x.pth", folder, key="key", sha256=sha256(content))
        assert path.read_bytes() == content
        assert len(server.requests) == 12


@pytest.mark.parametrize("has_hash", [True, False])
def test_a_206_without_the_etag_is_only_trusted_with_a_hash(folder: Path, has_hash: bool) -> None:
    other = make_bytes(20_000, seed=1)
    starts = []

    def answer(connection: socket.socket, head: bytes) -> None:
        starts.append(start := find_start(head))
        if start is None and len(starts) == 1:
            respond(connection, CONTENT[:9000], length=b"20000", **VALID)
            reset(connection)
            return
        body = (CONTENT if has_hash else other)[start or 0 :]
        span = f"bytes {start or 0}-19999/20000".encode()
        respond(connection, body, b"200 OK" if start is None else b"206 P", Content_Range=span)

    with RawServer(answer) as server:
        expected = sha256(CONTENT) if has_hash else None
        path, _ = download(server.url + "/x.pth", folder, key="key", sha256=expected)
    assert path.read_bytes() == (CONTENT if has_hash else other)
    assert [start is None for start in starts] == (
        [True, False] if has_hash else [True, False, True]
    )


@pytest.mark.parametrize("surplus", [1, 100 << 20])
def test_more_bytes_than_the_range_has_are_not_stored(folder: Path, surplus: int) -> None:
    sent = []

    def answer(connection: socket.socket, head: bytes) -> None:
        start = find_start(head)
        if start is None:
            first = not sent
            respond(connection, CONTENT[:9000] if first else CONTENT, length=b"20000", **VALID)
            sent.append(0)
            return
        span = f"bytes {start}-19999/20000".encode()
        respond(
            connection,
            CONTENT[start:],
            b"206 P",
            b"%d" % (20_000 - start + surplus),
            Content_Range=span,
            **VALID,
        )
        with contextlib.suppress(OSError):
            for _ in range(0, surplus, 1 << 16):
                connection.sendall(bytes(1 << 16))
                sent.append(1 << 16)

    with RawServer(answer) as server:
        path, _ = download(server.url + "/x.pth", folder, key="key", sha256=sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert list_files(folder) == [path]
    assert sum(sent) < 50 << 20


def test_a_download_has_an_overall_time_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "MAX_DURATION", 1)

    def answer(connection: socket.socket, head: bytes) -> None:
        respond(connection, length=b"99999999", **VALID)
        dribble(connection, endless(bytes(5000)), pause=0.01)

    assert "not complete after" in fail(answer, folder)
    assert list_files(folder), "the next download resumes"


ODD_ETAGS = [
    b'"\x80\xff"', b'"a\tb"', b"unquoted", b'W/"a"', b'"' + b"a" * 999 + b'"', b'"../../x"'
]  # fmt: skip


@pytest.mark.parametrize("etag", ODD_ETAGS)
def test_an_odd_etag_never_stops_a_download(folder: Path, etag: bytes) -> None:
    def answer(connection: socket.socket, head: bytes) -> None:
        start = find_start(head) or 0
        body = CONTENT[start:] if len(server.requests) > 2 else CONTENT[start : start + 5000]
        span = f"bytes {start}-19999/20000".encode()
        status = b"206 P" if start else b"200 OK"
        respond(
            connection, body, status, str(20_000 - start).encode(), ETag=etag, Content_Range=span
        )

    with RawServer(answer) as server:
        path, _ = download(server.url + "/x.pth", folder, key="key", sha256=sha256(CONTENT))
    assert path.read_bytes() == CONTENT


def test_an_abandoned_generator_is_closed_in_its_thread() -> None:
    release, closed = threading.Event(), threading.Event()

    def make() -> Iterator[int]:
        try:
            yield 1
            release.wait()
            yield 2
        finally:
            closed.set()

    items = iterate_within(make(), 0.2)  # type: ignore[arg-type]
    assert next(items) == 1
    with pytest.raises(TimeoutError):
        next(items)
    release.set()
    assert closed.wait(5)
