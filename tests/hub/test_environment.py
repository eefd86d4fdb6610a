"""Environments in which a download cannot work, or needs a setting: one clear line each."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import make_certificates
from fake_hub import Hub
from fetch_support import list_files, make_safetensors, make_spec, run
from hub_support import REPO, WRITER, fetch_model, push, read_files
from server import Server, sha256

from swag_models.hub.environment import CA_VARIABLES
from swag_models.spec import Source

pytestmark = pytest.mark.usefixtures("caches")
WEIGHTS = make_safetensors()
# Fetches the spec of a model; prints the seconds and the error, without the import of the client.
TIMED = """
import sys, time
import huggingface_hub, huggingface_hub.file_download, requests
from swag_models import get_spec
from swag_models.errors import SwagModelsError
start = time.monotonic()
try:
    get_spec(sys.argv[1])
except SwagModelsError as error:
    print(time.monotonic() - start, f"{type(error).__name__}: {error}")
"""
# Makes the look-up of the user's home folder fail, as for a user that has no passwd entry.
NO_HOME = """
import os, pwd
for name in ("HOME", "XDG_CACHE_HOME", "SWAG_MODELS_CACHE", "TORCH_HOME", "HF_HOME"):
    os.environ.pop(name, None)
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
"""


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def time_failure(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> tuple[float, str]:
    """Return the seconds until `get_spec` fails, and all that the process prints."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    process = subprocess.run(
        [sys.executable, "-c", TIMED, f"hf-hub:{REPO}"], capture_output=True, text=True, timeout=60
    )
    seconds, _, message = process.stdout.partition(" ")
    return float(seconds), message + process.stderr


@pytest.mark.parametrize("kind", ["refused", "silent", "unknown host", "no TLS"])
def test_an_unreachable_hub_is_one_line_within_3_seconds(
    kind: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as stopped:
        pass
    endpoint = {
        "refused": stopped.url,
        "silent": dead,
        "unknown host": "http://unknown.invalid",
        "no TLS": dead.replace("http://", "https://"),
    }[kind]
    seconds, printed = time_failure(endpoint, monkeypatch)
    assert seconds < 3, printed
    assert printed.startswith("UnreachableError: the Hub cannot be reached"), printed
    assert len(printed.splitlines()) == 1
    assert "HF_HUB_ETAG_TIMEOUT" in printed or kind != "silent"


def test_a_weight_file_on_an_unreachable_hub_leaves_time_for_the_next_source(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as stopped:
        monkeypatch.setenv("HF_ENDPOINT", stopped.url)
    spec = make_spec(
        Source(f"hf://{REPO}/model.safetensors", "timm", sha256(WEIGHTS)),
        Source(server.put("/x.pth", WEIGHTS), "timm", sha256(WEIGHTS)),
    )
    start_time = time.monotonic()
    path, errors = run(spec)
    assert path is not None, errors
    assert time.monotonic() - start_time < 15
    assert "are licensed" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.slow  # waits for the time limit
def test_a_push_to_a_silent_hub_is_one_line(
    folders: dict[str, Path], dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", dead)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    start_time = time.monotonic()
    upload, errors = push(folders["first"])
    assert upload is None
    assert time.monotonic() - start_time < 20
    assert errors.startswith("PublishError: nothing was published: the Hub cannot be reached")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_each_variable_for_certificates_holds_for_both_clients(
    variable: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate = make_certificates(tmp_path)
    if variable == "SSL_CERT_DIR":
        subprocess.run(["openssl", "rehash", str(tmp_path)], check=True)
        authority = tmp_path
    monkeypatch.setenv(variable, str(authority))
    with Hub({WRITER: ("org",)}, certificate=certificate) as hub, Server(certificate) as server:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.put_repo(REPO, read_files(folders["first"]))
        fetched = fetch_model(f"hf-hub:{REPO}")
        assert fetched.path is not None, fetched.errors
        url = server.put("/x.pth", WEIGHTS)
        path, errors = run(make_spec(Source(url, "timm", sha256(WEIGHTS))))
        assert path is not None, errors


def test_an_unknown_authority_of_the_hub_is_one_line_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(make_certificates(tmp_path)[1]) as server:
        seconds, printed = time_failure(server.url, monkeypatch)
    assert seconds < 3
    assert "certificate verify failed" in printed
    assert printed.endswith("for a private certificate authority set REQUESTS_CA_BUNDLE\n")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "variable"),
    [
        ("missing", "SSL_CERT_FILE"),
        ("not PEM", "REQUESTS_CA_BUNDLE"),
        ("empty", "CURL_CA_BUNDLE"),
        ("fifo", "SSL_CERT_FILE"),
        ("folder", "SSL_CERT_DIR"),
        ("another", "REQUESTS_CA_BUNDLE"),
    ],
)
def test_a_wrong_certificate_file_is_one_line_with_its_variable(
    variable: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pem"
    expected = f"{variable} names {path}"
    match kind:
        case "missing":
            expected += ", which does not exist"
        case "not PEM" | "empty":
            path.write_text("" if kind == "empty" else "no certificate")
            expected += ", which contains no certificates in PEM form"
        case "fifo":
            os.mkfifo(path)
            expected += f": {path} is a named pipe"
        case "folder":
            path.mkdir()
            expected = f"{variable} must name the authority of this server; run `openssl rehash`"
        case "another":
            (tmp_path / "other").mkdir()
            shutil.copy(make_certificates(tmp_path / "other")[0], path)
            expected = f"{variable} must name the authority of this server"
    monkeypatch.setenv(variable, str(path))
    with Server(make_certificates(tmp_path)[1]) as server:
        _, printed = time_failure(server.url, monkeypatch)
        _, errors = run(make_spec(Source(server.url + "/x.pth", "timm")))
    for text in (printed, errors):
        assert expected in text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("url", ["hf-hub", "https"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks5h://127.0.0.1:1"])
def test_a_socks_proxy_without_its_packages_is_one_line(
    url: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = "import sys; sys.modules['socks'] = sys.modules['socksio'] = None\n"
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    if url == "hf-hub":
        script = block + TIMED
        process = subprocess.run(
            [sys.executable, "-c", script, f"hf-hub:{REPO}"], capture_output=True, text=True
        )
        errors = process.stdout + process.stderr
    else:
        from fetch_support import FETCH

        _, errors = run(make_spec(Source("https://host.invalid/x.pth", "timm")), block + FETCH)
    assert "needs packages that are not installed: pip install pysocks socksio" in errors
    assert len(errors.splitlines()) == 1


def fail_in_both_clients(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Return what is printed for a model of the Hub and for one of another server."""
    _, printed = time_failure("https://hub.invalid", monkeypatch)
    _, errors = run(make_spec(Source("https://host.invalid/x.pth", "timm")))
    return printed, errors


@pytest.mark.parametrize(
    ("variable", "proxy"),
    [
        ("HTTPS_PROXY", "foo://u:secret@x"),
        ("https_proxy", "http://[::1"),
        ("all_proxy", "socks9://127.0.0.1:1"),
        ("ALL_PROXY", "::"),
    ],
)
def test_an_invalid_proxy_is_one_line_with_its_variable(
    variable: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    for text in fail_in_both_clients(monkeypatch):
        assert f"invalid {variable} {proxy.replace('u:secret@', '')!r}: allowed: " in text
        assert "secret" not in text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("proxy", ["127.0.0.1:9", "http://u:secret@127.0.0.1:9"])
def test_a_proxy_that_cannot_be_reached_is_one_line_with_its_variable(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    for text in fail_in_both_clients(monkeypatch):
        assert f"ALL_PROXY names the proxy {proxy.replace('u:secret@', '')}" in text
        assert "secret" not in text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("endpoint", ["foo://x", "https://h.invalid"])
def test_a_wrong_endpoint_is_one_line_with_its_variable(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, printed = time_failure(endpoint, monkeypatch)
    assert f"HF_ENDPOINT is {endpoint!r}" in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("value", ["soon", "", "1e3"])
def test_an_invalid_setting_of_the_hubs_client_is_one_line(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", value)
    fetched = fetch_model(f"hf-hub:{REPO}")
    assert "invalid literal for int()" in fetched.errors
    assert f"HF_HUB_ETAG_TIMEOUT is {value!r}" in fetched.errors
    assert len(fetched.errors.splitlines()) == 1


def run_without_home(code: str) -> str:
    """Run code for a user without a home folder; return its standard error."""
    process = subprocess.run([sys.executable, "-c", NO_HOME + code], capture_output=True, text=True)
    return process.stderr


def test_shipped_models_need_no_home_folder() -> None:
    code = """
from swag_models.hub.fetch import fetch_weights, find_weights, verify_weights
from swag_models import get_spec
spec = get_spec("vit_nano_hashtags")
assert fetch_weights(spec) == find_weights(spec)
assert [check.ok for check in verify_weights(spec)] == [True]
"""
    assert run_without_home(code) == ""


def test_a_folder_needs_no_home_folder(folders: dict[str, Path]) -> None:
    code = f"""
from swag_models.hub.fetch import fetch_weights
from swag_models import get_spec
assert fetch_weights(get_spec({str(folders["first"])!r})).is_file()
"""
    assert run_without_home(code) == ""


def test_a_download_without_a_home_folder_names_the_variable() -> None:
    code = """
import sys
from swag_models.errors import SwagModelsError
from swag_models.hub.fetch import fetch_weights
from swag_models import get_spec
try:
    fetch_weights(get_spec("vit_b16"))
except SwagModelsError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
    errors = run_without_home(code)
    assert errors.startswith("CacheError: the home folder in ~/.cache is not known")
    assert "set SWAG_MODELS_CACHE" in errors
    assert len(errors.splitlines()) == 1


def test_a_full_disk_in_the_hubs_cache_is_one_line(
    hub: Hub, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put_repo(REPO, read_files(folders["first"]))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    fetched = fetch_model(f"hf-hub:{REPO}")
    assert "the Hub's cache cannot be written (Not a directory)" in fetched.errors
    assert "HF_HOME" in fetched.errors
    assert len(fetched.errors.splitlines()) == 1
    assert not list_files(tmp_path / "file")
