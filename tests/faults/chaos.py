"""A server of weight files that misbehaves in a named way, one way for each request."""

from __future__ import annotations

import gzip
import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from raw_server import RawServer, find_start, reset, respond

PAUSE = 1.5  # seconds of silence, more than the client's timeout


@dataclass(frozen=True)
class Call:
    """One request, and what the server has.

    Attributes:
        connection: of the client.
        start: offset of the first byte that the client asks for; None for the whole file.
        content: the file.
        other: another version of the file, of the same size.
        rng: the random numbers of this request.
    """

    connection: socket.socket
    start: int | None
    content: bytes
    other: bytes
    rng: random.Random

    def send(
        self,
        body: bytes | None = None,
        *,
        version: bytes | None = None,
        etag: bytes | None = b'"a"',
        status: bytes | None = None,
        **headers: bytes,
    ) -> None:
        """Send a response that is correct except for the arguments.

        Args:
            body: bytes to send instead of the missing ones.
            version: the file to send from.
            etag: validator; None for none.
            status: code and reason.
            **headers: further headers; `length` is Content-Length.
        """
        content = self.content if version is None else version
        start = self.start or 0
        if start >= len(content):
            span = f"bytes */{len(content)}".encode()
            return respond(self.connection, b"", b"416 No", Content_Range=span, ETag=etag or b"")
        if self.start is not None:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}".encode()
            headers = {"Content_Range": span, **headers}
        if etag is not None:
            headers = {"ETag": etag, **headers}
        status = status or (b"200 OK" if self.start is None else b"206 Partial")
        missing = content[start:]
        length = headers.pop("length", str(len(missing)).encode())
        respond(self.connection, missing if body is None else body, status, length, **headers)
        return None

    def some(self) -> bytes:
        """A random beginning of the missing bytes."""
        missing = self.content[self.start or 0 :]
        return missing[: self.rng.randrange(len(missing) + 1)]

    def chunked(self, body: bytes, end: bytes) -> None:
        """Send a response in one chunk."""
        body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        self.send(body + end, length=b"", Transfer_Encoding=b"chunked")

    def dribble(self, head: bytes, piece: bytes, pause: float = 0.05) -> None:
        """Send a head, then a piece again and again for a few seconds."""
        self.connection.sendall(head)
        for _ in range(round(3 / pause)):
            self.connection.sendall(piece)
            time.sleep(pause)

    def reset(self) -> None:
        """Send some bytes, then close the connection with RST."""
        self.send(self.some())
        reset(self.connection)

    def stall(self, body: bytes | None) -> None:
        """Send some bytes and nothing for a while; None sends not even a head."""
        if body is not None:
            self.send(body)
        time.sleep(PAUSE)


def redirect(target: bytes) -> Callable[[Call], None]:
    """A redirect to a URL."""
    return lambda call: respond(call.connection, b"", b"302 Found", Location=target)


def status(code: bytes, **headers: bytes) -> Callable[[Call], None]:
    """A response without a body."""
    return lambda call: respond(call.connection, b"", code, **headers)


def raw(data: bytes) -> Callable[[Call], None]:
    """Bytes that are not an HTTP response."""
    return lambda call: call.connection.sendall(data)


def flip(content: bytes) -> bytes:
    """The content with one bit changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


HEAD = b"HTTP/1.1 200 OK\r\n"
KINDS: dict[str, Callable[[Call], None]] = {
    "cut": lambda call: call.send(call.some()),
    "cut before the first byte": lambda call: call.send(b""),
    "reset": Call.reset,
    "closed without an answer": raw(b""),
    "stall": lambda call: call.stall(call.some()),
    "stall before the head": lambda call: call.stall(None),
    "a byte at a time": lambda call: call.dribble(
        HEAD + b'ETag: "a"\r\nContent-Length: 999999\r\n\r\n', call.content[:1]
    ),
    "a header byte at a time": lambda call: call.dribble(HEAD + b"X: ", b"y"),
    "a chunk length byte at a time": lambda call: call.dribble(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"
    ),
    "intermediate responses": lambda call: call.dribble(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints": raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
    "length too small": lambda call: call.send(
        length=str(len(call.content[call.start or 0 :]) // 2).encode()
    ),
    "length too large": lambda call: call.send(length=b"99999999"),
    "length absurd": lambda call: call.send(length=b"99999999999999"),
    "length of 330 digits": lambda call: call.send(length=b"9" * 330),
    "length of 5,000 digits": lambda call: call.send(length=b"9" * 5000),
    "length superscript": lambda call: call.send(length=b"\xb2"),
    "length negative": lambda call: call.send(length=b"-5"),
    "two lengths": lambda call: call.send(content_length=b"17"),
    "no length": lambda call: call.send(length=b""),
    "chunked": lambda call: call.chunked(call.content[call.start or 0 :], b"0\r\n\r\n"),
    "chunked, cut": lambda call: call.chunked(call.some(), b""),
    "chunk of a negative length": lambda call: call.chunked(call.some(), b"-5\r\nabc\r\n"),
    "chunk length of text": lambda call: call.chunked(call.some(), b"zz\r\nabc\r\n"),
    "chunk length of 5,000 digits": lambda call: call.chunked(call.some(), b"f" * 5000 + b"\r\n"),
    "chunked and a length": lambda call: call.send(Transfer_Encoding=b"chunked"),
    "more than the length": lambda call: call.send(
        call.content[call.start or 0 :] + b"garbage", Connection=b"keep-alive"
    ),
    "one bit wrong": lambda call: call.send(version=flip(call.content)),
    "captive portal": lambda call: respond(
        call.connection, b"<html>Sign in</html>" * 50, Content_Type=b"text/html"
    ),
    "empty": status(b"200 OK"),
    "gzip": lambda call: call.send(
        gzip.compress(call.content[call.start or 0 :]), length=b"", Content_Encoding=b"gzip"
    ),
    "gzip header without gzip": lambda call: call.send(Content_Encoding=b"gzip"),
    "gzip bomb": lambda call: call.send(
        gzip.compress(bytes(10**8), 1), length=b"", Content_Encoding=b"gzip"
    ),
    "unknown encoding": lambda call: call.send(Content_Encoding=b"\xb2"),
    "206 unasked": lambda call: call.send(status=b"206 Partial", Content_Range=b"bytes 5-9/10"),
    "206 of another place": lambda call: call.send(Content_Range=b"bytes 7-99/100"),
    "206 with a huge range": lambda call: call.send(
        Content_Range=f"bytes {call.start or 0}-{'9' * 330}/{'9' * 330}".encode()
    ),
    "206 with a superscript": lambda call: call.send(Content_Range=b"bytes \xb2-\xb3/\xb2"),
    "206 of another version": lambda call: call.send(version=call.other, etag=b'"b"'),
    "206 of another version without ETag": lambda call: call.send(version=call.other, etag=None),
    "206 of another version with the same ETag": lambda call: call.send(version=call.other),
    "200 for a range": lambda call: respond(call.connection, call.content, ETag=b'"a"'),
    "416": status(b"416 No", Content_Range=b"bytes */7"),
    "429": status(b"429 Slow down", Retry_After=b"0"),
    "503 with a long wait": status(b"503 No", Retry_After=b"3600"),
    "503 with a superscript": status(b"503 No", Retry_After=b"\xb2"),
    "503 with a wait of 400 digits": status(b"503 No", Retry_After=b"9" * 400),
    "503 with a wrong date": status(b"503 No", Retry_After=b"Thu, 99 Foo 99999 99:99:99 GMT"),
    "500": status(b"500 Error"),
    "404": status(b"404 Not Found"),
    "204": status(b"204 No Content"),
    "999": status(b"999 \xff\xfe"),
    "redirect to itself": redirect(b"/x.pth"),
    "redirect to a file": redirect(b"file:///etc/passwd"),
    "redirect to FTP": redirect(b"ftp://127.0.0.1/x"),
    "redirect to data": redirect(b"data:,abc"),
    "redirect to another address": redirect(b"http://127.0.0.2/x"),
    "redirect to 0.0.0.0": redirect(b"http://0.0.0.0/x"),
    "redirect to the package": redirect(b"package://vit_nano_hashtags.safetensors"),
    "redirect to a pipe": redirect(b"pipe:touch PWNED"),
    "redirect to a label of 300 characters": redirect(b"https://" + b"a" * 300 + b"/x"),
    "redirect of raw bytes": redirect(b"https://\xff\xfe\x80/x"),
    "redirect to half an address": redirect(b"https://[::1/x"),
    "redirect to a port of 6 digits": redirect(b"https://127.0.0.1:999999/x"),
    "redirect with an endless body": lambda call: call.dribble(
        b"HTTP/1.1 302 Found\r\nLocation: /x.pth\r\nContent-Length: 99999\r\n\r\n", b"y"
    ),
    "header flood": raw(HEAD + b"".join(b"X%d: y\r\n" % i for i in range(500)) + b"\r\n"),
    "header of 100 KB": raw(HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n"),
    "status line of 5,000 digits": raw(b"HTTP/1.1 " + b"9" * 5000 + b"\r\n\r\n"),
    "bytes that are not HTTP": raw(b"\x00\xff\x16\x03" * 100),
    "ETag with a path": lambda call: call.send(etag=b'"../../../../tmp/x"'),
    "ETag with NUL": lambda call: call.send(call.some(), etag=b'"a\x00b"'),
    "ETag of 1,000 characters": lambda call: call.send(call.some(), etag=b'"' + b"a" * 999 + b'"'),
    "ETag without quotes": lambda call: call.send(call.some(), etag=b"a"),
    "weak ETag": lambda call: call.send(call.some(), etag=b'W/"a"'),
}

# Without a hash this cannot be noticed: the server says that it is the same version.
NEEDS_HASH = {"206 of another version with the same ETag", "one bit wrong"}


class ChaosServer(RawServer):
    """Answers the next requests as `kinds` says, and later ones correctly.

    Args:
        content: the file.
        other: another version of the same size.
        kinds: names of `KINDS`, in the order of requests.
        seed: seed of the random numbers.
    """

    def __init__(self, content: bytes, other: bytes, kinds: list[str], seed: int) -> None:
        super().__init__(self._answer)
        self.content, self.other = content, other
        self.kinds = list(kinds)
        self._rng = random.Random(seed)
        self._turn = threading.Lock()

    def _answer(self, connection: socket.socket, head: bytes) -> None:
        with self._turn:
            kind = self.kinds.pop(0) if self.kinds else None
            rng = random.Random(self._rng.random())
        call = Call(connection, find_start(head), self.content, self.other, rng)
        (KINDS[kind] if kind else Call.send)(call)
