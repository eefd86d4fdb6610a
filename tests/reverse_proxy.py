"""A small reverse proxy on this machine that serves another server under a path of its own."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

# of one connection, not of the message
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


class ReverseProxy(ThreadingHTTPServer):
    """Passes requests below a path on, and answers others with 404.

    Attributes:
        backend: URL of the other server, without a path.
        path: for example "/demo".
        strips: whether the other server receives paths without `path`.
        keeps_host: whether the other server receives the Host header of the browser. Otherwise it
            is the backend's, and the browser's is in X-Forwarded-Host.
        requests: the paths that were requested.
    """

    daemon_threads = True

    def __init__(
        self,
        backend: str,
        path: str,
        strips: bool = True,
        keeps_host: bool = True,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = urlsplit(backend).netloc
        self.path = path
        self.strips = strips
        self.keeps_host = keeps_host
        self.requests: list[str] = []

    def handle_error(self, *_: object) -> None:
        """Ignore connections that a browser closes early."""

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    server: ReverseProxy
    protocol_version = "HTTP/1.0"  # the end of a connection ends a response

    def pass_on(self) -> None:
        proxy = self.server
        proxy.requests.append(self.path)
        if not self.path.startswith(f"{proxy.path}/"):
            self.send_error(404)
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        if not proxy.keeps_host:
            headers = {**headers, "X-Forwarded-Host": headers["Host"], "Host": proxy.backend}
        body = self.rfile.read(int(headers.get("Content-Length", 0)))
        path = self.path.removeprefix(proxy.path) if proxy.strips else self.path
        with closing(http.client.HTTPConnection(proxy.backend, timeout=60)) as connection:
            connection.request(self.command, path, body, headers)
            with closing(connection.getresponse()) as response:
                self.send_on(response)

    do_GET = do_HEAD = do_POST = pass_on  # noqa: N815

    def send_on(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        while part := response.read1(1 << 16):  # also the parts of an event stream, as they arrive
            self.wfile.write(part)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_below(backend: str, path: str, **options: object) -> Iterator[ReverseProxy]:
    """Run a reverse proxy; the options are those of `ReverseProxy`."""
    proxy = ReverseProxy(backend, path, **options)  # type: ignore[arg-type]
    thread = Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
