"""Passwords, tokens and cookies of the page."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_support import SCENES
from page_support import APP, MODEL, PageServer, Visitor, serve_page

from swag_models.app.access import Access, read_auth_file
from swag_models.errors import ConfigError


def make_header(user: str, password: str) -> str:
    """An `Authorization` header as browsers send it."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_passwords_and_tokens_are_compared_completely() -> None:
    access = Access({"anna": "a:b c\u00e9", "ben": "x"}, token="secret")
    assert access.check_header(make_header("anna", "a:b c\u00e9")) == "user anna"
    assert access.check_header("bearer secret") == "token"
    assert access.check_token("secret")
    for header in [
        *(
            make_header("anna", "x"),
            make_header("ben", ""),
            make_header("", ""),
            make_header("c", "x"),
        ),
        *("Basic", "Basic \xe9", "Basic /w==", "", "Digest x", "Bearer", "Bearer ", "Bearer secre"),
        make_header("ben", "x").replace("Basic", "Other"),
    ]:
        assert access.check_header(header) == "", header
    assert not access.check_token("")
    assert not Access().check_token("")
    assert not Access().is_required


def test_a_cookie_is_accepted_only_by_the_server_that_issued_it() -> None:
    access, other = Access(token="t"), Access(token="t")
    name, _, value = access.make_cookie().partition(";")[0].partition("=")
    browser = access.read_cookie({name: value})
    assert browser
    other.cookie_name = name
    for forged in (
        browser,
        f"{browser}.",
        f"{browser}.{'0' * 64}",
        f"x{value}",
        ".",
        "",
        "\ud800.x",
    ):
        assert access.read_cookie({name: forged}) == ""
    assert other.read_cookie({name: value}) == ""
    assert access.read_cookie({}) == ""
    assert "HttpOnly; SameSite=Lax" in access.make_cookie()


def test_an_auth_file_has_a_line_for_each_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users"
    path.write_text("# users\n\nanna:a:b\nben:c d\n", "utf-8")
    path.chmod(0o600)
    assert read_auth_file(path) == {"anna": "a:b", "ben": "c d"}
    assert caplog.messages == []
    path.chmod(0o644)
    read_auth_file(str(path))
    assert caplog.messages == [
        f"other users of this machine can read {path}; run: chmod 600 {path}"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"anna", "line 1 of .* is not user:password"),
        (b"a:b\n:secret\n", "line 2 of .* is not user:password"),
        (b"a:\n", "line 1 of .* is not user:password"),
        (b"a:secret\na:d\n", "line 2 of .* names a user again"),
        (b"# nobody\n", "contains no user"),
        (b"\xff:secret", "cannot read the users from"),
        (b"a:secret\n" * 200_000, "is larger than 1 MiB"),
        (None, "No such file"),
    ],
)
def test_a_wrong_auth_file_is_an_error_without_its_secrets(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "users"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as raised:
        read_auth_file(path)
    assert "secret" not in str(raised.value)


def test_an_auth_file_that_is_a_pipe_or_a_folder_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=kind):
            read_auth_file(path)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A page that other machines can reach, with users."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "users").write_text("anna:right\n", "utf-8")
    (folder / "users").chmod(0o600)
    options = ["--host", "0.0.0.0", "--auth-file", str(folder / "users")]
    with serve_page(folder, *APP, *options) as page:
        yield page


def test_without_a_password_nothing_is_answered(guarded: PageServer) -> None:
    assert guarded.address == guarded.url  # no token
    assert guarded.read_log()[0] == (
        "other machines can reach the page; they cannot choose a folder to search"
    )
    visitor = Visitor(guarded, "s")
    visitor.open()  # the server has started
    requests = [visitor.open, lambda: visitor.get("config"), lambda: visitor.call(0, MODEL)]
    requests.append(lambda: visitor.get("gradio_api/file=/etc/passwd"))
    headers = [None, make_header("anna", "wrong"), make_header("ben", "right"), "Bearer x"]
    for request, header in zip(requests, headers):
        visitor.client.headers["Authorization"] = header  # type: ignore[assignment]
        before = len(guarded.read_log())
        response = request()
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"].startswith("Basic ")
        assert "Set-Cookie" not in response.headers
        assert len(guarded.read_log()) == before + 1
    visitor.client.headers["Authorization"] = make_header("anna", "right")
    assert visitor.open().status_code == 200
    del visitor.client.headers["Authorization"]
    assert visitor.open().status_code == 200  # the cookie suffices
    assert "right" not in guarded.log.read_text("utf-8")


def test_a_visitor_cannot_choose_a_folder(guarded: PageServer) -> None:
    visitor = Visitor(guarded, "s")
    visitor.client.headers["Authorization"] = make_header("anna", "right")
    handler = visitor.read_handlers()["search_folder"]
    for folder in (str(SCENES), "/etc", f"{SCENES}/x"):
        response = visitor.call(handler, None, MODEL, folder, "cup")
        assert response.status_code == 200
        assert "<figure" not in response.text
        assert folder not in response.text  # nor whether it exists


@pytest.mark.slow
def test_a_page_for_other_machines_without_a_password_warns(tmp_path: Path) -> None:
    with serve_page(tmp_path, *APP, "--host", "0.0.0.0", "--no-token") as page:
        assert page.address == page.url
        assert page.read_log()[0] == (
            "other machines can reach the page without a password; "
            "they cannot choose a folder to search"
        )
        assert Visitor(page, "s").open().status_code == 200
