"""A server on loopback that sends the bytes that a test passes, valid HTTP or not."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable

Answer = Callable[[socket.socket, bytes], None]


class RawServer:
    """Accepts connections on a free port of 127.0.0.1, inside a `with` block.

    Args:
        answer: called in a thread with each connection and the head of its request; the connection
            is closed when it returns.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> RawServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            self.requests.append(head)
            self.answer(connection, head)


def respond(
    connection: socket.socket,
    body: bytes = b"",
    status: bytes = b"200 OK",
    length: bytes | None = None,
    **headers: bytes,
) -> None:
    """Send a response.

    Args:
        connection: from `RawServer`.
        body: bytes of the body.
        status: code and reason.
        length: Content-Length; by default that of the body, b"" for no such header.
        **headers: other headers, with _ for -.
    """
    lines = [b"HTTP/1.1 " + status]
    length = str(len(body)).encode() if length is None else length
    if length:
        lines.append(b"Content-Length: " + length)
    lines += [name.replace("_", "-").encode() + b": " + value for name, value in headers.items()]
    connection.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)


def find_start(head: bytes) -> int | None:
    """Return the offset of the first byte that a request asks for; None for the whole file."""
    match = re.search(rb"\r\nRange: bytes=(\d+)-", head, re.IGNORECASE)
    return int(match[1]) if match else None


def reset(connection: socket.socket) -> None:
    """Close a connection with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
