"""Servers that lie to the client of the Hub: one clear error, and nothing wrong is stored."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fetch_support import isolate, list_files, make_safetensors
from hub_support import run
from raw_server import RawServer, respond
from server import sha256

from swag_models.errors import FetchError
from swag_models.hub.hub_rules import check_request, check_response

WEIGHTS, OTHER = make_safetensors(20_000), make_safetensors(20_000, seed=1)
NAME = "model.safetensors"
HEADERS = {"ETag": b'"' + sha256(WEIGHTS).encode() + b'"', "X_Repo_Commit": b"1" * 40}
LENGTH = b"%d" % len(WEIGHTS)
# Fetches each model, in one process, because importing the client takes long.
FETCH = """
import json, sys
from dataclasses import replace
from swag_models import get_spec
from swag_models.errors import SwagModelsError
from swag_models.hub.fetch import fetch_weights
from swag_models.spec import Source
outcomes = {}
for name in sys.argv[1:]:
    source = Source(f"hf://org/{name}/model.safetensors", "timm")
    try:
        spec = replace(get_spec("vit_nano_hashtags"), sources=(source,))
        outcomes[name] = ["", str(fetch_weights(spec, progress=False))]
    except SwagModelsError as error:
        outcomes[name] = [type(error).__name__, str(error)]
print(json.dumps(outcomes))
"""


def answer_with(**headers: bytes) -> Callable[[socket.socket, bytes], None]:
    """Responses with other headers, to HEAD and GET."""
    return lambda connection, head: respond(
        connection,
        b"" if head.startswith(b"HEAD") else WEIGHTS,
        length=LENGTH,
        **{**HEADERS, **headers},
    )


def answer_get(body: bytes, **headers: bytes) -> Callable[[socket.socket, bytes], None]:
    """A correct response to HEAD, and another body to GET."""
    return lambda connection, head: (
        respond(connection, length=LENGTH, **HEADERS)
        if head.startswith(b"HEAD")
        else respond(connection, body, **{**HEADERS, **headers})
    )


def flood(connection: socket.socket, head: bytes) -> None:
    """More bytes than stated, without an end."""
    if head.startswith(b"HEAD"):
        respond(connection, length=LENGTH, **HEADERS)
        return
    respond(connection, length=b"", Transfer_Encoding=b"chunked", **HEADERS)
    for _ in range(2000):
        connection.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def redirect(target: bytes, **headers: bytes) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, head: respond(
        connection, status=b"302 F", Location=target, **{**HEADERS, **headers}
    )


LIES: dict[str, tuple[Callable[[socket.socket, bytes], None], str]] = {
    "honest": (answer_with(), ""),
    "etag-of-a-path": (answer_with(ETag=b'"../../../evil"'), "an invalid ETag"),
    "etag-absolute": (answer_with(ETag=b'"/tmp/evil"'), "an invalid ETag"),
    "etag-of-windows": (answer_with(ETag=b'"..\\evil"'), "an invalid ETag"),
    "etag-empty": (answer_with(ETag=b'""'), "an invalid ETag"),
    "etag-dots": (answer_with(ETag=b'W/".."'), "an invalid ETag"),
    "etag-long": (answer_with(ETag=b'"' + b"a" * 999 + b'"'), "an invalid ETag"),
    "linked-etag": (answer_with(X_Linked_ETag=b'"../../../evil"'), "an invalid X-Linked-ETag"),
    "commit": (answer_with(X_Repo_Commit=b"../../../evil"), "an invalid X-Repo-Commit"),
    "other-bytes": (answer_get(OTHER), "differs from its ETag; try again"),
    "page": (answer_get(b"<html>Sign in</html>", Content_Type=b"text/html"), "Consistency check"),
    "too-long": (answer_get(WEIGHTS + b"x"), "Consistency check failed"),
    "not-gzip": (answer_get(WEIGHTS, Content_Encoding=b"gzip"), "while decompressing data"),
    "flood": (flood, f"sent more than the stated {len(WEIGHTS)} bytes"),
    "loop": (redirect(b"/org/loop/resolve/main/" + NAME.encode()), "redirects"),
    "file": (redirect(b"file:///etc/passwd"), "an 'http://' or 'https://' protocol"),
    "ftp": (redirect(b"ftp://127.0.0.1/x"), "unsupported protocol 'ftp://'"),
}


@pytest.fixture
def other_hosts() -> Iterator[RawServer]:
    """A server of another origin than the Hub's."""
    with RawServer(lambda connection, head: respond(connection, WEIGHTS, **HEADERS)) as server:
        yield server


def test_a_lying_hub_is_one_error_and_nothing_wrong_is_stored(
    tmp_path: Path, other_hosts: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path / "deep" / "er", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    url = other_hosts.url.encode()
    lies = {
        **LIES,
        "other-host": (redirect(url + b"/x"), ""),
        "xet": (answer_with(X_Xet_Hash=b"a" * 64, X_Xet_Refresh_Route=url + b"/xet"), ""),
    }

    def answer(connection: socket.socket, head: bytes) -> None:
        parts = head.split()[1].decode("latin-1").split("/")
        if len(parts) > 2 and parts[2] in lies:
            lies[parts[2]][0](connection, head)
        else:
            respond(connection, b"{}")

    with RawServer(answer) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        outcomes, errors = run(FETCH, *lies)
    assert outcomes is not None, errors
    for name in ("honest", "other-host"):
        assert Path(outcomes[name][1]).read_bytes() == WEIGHTS, outcomes[name]
    for name in lies.keys() - {"honest", "other-host"}:
        kind, message = outcomes[name]
        assert kind == "FetchError", (name, message)
        assert lies[name][1] in message
        assert message.isprintable()
        assert len(message) < 500
    assert not list(tmp_path.rglob("evil*"))
    blobs = [path for path in list_files(tmp_path) if path.parent.name == "blobs"]
    assert {path.read_bytes() for path in blobs} == {WEIGHTS}
    assert len(blobs) == 2
    assert any(b"hf_secret" in request for request in hub.requests)
    assert not [head for head in other_hosts.requests if b"hf_secret" in head]
    assert any(head.startswith(b"GET /xet") for head in other_hosts.requests)


def make_request(url: str, method: str = "GET") -> Any:
    from huggingface_hub import get_session

    return get_session().build_request(method, url, headers={"Authorization": "Bearer x"})


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://hub.example/a", True),
        ("https://hub.example:443/a", True),
        ("https://huggingface.co/a", True),
        ("https://hub.example:8443/a", False),
        ("https://hub.example.evil.example/a", False),
        ("https://cdn.example/a", False),
        ("http://hub.example/a", None),
        ("http://127.0.0.1/a", None),
    ],
)
def test_the_token_is_sent_to_the_hub_only_and_never_over_plain_http(
    url: str, kept: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    request = make_request(url)
    if kept is None:
        with pytest.raises(FetchError, match="must stay on https"):
            check_request(request)
    else:
        check_request(request)
        assert ("Authorization" in request.headers) == kept


@pytest.mark.parametrize(
    "etag", ['"abc"', 'W/"abc"', "abc", '"5f-a8:c+d=="', f'"{sha256(b"")}"', '"a.b"', '"..a"']
)
def test_an_ordinary_etag_is_accepted(etag: str) -> None:
    request = make_request("https://hub.example/a", "HEAD")
    check_response(SimpleNamespace(request=request, headers={"ETag": etag}))
