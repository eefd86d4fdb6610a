"""Loopback servers for tests: an HTTP(S) server with injectable faults, and a forward proxy.

Both record the requests.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

CHUNK_SIZE = 1 << 16  # bytes sent at a time
MODIFIED = format_datetime(datetime(2022, 1, 20, tzinfo=timezone.utc), usegmt=True)


@dataclass(frozen=True)
class Request:
    """A request; header names are in lower case, and `time` is from time.monotonic()."""

    method: str
    path: str
    headers: Mapping[str, str]
    time: float

    @property
    def start(self) -> int | None:
        """Offset of the first requested byte; None if the whole file is requested."""
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(span[1]) if span else None


@dataclass(frozen=True)
class ServedFile:
    """The file at a path, with its validators: ETag and Last-Modified, or None."""

    content: bytes | Path
    etag: str | None
    modified: str | None
    headers: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> BinaryIO:
        """The content as a binary stream."""
        return (
            self.content.open("rb") if isinstance(self.content, Path) else io.BytesIO(self.content)
        )

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Fault:
    """How a response differs from the correct one."""

    status: int | None = None  # respond with this status and no content
    headers: Mapping[str, str] = field(default_factory=dict)  # added, or replacing others
    served: ServedFile | None = None  # respond with this file instead
    cut: int | None = None  # close the connection after this number of bytes of the body
    reset: bool = False  # when cutting, with RST instead of FIN
    longer: int = 0  # number of bytes by which Content-Length is too large
    ignore_range: bool = False  # respond to a range request with 200 and the whole file
    ignore_if_range: bool = False  # respond with 206 although the file has changed
    chunked: bool = False  # no Content-Length
    hold: int | None = (
        None  # pause after this number of bytes of the body until `Server.release` is set
    )


class Server:
    """Serves files on a free port of 127.0.0.1 from a thread, inside a `with` block.

    Each request for a path uses up the first of `faults[path]`; when none are left, responses are
    correct.

    Args:
        certificate: PEM file of certificate and key, for https.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.files: dict[str, ServedFile] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.release = threading.Event()
        self._arrival = threading.Condition()
        self._closing = threading.Event()
        self._http = _HTTPServer(self)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}
        )

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        self.release.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()  # waits for the threads of requests

    def put(
        self,
        path: str,
        content: bytes | Path,
        *faults: Fault,
        validators: bool = True,
        weak: bool = False,
    ) -> str:
        """Serve `content` at `path`, with faults in the first responses.

        Args:
            path: path of the URL, beginning with /.
            content: bytes, or a file that contains them.
            faults: faults of the first responses, in order.
            validators: whether to send ETag and Last-Modified.
            weak: whether the ETag is a weak one.

        Returns:
            The URL.
        """
        etag = f'{"W/" if weak else ""}"{sha256(content)[:20]}"'
        self.files[path] = ServedFile(
            content, etag if validators else None, MODIFIED if validators else None
        )
        self.faults[path] = list(faults)
        return self.url + path

    def put_hub(self, repo: str, name: str, content: bytes, commit: str) -> None:
        """Serve `content` as a file on the `main` branch of a Hugging Face repository."""
        served = ServedFile(content, f'"{sha256(content)}"', None, {"X-Repo-Commit": commit})
        for revision in ("main", commit):
            self.files[f"/{repo}/resolve/{revision}/{name}"] = served

    def list_requests(self, path: str) -> list[Request]:
        """List the GET requests for `path` so far."""
        with self._arrival:
            return [
                request
                for request in self.requests
                if request.path == path and request.method == "GET"
            ]

    def list_start_bytes(self, path: str) -> list[int | None]:
        """List the offset that each GET request for `path` starts at, None for the whole file."""
        return [request.start for request in self.list_requests(path)]

    def wait_for(self, path: str, count: int, timeout: float = 30) -> None:
        """Return once `path` was requested `count` times."""
        with self._arrival:
            assert self._arrival.wait_for(
                lambda: sum(r.path == path for r in self.requests) >= count, timeout
            )

    def record(self, handler: BaseHTTPRequestHandler) -> Fault:
        """Record a request; return the fault of its response."""
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._arrival:
            self.requests.append(Request(handler.command, handler.path, headers, time.monotonic()))
            self._arrival.notify_all()
            faults = self.faults.get(handler.path)
            return faults.pop(0) if faults else Fault()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Respond to a request, correctly or with a fault."""
        fault = self.record(handler)
        served = fault.served or self.files.get(handler.path)
        if fault.status is not None or served is None:
            code = {"X-Error-Code": "EntryNotFound"} if "/resolve/" in handler.path else {}
            _send_head(
                handler, fault.status or 404, {"Content-Length": "0", **code, **fault.headers}
            )
            return
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            **served.headers,
        }
        if served.etag:
            headers["ETag"] = served.etag
        if served.modified:
            headers["Last-Modified"] = served.modified
        start, status = 0, 200
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        if_range = handler.headers.get("If-Range")
        unchanged = if_range in (None, served.etag, served.modified) or fault.ignore_if_range
        if span and unchanged and not fault.ignore_range:
            start, status = int(span[1]), 206
            if start >= served.size:
                _send_head(
                    handler,
                    416,
                    {"Content-Length": "0", "Content-Range": f"bytes */{served.size}", **headers},
                )
                return
            headers["Content-Range"] = f"bytes {start}-{served.size - 1}/{served.size}"
        length = {"Content-Length": str(served.size - start + fault.longer)}
        _send_head(
            handler,
            status,
            headers
            | ({"Transfer-Encoding": "chunked"} if fault.chunked else length)
            | dict(fault.headers),
        )
        if handler.command == "HEAD":
            return
        for chunk in self._read_chunks(served, start, min(0, fault.longer), fault):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if fault.chunked else chunk)
        if fault.cut is not None and fault.reset:
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            os.close(handler.connection.detach())
        elif fault.cut is None and fault.chunked:
            handler.wfile.write(b"0\r\n\r\n")

    def _read_chunks(
        self, served: ServedFile, start: int, fewer: int, fault: Fault
    ) -> Iterator[bytes]:
        """Yield the body from byte `start` on, until the end or the fault."""
        end = served.size + fewer if fault.cut is None else min(served.size, start + fault.cut)
        hold_at = start + fault.hold if fault.hold is not None else None
        with served.open() as file:
            file.seek(start)
            while start < end:
                if hold_at is not None and start >= hold_at:
                    self.release.wait()
                    hold_at = None
                    if self._closing.is_set():
                        return
                stop = min(start + CHUNK_SIZE, end, end if hold_at is None else hold_at)
                yield file.read(stop - start)
                start = stop


class Proxy(Server):
    """A forward proxy for http:// URLs, which takes GET requests with an absolute URI."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.record(handler)
        target = urlsplit(handler.path)
        connection = http.client.HTTPConnection(
            target.hostname or "", target.port or 80, timeout=30
        )
        try:
            connection.request(
                handler.command, target.path, headers={**handler.headers, "Via": "1.1 test"}
            )
            response = connection.getresponse()
            _send_head(handler, response.status, dict(response.getheaders()))
            while chunk := response.read(CHUNK_SIZE):
                handler.wfile.write(chunk)
        finally:
            connection.close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for all responses

    def __init__(self, owner: Server) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _RequestHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that disconnect are part of the tests.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _RequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTPServer

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.owner.answer(self)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def _send_head(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str]) -> None:
    """Send the status line and the headers."""
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Connection", "close")
    handler.end_headers()


def sha256(content: bytes | Path) -> str:
    """Return the SHA-256 in hex."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
