"""Loopback servers for tests: an HTTP(S) server that misbehaves on request, and a forward proxy. Both record what is asked."""

from __future__ import annotations

import hashlib
import http.client
import io
import ipaddress
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
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

PIECE = 1 << 16  # bytes sent at a time
MODIFIED = format_datetime(datetime(2022, 1, 20, tzinfo=timezone.utc), usegmt=True)


@dataclass(frozen=True)
class Request:
    """A request as it arrived; header names are in lower case, `time` is monotonic."""

    method: str
    path: str
    headers: Mapping[str, str]
    time: float

    @property
    def start(self) -> int | None:
        """The first byte asked for, None if all are."""
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(span[1]) if span else None


@dataclass(frozen=True)
class Served:
    """What lies at a path; `etag` and `modified` are its validators, None to have none."""

    content: bytes | Path
    etag: str | None
    modified: str | None
    headers: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> BinaryIO:
        return (
            self.content.open("rb") if isinstance(self.content, Path) else io.BytesIO(self.content)
        )

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)


@dataclass(frozen=True)
class Fault:
    """How one answer departs from the right one."""

    status: int | None = None  # answer with this status and no content
    headers: Mapping[str, str] = field(default_factory=dict)  # in addition, or instead
    served: Served | None = None  # answer with this instead of what lies there
    cut: int | None = None  # close the connection after so many bytes of the body
    reset: bool = False  # when cutting, with RST instead of FIN
    longer: int = 0  # Content-Length says so many bytes more than there are
    ignore_range: bool = False  # 200 with everything, whatever is asked
    ignore_if_range: bool = False  # continue although the file has changed
    chunked: bool = False  # no Content-Length
    hold: int | None = None  # pause after so many bytes of the body until `Server.release` is set


class Server:
    """Serves `put` files on a free port of 127.0.0.1, from a thread, until the end of the `with` block.

    `faults[path]` are used up one by one, each by one request; after the last one the answers are right again.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.files: dict[str, Served] = {}
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
        self._http.server_close()  # waits for the threads that answer

    def put(
        self,
        path: str,
        content: bytes | Path,
        *faults: Fault,
        validators: bool = True,
        weak: bool = False,
    ) -> str:
        """Serve `content` at `path`, its first answers faulty; the URL."""
        etag = f'{"W/" if weak else ""}"{sha256(content)[:20]}"'
        self.files[path] = Served(
            content, etag if validators else None, MODIFIED if validators else None
        )
        self.faults[path] = list(faults)
        return self.url + path

    def put_hub(self, repo: str, name: str, content: bytes, commit: str) -> None:
        """Serve `content` as a file of a Hugging Face repository, on its `main` branch."""
        served = Served(content, f'"{sha256(content)}"', None, {"X-Repo-Commit": commit})
        for revision in ("main", commit):
            self.files[f"/{repo}/resolve/{revision}/{name}"] = served

    def asked(self, path: str) -> list[Request]:
        """The GET requests for `path` so far."""
        with self._arrival:
            return [
                request
                for request in self.requests
                if request.path == path and request.method == "GET"
            ]

    def starts(self, path: str) -> list[int | None]:
        """The first byte each GET request for `path` asked for, None where it asked for everything."""
        return [request.start for request in self.asked(path)]

    def wait_for(self, path: str, count: int, timeout: float = 30) -> None:
        """Return once `path` was asked for `count` times."""
        with self._arrival:
            assert self._arrival.wait_for(
                lambda: sum(r.path == path for r in self.requests) >= count, timeout
            )

    def record(self, handler: BaseHTTPRequestHandler) -> Fault:
        """Note a request; the fault that its answer takes."""
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._arrival:
            self.requests.append(Request(handler.command, handler.path, headers, time.monotonic()))
            self._arrival.notify_all()
            faults = self.faults.get(handler.path)
            return faults.pop(0) if faults else Fault()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
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
        condition = handler.headers.get("If-Range")
        current = (
            condition is None
            or condition in (served.etag, served.modified)
            or fault.ignore_if_range
        )
        if span and current and not fault.ignore_range:
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
        for piece in self._pieces(served, start, min(0, fault.longer), fault):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)
        if fault.cut is not None and fault.reset:
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            os.close(handler.connection.detach())
        elif fault.cut is None and fault.chunked:
            handler.wfile.write(b"0\r\n\r\n")

    def _pieces(self, served: Served, start: int, fewer: int, fault: Fault) -> Iterator[bytes]:
        """The body from byte `start` on, as far as the fault lets it go."""
        end = served.size + fewer if fault.cut is None else min(served.size, start + fault.cut)
        held = start + fault.hold if fault.hold is not None else None
        with served.open() as file:
            file.seek(start)
            while start < end:
                if held is not None and start >= held:
                    self.release.wait()
                    held = None
                    if self._closing.is_set():
                        return
                stop = min(start + PIECE, end, end if held is None else held)
                yield file.read(stop - start)
                start = stop


class Proxy(Server):
    """A forward proxy for http:// URLs: takes GET with an absolute URI, asks for it and passes the answer on."""

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
            while piece := response.read(PIECE):
                handler.wfile.write(piece)
        finally:
            connection.close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for all answers

    def __init__(self, owner: Server) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], OSError
        ):  # a client that went away is part of the tests
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTPServer

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.owner.answer(self)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _send_head(handler: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Connection", "close")
    handler.end_headers()


def sha256(content: bytes | Path) -> str:
    """SHA-256 in hex."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """(certificate of a new authority, certificate and key for 127.0.0.1 that it signed), as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.now(timezone.utc)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)])
        for each in ("test authority", "test server")
    )

    def build(
        subject: x509.Name, public: ec.EllipticCurvePublicKey, authority: bool
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
                critical=False,
            )
        )
        if authority:
            others = dict.fromkeys(
                ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                False,
            )
            usage = x509.KeyUsage(
                True,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
                **others,
            )
            builder = builder.add_extension(usage, critical=True)
        else:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return builder.sign(root_key, hashes.SHA256())

    pem = serialization.Encoding.PEM
    root, server = folder / "authority.pem", folder / "server.pem"
    root.write_bytes(build(root_name, root_key.public_key(), authority=True).public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server.write_bytes(private + build(name, key.public_key(), authority=False).public_bytes(pem))
    return root, server
