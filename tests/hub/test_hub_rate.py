"""Downloads through the Hub's client that are too slow: bounded as this library's own are."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fetch_support import isolate, list_files, make_safetensors
from hub_support import run
from raw_server import RawServer, respond
from server import sha256

WEIGHTS = make_safetensors(200_000)
COMMIT, NAME = b"1" * 40, "model.safetensors"
FETCH = f"""
import json, sys, threading, time
from swag_models.errors import SwagModelsError
from swag_models.hub import hub_client, huggingface
hub_client.TIMEOUT = (1, 1.5)
start = time.monotonic()
try:
    path = huggingface.download_file("org/tiny", "main", {NAME!r}, sys.argv[1] == "bar")
    print(json.dumps([str(path), "", time.monotonic() - start]))
except SwagModelsError as error:
    print(json.dumps([type(error).__name__, str(error), time.monotonic() - start]))
"""
HEADERS = {
    "ETag": b'"' + sha256(WEIGHTS).encode() + b'"',
    "X_Repo_Commit": COMMIT,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of the client."""
    isolate(tmp_path, monkeypatch)
    return tmp_path / "hf" / "hub"


def drip(connection: socket.socket, content: bytes, pause: float = 0.05) -> None:
    """Send one byte after the other."""
    for position in range(len(content)):
        connection.sendall(content[position : position + 1])
        time.sleep(pause)


def drip_body(connection: socket.socket) -> None:
    respond(connection, length=b"%d" % len(WEIGHTS), **HEADERS)
    drip(connection, WEIGHTS)


def drip_chunks(connection: socket.socket) -> None:
    respond(connection, length=b"", Transfer_Encoding=b"chunked", **HEADERS)
    while True:
        drip(connection, b"1\r\na\r\n", 0.2)


def drip_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    drip(connection, b"a" * 10_000)


def send_informational(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.2)


def ask_to_wait(connection: socket.socket) -> None:
    respond(connection, status=b"429 Too Many Requests", Retry_After=b"1000000")


def serve(slow: Callable[[socket.socket], None]) -> RawServer:
    """A Hub that answers requests for metadata at once, and sends files slowly."""

    def answer(connection: socket.socket, head: bytes) -> None:
        if head.startswith(b"HEAD"):
            respond(connection, length=b"%d" % len(WEIGHTS), **HEADERS)
        elif b"agent-harnesses" in head:
            respond(connection, b"{}")
        else:
            slow(connection)

    return RawServer(answer)


@pytest.mark.parametrize(
    "slow",
    [
        drip_body,
        drip_headers,
        *(
            pytest.param(slow, marks=pytest.mark.slow)
            for slow in (drip_chunks, send_informational, ask_to_wait)
        ),
    ],
)
def test_a_slow_file_of_the_hub_is_an_error_after_a_limited_time(
    slow: Callable[[socket.socket], None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(slow) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        (kind, message, seconds), errors = run(FETCH, "bar" if slow is drip_body else "")
    assert kind == "UnreachableError"
    reason = "HTTP 429" if slow is ask_to_wait else "slower than 1024 bytes per second"
    assert message.startswith(f"the Hub cannot be reached ({reason})")
    assert seconds < 6
    assert errors == ""
    assert list_files(cache / "models--org--tiny" / "blobs") == []


@pytest.mark.slow  # sends for 5 seconds
def test_a_file_above_the_rate_is_read_to_its_end(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_slowly(connection: socket.socket) -> None:
        respond(connection, length=b"%d" % len(WEIGHTS), **HEADERS)
        for start in range(0, len(WEIGHTS), 8000):  # at 40,000 bytes per second
            connection.sendall(WEIGHTS[start : start + 8000])
            time.sleep(0.2)

    with serve(send_slowly) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        (path, _, seconds), errors = run(FETCH, "")
    assert Path(path).read_bytes() == WEIGHTS, errors
    assert seconds > 4
