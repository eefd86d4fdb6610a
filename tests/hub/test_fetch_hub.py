"""Sources on the Hugging Face Hub, through its real client and a server on loopback.

The client reads its settings when it is imported, so each call runs in a new process.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetch_support import isolate, list_files, make_safetensors, make_spec, run
from server import Fault, Server, sha256

from swag_models.spec import Source

WEIGHTS = make_safetensors()
OTHER = make_safetensors(seed=1)
REPO, NAME = "org/tiny.swag", "model.safetensors"
COMMITS = ["1" * 40, "2" * 40]
HF_DOWNLOAD = f"""
from huggingface_hub import hf_hub_download
print(hf_hub_download({REPO!r}, {NAME!r}))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder."""
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.put_hub(REPO, NAME, WEIGHTS, COMMITS[0])
        yield server


def source(content: bytes | None = WEIGHTS, revision: str = "", name: str = NAME) -> Source:
    return Source(
        f"hf://{REPO}{revision}/{name}", "timm", None if content is None else sha256(content)
    )


@pytest.mark.parametrize("content", [WEIGHTS, None], ids=["hash", "no-hash"])
def test_a_file_of_the_hub_stays_in_the_clients_cache(
    hub: Server, cache: Path, tmp_path: Path, content: bytes | None
) -> None:
    spec = make_spec(source(content))
    path, errors = run(spec)
    assert path is not None, errors
    assert path.is_relative_to(tmp_path / "hf" / "hub")
    assert path.read_bytes() == WEIGHTS
    assert not list_files(cache / "files")
    assert ("is pinned from now on" in errors) == (content is None)
    assert len(hub.list_requests(f"/{REPO}/resolve/main/{NAME}")) == 1
    hub.requests.clear()
    assert run(spec) == (path, "")
    assert run(spec, HF_HUB_OFFLINE="1") == (path, "")
    assert not hub.requests


def test_a_file_in_the_clients_cache_is_used_in_place(hub: Server) -> None:
    expected, errors = run(make_spec(), HF_DOWNLOAD)
    assert expected is not None, errors
    hub.requests.clear()
    path, errors = run(make_spec(source()))
    assert path == expected, errors
    assert not hub.requests


def test_the_next_source_is_used_after_a_wrong_file_of_the_hub(hub: Server, cache: Path) -> None:
    spec = make_spec(source(OTHER), Source(hub.put("/x.pth", OTHER), "timm", sha256(OTHER)))
    path, errors = run(spec)
    assert path == cache / "files" / sha256(OTHER) / "x.pth", errors


def test_a_wrong_file_of_the_hub_is_an_error_with_both_hashes(hub: Server) -> None:
    path, errors = run(make_spec(source(OTHER)))
    assert path is None
    assert f"SHA-256 is {sha256(WEIGHTS)}, not {sha256(OTHER)}" in errors


def test_a_file_of_the_hub_that_differs_from_the_pin_is_an_error(
    hub: Server, cache: Path, tmp_path: Path
) -> None:
    spec = make_spec(source(None))
    assert run(spec)[0] is not None
    (record,) = list_files(cache / "records")
    shutil.rmtree(tmp_path / "hf")
    hub.put_hub(REPO, NAME, OTHER, COMMITS[1])
    path, errors = run(spec)
    assert path is None
    assert f"SHA-256 is {sha256(OTHER)[:16]}" in errors
    assert f"not {sha256(WEIGHTS)[:16]}" in errors
    assert record.name in errors


def test_a_source_can_name_a_revision_and_a_folder(hub: Server) -> None:
    hub.put_hub(REPO, f"deep/{NAME}", OTHER, COMMITS[1])
    path, errors = run(make_spec(source(OTHER, f"@{COMMITS[1]}", f"deep/{NAME}")))
    assert path is not None, errors
    assert path.read_bytes() == OTHER
    assert len(hub.list_requests(f"/{REPO}/resolve/{COMMITS[1]}/deep/{NAME}")) == 1


def test_a_file_missing_on_the_hub_is_one_line_of_the_error(hub: Server, cache: Path) -> None:
    path, errors = run(make_spec(source(name="missing.safetensors")))
    assert path is None
    assert errors == (
        f"FetchError: no source provided the weights of vit_nano_hashtags: hf://{REPO}/"
        f"missing.safetensors: {REPO} has no such file (HTTP 404); to use a file copied by hand, "
        f"store it as {cache / 'org--tiny.swag--missing.safetensors'}\n"
    )


def test_an_invalid_repository_name_is_reported(hub: Server) -> None:
    path, errors = run(make_spec(Source(f"hf://org/a--b/{NAME}", "timm")))
    assert path is None
    assert errors == "FetchError: Cannot have -- or .. in repo_id: 'org/a--b'.\n"
    assert not hub.requests


def test_an_http_error_of_the_hub_is_reported(hub: Server) -> None:
    hub.faults[f"/{REPO}/resolve/main/{NAME}"] = [
        Fault(status=403, headers={"X-Error-Code": "none"})
    ] * 9
    path, errors = run(make_spec(source()))
    assert path is None
    assert f"hf://{REPO}/{NAME}: no permission for {REPO} (HTTP 403" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.slow  # the client retries for a long time
def test_the_next_source_is_used_if_the_hub_does_not_answer(hub: Server) -> None:
    with Server() as stopped_server:
        pass
    spec = make_spec(source(), Source(hub.put("/x.pth", WEIGHTS), "timm", sha256(WEIGHTS)))
    path, errors = run(spec, HF_ENDPOINT=stopped_server.url)
    assert path is not None, errors
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("variable", ["SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_sends_no_request_to_the_hub(hub: Server, variable: str) -> None:
    path, errors = run(make_spec(source()), **{variable: "1"})
    assert path is None
    assert "not on this machine, and offline mode is set" in errors
    assert not hub.requests
