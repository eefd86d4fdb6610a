"""Access to the page: host names, sessions, files, passwords, and hostile requests.

A hostile request is answered with an error and leaves one line in the log.
"""

import io
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from image_support import SCENES, predict_labels
from page_support import APP, MODEL, PageServer, Visitor, serve_page

from swag_models.app import is_loopback
from swag_models.app.uploads import Uploads

HOUSE = (SCENES / "house.jpg").read_bytes()
SECRET_LABEL = predict_labels(SCENES / "sailboat.jpg")[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A page that only this machine can reach."""
    with serve_page(tmp_path_factory.mktemp("server"), *APP) as page:
        yield page


@pytest.fixture(scope="module")
def handlers(page: PageServer) -> dict[str, int]:
    return Visitor(page, "reader").read_handlers()


@pytest.fixture
def visitor(page: PageServer, request: pytest.FixtureRequest) -> Visitor:
    """A browser that has opened the page."""
    visitor = Visitor(page, request.node.name[:100])
    visitor.open()
    return visitor


def classify(visitor: Visitor, handlers: dict[str, int], image: Any) -> str:
    """The response to a request to classify an image."""
    return visitor.call(handlers["classify"], image, MODEL, "").text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_only_this_machine_reaches_a_loopback_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_other_machines_may_reach_other_addresses(host: str) -> None:
    assert not is_loopback(host)


def test_a_page_for_this_machine_accepts_only_its_own_host_names(page: PageServer) -> None:
    for name in ("127.0.0.1", "localhost:80", "LOCALHOST"):
        assert Visitor(page, "s").get("", headers={"Host": name}).status_code == 200
    for name in ("elsewhere.example", "[::1]:80", "127.0.0.1.example", "a b", "127.0.0.1@x"):
        assert Visitor(page, "s").get("", headers={"Host": name}).status_code == 400


@pytest.mark.parametrize("origin", ["http://localhost:1", "https://elsewhere.example", "null"])
def test_another_website_cannot_send_requests(
    visitor: Visitor, handlers: dict[str, int], origin: str
) -> None:
    visitor.client.headers["Origin"] = origin
    response = visitor.call(handlers["select_model"], MODEL)
    assert response.status_code == 403
    assert "Access-Control-Allow-Origin" not in response.headers
    visitor.client.headers["Origin"] = visitor.page.url.rstrip("/")
    assert visitor.call(handlers["select_model"], MODEL).status_code == 200


def test_a_file_is_used_only_by_the_session_that_uploaded_it(
    visitor: Visitor, handlers: dict[str, int]
) -> None:
    page = visitor.page
    path = visitor.upload(HOUSE, "house.jpg")
    same_browser = Visitor(page, "another tab", visitor.client)
    other_browser, no_browser = Visitor(page, visitor.session), Visitor(page, visitor.session)
    other_browser.open()
    for other in (other_browser, no_browser):
        assert "is not an uploaded image" in classify(other, handlers, {"path": path})
        assert other.get(f"gradio_api/file={path}").status_code == 403
    assert predict_labels(SCENES / "house.jpg")[0] in classify(visitor, handlers, {"path": path})
    assert "is not an uploaded image" in classify(same_browser, handlers, {"path": path})
    assert visitor.get(f"gradio_api/file={path}").content == HOUSE


def test_a_client_without_cookies_can_use_its_own_file_only(
    page: PageServer, handlers: dict[str, int]
) -> None:
    first, second = Visitor(page, "first"), Visitor(page, "second")
    path = first.upload(HOUSE)
    assert predict_labels(SCENES / "house.jpg")[0] in classify(first, handlers, {"path": path})
    assert "is not an uploaded image" in classify(second, handlers, {"path": path})
    assert first.upload(HOUSE) != path  # which cannot be guessed from the content


def test_no_other_file_of_the_machine_is_opened(
    visitor: Visitor, handlers: dict[str, int], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(SCENES / "sailboat.jpg", secret)
    uploaded = visitor.upload(HOUSE)
    folder = Path(uploaded).parent
    (folder / "link.png").symlink_to(secret)
    shutil.copy(secret, folder / "copy.png")
    os.mkfifo(folder / "fifo.png")
    paths = [
        *(secret, f"{secret}x", f"{folder}/../../../{secret}", f"{folder}/link.png"),
        *(f"{folder}/copy.png", f"{folder}/fifo.png", folder, "/dev/zero", f"{uploaded}\0"),
        *(os.path.relpath(secret), f"file://{secret}", f"{folder}//image.jpg", "", "~/x.png"),
        *("/proc/self/environ", "/etc/passwd", f"http://127.0.0.1/{secret}", "x" * 4000),
    ]
    for path in map(str, paths):
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}, {"url": f"file://{secret}"}):
            text = classify(visitor, handlers, {"path": path, "orig_name": "a", **meta})
            assert "is not an uploaded image: upload the file, then choose it" in text, path
            assert SECRET_LABEL not in text
        assert visitor.get(f"gradio_api/file={path}").status_code in (403, 404), path
    assert classify(visitor, handlers, {"path": uploaded}).count("<li") == 5


def test_an_upload_that_was_replaced_is_not_opened(
    visitor: Visitor, handlers: dict[str, int], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.jpg"
    shutil.copy(SCENES / "sailboat.jpg", secret)
    path = Path(visitor.upload(HOUSE))
    for replace in (lambda: path.symlink_to(secret), lambda: os.mkfifo(path)):
        path.unlink()
        replace()
        assert "is not an uploaded image" in classify(visitor, handlers, {"path": str(path)})


@pytest.mark.parametrize(
    "change",
    [
        *({"session_hash": None}, {"session_hash": 5}, {"session_hash": "x" * 200}),
        *({"fn_index": None}, {"fn_index": 999}, {"fn_index": True}, {"fn_index": 10**30}),
        *({"data": None}, {"data": {}}, {"data": []}, {"data": [None] * 4}),
        *({"data": [image, MODEL, ""]} for image in ([], "/etc/passwd", {"path": 5})),
        *({"data": [None, model, ""]} for model in ("vit_h15", None, [MODEL])),
        *({"data": [None, MODEL, model]} for model in ("vit_h15", None, [MODEL])),
        {"data": [{"path": "\ud800"}, MODEL, ""]},
    ],
)
def test_a_request_that_the_page_cannot_send_leaves_one_line(
    visitor: Visitor, handlers: dict[str, int], change: dict[str, Any]
) -> None:
    before = len(visitor.page.read_log())
    fields = {"data": [None, MODEL, ""], "fn_index": handlers["classify"], **change}
    body = {"session_hash": "s", **fields}
    url = visitor.page.url + "gradio_api/run/predict"
    response = visitor.client.post(url, json=body, timeout=60)
    assert 400 <= response.status_code < 500
    check_refusal(visitor.page, before, response.json()["error"])


@pytest.mark.parametrize("value", ["1", True, 1e300, 10**400, float("nan"), float("inf"), [], {}])
def test_a_number_outside_of_the_slider_is_refused(
    visitor: Visitor, handlers: dict[str, int], value: Any
) -> None:
    before = len(visitor.page.read_log())
    body = {"data": [None, value, "mean", 0.5], "session_hash": "s"}
    content = json.dumps({**body, "fn_index": handlers["show_saliency"]})
    url = visitor.page.url + "gradio_api/run/predict"
    headers = {"Content-Type": "application/json"}
    response = visitor.client.post(url, content, headers=headers, timeout=60)
    assert 400 <= response.status_code < 500
    check_refusal(visitor.page, before, response.json()["error"])


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        ("[" * 100_000, "application/json", 413),
        ("[" * 20_000 + "]" * 20_000, "application/json", 400),
        ("", "application/json", 400),
        ("null", "application/json", 422),
        (b"\xff\xfe{", "application/json", 400),
        ("1" * 5000, "application/json", 400),
        ('{"fn_index": 0, "data": [], "session_hash": "s"}', "text/plain", 415),
    ],
)
def test_a_body_that_is_not_json_leaves_one_line(
    visitor: Visitor, content: str | bytes, content_type: str, status: int
) -> None:
    check_refused_body(visitor, "run/predict", content, content_type, status)


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"--x\r\n", "multipart/form-data", 400),
        (b"nonsense", "multipart/form-data; boundary=x", 400),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 422),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (bytes(65 << 20), "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
            + bytes(65 << 20),
            "multipart/form-data; boundary=x",
            413,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + bytes(2 << 20),
            "multipart/form-data; boundary=x",
            400,
        ),
    ],
)
def test_an_upload_that_is_not_a_form_with_files_leaves_one_line(
    visitor: Visitor, content: bytes, content_type: str, status: int
) -> None:
    check_refused_body(visitor, "upload?upload_id=1", content, content_type, status)


@pytest.mark.parametrize(
    "path",
    [
        *("gradio_api/proxy=http://127.0.0.1:1/", "gradio_api/deep_link?session_hash=s"),
        *("gradio_api/file=/etc/passwd", "gradio_api/file=http://127.0.0.1:1/", "gradio_api/file="),
        *("gradio_api/queue/data?session_hash=s", "gradio_api/dev/reload", "monitoring"),
        *("gradio_api/stream/a/b/1/playlist.m3u8", "assets/%00", "static/%2e%2e/%2e%2e/x"),
        *("gradio_api/heartbeat/%0a", "gradio_api/runs", "login", f"assets/{'a' * 3000}"),
        "\x1b[31m",
    ],
)
def test_an_address_that_the_page_does_not_use_leaves_one_line(visitor: Visitor, path: str) -> None:
    before = len(visitor.page.read_log())
    response = visitor.get(path)
    assert response.status_code in (403, 404)
    check_refusal(visitor.page, before, response.json()["error"])


def test_a_body_where_none_is_expected_is_ignored(visitor: Visitor) -> None:
    before = len(visitor.page.read_log())
    for path in ("", "config", "theme.css", "gradio_api/upload_progress?upload_id=1"):
        assert visitor.get(path, data=bytes(300_000)).status_code == 200
    address = urlsplit(visitor.page.url)
    head = f"GET /gradio_api/heartbeat/s HTTP/1.1\r\nHost: {address.netloc}\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: 300000\r\n\r\n".encode() + bytes(300_000))
        assert b"200 OK" in connection.recv(1000)
    assert visitor.open().status_code == 200
    assert visitor.page.read_log()[before:] == []


def test_an_upload_that_is_cancelled_leaves_nothing(visitor: Visitor) -> None:
    before, files = visitor.page.read_log(), set(visitor.page.scratch.rglob("*"))
    address = urlsplit(visitor.page.url)
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 3000000"
    form = "\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    part = 'Content-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall((head + form + part).encode() + bytes(2_000_000))
    assert visitor.open().status_code == 200
    assert visitor.page.read_log() == before
    assert set(visitor.page.scratch.rglob("*")) == files


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_upload_to_a_full_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(tmp_path)
    open_file = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: open_file(Path("/dev/full"), "wb"))
    with pytest.raises(OSError, match="No space left"):
        uploads.add(io.BytesIO(bytes(1 << 20)), "a.png", "")
    assert list(tmp_path.iterdir()) == []
    assert uploads.files == {}


def test_malformed_http_leaves_one_line(page: PageServer) -> None:
    Visitor(page, "s").open()  # the server has started
    before = len(page.read_log())
    address = urlsplit(page.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(b"GET " + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n")
        assert b"400 Bad Request" in connection.recv(1000)
    assert len(page.read_log()) == before + 1


def check_refused_body(
    visitor: Visitor, route: str, content: str | bytes, content_type: str, status: int
) -> None:
    """Post a body, and check the status and the line in the log of its refusal."""
    before = len(visitor.page.read_log())
    response = visitor.client.post(
        f"{visitor.page.url}gradio_api/{route}",
        content,
        headers={"Content-Type": content_type},
        timeout=60,
    )
    assert response.status_code == status
    check_refusal(visitor.page, before, response.json()["error"])


def check_refusal(page: PageServer, before: int, reason: str) -> None:
    """Check that a refused request left one line in the log, with the reason."""
    (line,) = page.read_log()[before:]
    assert line.startswith("refused: ")
    assert line.isprintable()
    assert len(line) < 500
    assert line.endswith(reason)
    assert "Traceback" not in page.log.read_text("utf-8")
