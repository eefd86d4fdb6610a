"""Time limits of the page's connections, and requests that are not the usual HTTP."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from image_support import SCENES
from page_support import MODEL, PageServer, Visitor, serve_page

HOUSE = (SCENES / "house.jpg").read_bytes()
LIMIT = 1.5  # seconds
APP = f"""
import atexit, os, shutil, sys, tempfile
# Gradio uses this folder, because it is imported before the command sets another one.
atexit.register(shutil.rmtree, os.path.join(tempfile.gettempdir(), "gradio"), ignore_errors=True)
from swag_models.app import guard, protocol
protocol.MAX_IDLE_TIME = protocol.MAX_WRITE_TIME = guard.MAX_CALL_TIME = {LIMIT}
from swag_models.cli import main
sys.exit(main(["app", "--port", "0"]))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A page with short time limits."""
    with serve_page(tmp_path_factory.mktemp("protocol"), "-c", APP) as page:
        Visitor(page, "s").open()
        yield page


def connect(page: PageServer) -> socket.socket:
    address = urlsplit(page.url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def make_head(page: PageServer, line: str, *headers: str) -> bytes:
    """The head of a request."""
    lines = [f"{line} HTTP/1.1", f"Host: {urlsplit(page.url).netloc}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def drip(connection: socket.socket, content: bytes, seconds: float = 15) -> float:
    """Send bytes slowly; return the seconds until the other end closes the connection."""
    start = time.monotonic()
    connection.settimeout(0.1)
    position = 0
    while time.monotonic() - start < seconds:
        try:
            connection.sendall(content[position : position + 1])
            position += 1
            if connection.recv(65536) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - start


CALL = ("POST /gradio_api/run/predict", "Content-Type: application/json")
FORM = ("POST /gradio_api/upload", "Content-Type: multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("nothing", b""),
        ("head", b""),
        pytest.param("head after a response", b"HTTP/1.1 200", marks=pytest.mark.slow),
        ("body", b"HTTP/1.1 408"),
        pytest.param("chunks", b"HTTP/1.1 408", marks=pytest.mark.slow),
        pytest.param("form", b"HTTP/1.1 408", marks=pytest.mark.slow),
    ],
)
def test_an_idle_or_slow_client_is_disconnected(page: PageServer, kind: str, status: bytes) -> None:
    head = {
        "head after a response": make_head(page, "GET /robots.txt"),
        "body": make_head(page, *CALL, "Content-Length: 5000"),
        "chunks": make_head(page, *CALL, "Transfer-Encoding: chunked"),
        "form": make_head(page, *FORM, "Content-Length: 5000"),
    }.get(kind, b"")
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    head += form if kind == "form" else b""
    rest = {"nothing": b"", "chunks": b"1\r\na\r\n" * 100}.get(kind, b"a" * 1000)
    with connect(page) as connection:
        connection.sendall(head)
        if status == b"HTTP/1.1 200":
            assert connection.recv(10_000).startswith(status)
        start = time.monotonic()
        if status == b"HTTP/1.1 408":
            connection.settimeout(0.1)
            received = b""
            for position in range(len(rest)):
                try:
                    connection.sendall(rest[position : position + 1])
                    received = connection.recv(10_000)
                except TimeoutError:
                    continue
                break
            assert received.startswith(status)
        else:
            drip(connection, rest)
        assert time.monotonic() - start < 5 * LIMIT


@pytest.mark.slow  # waits for the time limit
def test_a_client_that_does_not_read_is_disconnected(page: PageServer) -> None:
    request = make_head(page, "GET /config")
    with connect(page) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        start = time.monotonic()
        closed = False
        while not closed and time.monotonic() - start < 10 * LIMIT:
            try:
                connection.send(request)  # until the buffers of both ends are full
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                closed = True
        assert closed


@pytest.mark.slow  # sends for seconds
def test_a_body_above_the_rate_is_read_to_its_end(page: PageServer) -> None:
    number = Visitor(page, "s").read_handlers()["select_model"]
    call = {"data": [MODEL], "fn_index": number, "session_hash": "s"}
    body = json.dumps(call).encode() + b" " * 60_000
    with connect(page) as connection:
        connection.sendall(make_head(page, *CALL, f"Content-Length: {len(body)}"))
        start = time.monotonic()
        for position in range(0, len(body), 6000):
            connection.sendall(body[position : position + 6000])
            time.sleep(0.25)
        assert time.monotonic() - start > LIMIT
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("GET /\xff\xfe", (), b"400"),
        ("GET /?\xff", (), b"400"),
        ("GET http://elsewhere.example/etc/passwd", (), b"404"),
        ("OPTIONS *", (), b"404"),
        ("CONNECT elsewhere.example:443", (), b"404"),
        ("TRACE /", (), b"404"),
        ("GET /static//etc/passwd", (), b"404"),
        ("GET /assets/./", (), b"404"),
        ("GET /static/..;/x", (), b"404"),
        ("GET /config", ("Host: elsewhere.example",), b"400"),
        ("GET /config", ("Content-Length: 1", "Content-Length: 2"), b"400"),
        ("GET /config", ("Transfer-Encoding: xchunked",), b"400"),
        ("GET /config", ("Content-Length : 1",), b"400"),
        ("GET /queue/join", ("Connection: Upgrade", "Upgrade: websocket"), b"404"),
    ],
)
def test_an_odd_request_leaves_one_line(
    page: PageServer, request_line: str, headers: tuple[str, ...], status: bytes
) -> None:
    before = len(page.read_log())
    head = make_head(page, request_line, *headers).decode()
    with connect(page) as connection:
        connection.sendall(head.encode("latin-1"))
        assert connection.recv(1000).split()[1] == status
    (line,) = page.read_log()[before:]
    assert line.isprintable()
    assert "Traceback" not in page.log.read_text("utf-8")


def test_a_websocket_is_answered_as_any_request(page: PageServer) -> None:
    before = page.read_log()
    with connect(page) as connection:
        connection.sendall(make_head(page, "GET /", "Connection: Upgrade", "Upgrade: websocket"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert page.read_log() == before


def test_many_uploads_at_once_are_each_stored_under_their_own_name(page: PageServer) -> None:
    names = ["../../a.png", "/etc/passwd", "a" * 250, "\u202ea.jpg", "con", "a.php", "x\x1b.png"]

    def upload(number: int) -> str:
        visitor = Visitor(page, f"s{number}")
        return visitor.upload(HOUSE + bytes([number]), names[number % len(names)])

    with ThreadPoolExecutor(20) as pool:
        paths = [Path(path) for path in pool.map(upload, range(100))]
    assert len(set(paths)) == len(paths)
    for number, path in enumerate(paths):
        assert path.is_relative_to(page.scratch)
        assert path.name in ("image", "image.jpg", "image.png")
        assert path.read_bytes() == HOUSE + bytes([number])
