"""Shards over HTTP: redirects, certificate authorities and time limits, on loopback servers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from certificates import make_certificates
from image_support import write_tar
from raw_server import RawServer, respond
from server import Fault, Server

from swag_models.errors import ConfigError, ShardError
from swag_models.hub import download
from swag_models.hub.environment import CA_VARIABLES
from swag_models.recipe.data import shards, urls
from swag_models.recipe.data.manifest import read_manifest
from swag_models.recipe.data.shards import read_shard

MEMBERS = {"a.jpg": b"image", "a.json": b'{"classes": [1]}'}


@pytest.fixture
def shard(tmp_path: Path) -> bytes:
    return write_tar(tmp_path / "x.tar", MEMBERS).read_bytes()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (download, urls):
        monkeypatch.setattr(module, "TIMEOUT", (0.2, 0.4))
    monkeypatch.setattr("random.uniform", lambda low, high: 0)
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The certificate of a private authority, and that of a server that it signed."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(certificates: tuple[Path, Path]) -> Iterator[Server]:
    with Server(certificates[1]) as server:
        yield server


def count_samples(url: str) -> int:
    return len(list(read_shard(url)))


def fail(url: str) -> str:
    """The reason why a shard cannot be read; it is known within 5 seconds."""
    start_time = time.monotonic()
    with pytest.raises(ShardError) as caught:
        list(read_shard(url))
    assert time.monotonic() - start_time < 5
    message = str(caught.value)
    assert message.isprintable()
    return message.removeprefix(f"shard {url} cannot be read: ")


def redirect(target: str, status: int = 302) -> Fault:
    return Fault(status=status, headers={"Location": target})


@pytest.mark.parametrize("variable", [None, *CA_VARIABLES[:3]])
def test_a_private_authority(
    variable: str | None,
    shard: bytes,
    secure: Server,
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = secure.put("/x.tar", shard)
    if variable:
        monkeypatch.setenv(variable, str(certificates[0]))
        assert count_samples(url) == 1
        assert count_samples(url.replace("https", "HTTPS")) == 1
    else:
        assert fail(url).startswith("TLS: [SSL: CERTIFICATE_VERIFY_FAILED]")
        assert fail(url).endswith("for a private certificate authority set REQUESTS_CA_BUNDLE")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_https_is_not_redirected_to_http(
    status: int,
    shard: bytes,
    secure: Server,
    server: Server,
    certificates: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates[0]))
    plain = server.put("/y.tar", shard)
    assert fail(secure.put("/x.tar", b"", redirect(plain, status))) == (
        f"a redirect to {plain} is not allowed: it must stay on https"
    )
    assert not server.requests
    # To https, and from http to https, they are followed; also when they are relative.
    secure.put("/y.tar", shard)
    assert count_samples(secure.put("/x.tar", b"", redirect("/y.tar", status))) == 1
    assert count_samples(server.put("/x.tar", b"", redirect(secure.url + "/y.tar", status))) == 1


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://localhost/x", "data:,x", "http://192.0.2.1/x", "//[x"]
)
def test_other_redirects_are_not_followed(target: str, server: Server) -> None:
    assert "not allowed: it must stay on https" in fail(
        server.put("/x.tar", b"", redirect(target))
    ) or target.startswith("//")


def test_a_loop_of_redirects_ends(server: Server) -> None:
    url = server.put("/x.tar", b"", *[redirect("/x.tar")] * 99)
    assert fail(url) == "more than 10 redirects"
    assert len(server.requests) == 11


def endless(connection: socket.socket, piece: bytes, pause: float = 0) -> None:
    """Send the same bytes until the client closes the connection."""
    while True:
        connection.sendall(piece)
        time.sleep(pause)


def test_the_body_of_a_redirect_is_not_read(shard: bytes, server: Server) -> None:
    target = server.put("/x.tar", shard).encode()

    def answer(connection: socket.socket, _: bytes) -> None:
        respond(connection, status=b"302 Found", length=b"", Location=target)
        endless(connection, bytes(1 << 16))

    with RawServer(answer) as raw:
        assert count_samples(raw.url + "/a.tar") == 1


SLOW: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "body": (
        lambda connection: (
            respond(connection, length=b"100000"),
            endless(connection, b"a", 0.05),
        ),
        "the download failed: slower than 1024 bytes per second",
    ),
    "chunks": (
        lambda connection: (
            respond(connection, length=b"", Transfer_Encoding=b"chunked"),
            endless(connection, b"1\r\na\r\n", 0.05),
        ),
        "the download failed: slower than 1024 bytes per second",
    ),
    "length of a chunk": (
        lambda connection: (
            respond(connection, length=b"", Transfer_Encoding=b"chunked"),
            endless(connection, b"0", 0.05),
        ),
        "the download failed: the connection broke (",
    ),
    "header": (
        lambda connection: (
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: "),
            endless(connection, b"a", 0.05),
        ),
        "",
    ),
    "intermediate responses": (
        lambda connection: endless(connection, b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
        "",
    ),
    "nothing": (lambda connection: time.sleep(2), ""),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_server_that_is_too_slow_is_an_error(kind: str) -> None:
    send, reason = SLOW[kind]
    with RawServer(lambda connection, _: send(connection)) as raw:
        assert fail(raw.url + "/x.tar").startswith(reason)


def test_a_slow_reader_is_not_a_slow_server(shard: bytes, server: Server) -> None:
    """Training may wait between two samples for longer than the time over which a rate counts."""
    server.put("/x.tar", shard)
    with (
        RawServer(
            lambda connection, _: [
                respond(connection, length=b"%d" % len(shard)),
                [
                    (connection.sendall(shard[at : at + 512]), time.sleep(0.03))
                    for at in range(0, len(shard), 512)
                ],
            ]
        ) as raw,
        closing(urls.open_stream(raw.url + "/x.tar")) as stream,
    ):
        content = stream.read(1)
        time.sleep(0.6)
        content += stream.read(1)
        time.sleep(0.6)
        assert content + stream.read() == shard


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_cut_off_is_an_error(chunked: bool, shard: bytes, server: Server) -> None:
    for cut in (0, 100, len(shard) - 1):
        reason = fail(server.put("/x.tar", shard, Fault(cut=cut, chunked=chunked)))
        assert reason.startswith("the download failed: ") or (chunked and cut == 0)


def test_failures_that_may_pass_are_retried(shard: bytes, server: Server) -> None:
    busy = [Fault(status=status) for status in (503, 429, 500)]
    assert count_samples(server.put("/x.tar", shard, *busy)) == 1
    assert fail(server.put("/y.tar", shard, *busy * 2)) == "HTTP 429, 5 times in a row"
    patient = Fault(status=503, headers={"Retry-After": "99999"})
    assert fail(server.put("/z.tar", shard, patient)) == (
        "HTTP 503, and the server asks to wait 99999 s"
    )
    assert fail(server.put("/gone.tar", b"", Fault(status=404))) == "HTTP 404 Not Found"
    assert fail(server.put("/part.tar", shard, Fault(status=206))) == "HTTP 206 Partial Content"


def test_a_stream_without_an_end_is_an_error(shard: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        respond(connection, shard, length=b"")
        with contextlib.suppress(OSError):
            endless(connection, bytes(1 << 16))

    monkeypatch.setattr(shards, "MAX_PADDING", 4 << 20)
    monkeypatch.setattr(urls, "MAX_WHOLE_SIZE", 4 << 20)
    with RawServer(answer) as raw:
        assert fail(raw.url + "/x.tar").endswith("does not end after its archive; pack it again")
        with pytest.raises(ConfigError, match="cannot be read: it has more than 4,194,304 bytes"):
            read_manifest(raw.url + "/manifest.json")
    assert fail("pipe:cat /dev/zero").endswith("does not end after its archive; pack it again")
