"""Fetching weights from a model's sources: order, errors, records, pins, mirror, offline mode."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import threading
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest
import torch
from fetch_support import isolate, list_files, make_safetensors, make_spec, make_zip, wait_until
from server import Fault, Server, sha256

import swag_models
from swag_models import get_spec, load_model
from swag_models.checkpoint import write_state_dict
from swag_models.errors import FetchError
from swag_models.hub import fetch as fetch_module
from swag_models.hub.cache import record_path
from swag_models.hub.fetch import fetch_weights, find_weights, is_offline, verify_weights
from swag_models.models import build
from swag_models.spec import Source

WEIGHTS = make_safetensors()
OTHER = make_safetensors(seed=1)
HTML = b"<!DOCTYPE html><title>Sign in</title>" + b" " * 5000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder."""
    return isolate(tmp_path, monkeypatch)


def source(url: str, content: bytes | None = WEIGHTS) -> Source:
    return Source(url, "timm", None if content is None else sha256(content))


def fetch_one(url: str, content: bytes | None = WEIGHTS) -> bytes:
    """Fetch a model with one source, whose published hash is that of `content`."""
    return fetch_weights(make_spec(source(url, content))).read_bytes()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pinned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Log messages about new pins."""
    return [message for message in caplog.messages if "is pinned from now on" in message]


def test_a_model_is_loaded_from_its_source(server: Server, tmp_path: Path) -> None:
    spec = get_spec("vit_nano_hashtags")
    torch.manual_seed(0)
    state = build(
        spec.config, num_classes=spec.num_classes, image_size=spec.image_size
    ).state_dict()
    write_state_dict(state, tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    model = load_model(replace(spec, sources=(source(server.put("/x.pth", content), content),)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("folder", [PurePosixPath("/cache"), PureWindowsPath("C:\\cache")])
def test_record_paths_stay_in_the_cache_folder_on_any_system(
    monkeypatch: pytest.MonkeyPatch, folder: PurePath
) -> None:
    monkeypatch.setattr("swag_models.hub.cache.cache_folder", lambda: folder)
    for url in (
        "https://host:80/models/x.pth",
        "hf://org/repo/x",
        "file:///D:/cats/x",
        "https://host/..%2f..%5c..%5cC:%5cx",
    ):
        path = record_path(Source(url, "swag"))
        assert path.is_relative_to(folder / "records")
        assert not any(part == ".." or ":" in part for part in path.relative_to(folder).parts)


def test_weights_are_stored_by_content_and_recorded(server: Server, cache: Path) -> None:
    url = server.put("/models/x.pth", WEIGHTS)
    path = fetch_weights(make_spec(source(url)))
    assert path == cache / "files" / sha256(WEIGHTS) / "x.pth"
    assert path.read_bytes() == WEIGHTS
    host = server.url.removeprefix("http://").replace(":", "_")
    assert json.loads((cache / "records" / host / "models" / "x.pth.json").read_text()) == {
        "url": url,
        "path": str(path),
        "sha256": sha256(WEIGHTS),
        "size": len(WEIGHTS),
        "mtime_ns": path.stat().st_mtime_ns,
    }
    assert not list_files(cache / "parts")


def test_weights_on_this_machine_need_no_request(server: Server) -> None:
    spec = make_spec(source(server.put("/x.pth", WEIGHTS)))
    assert find_weights(spec) is None
    path = fetch_weights(spec)
    server.requests.clear()
    assert fetch_weights(spec) == find_weights(spec) == path
    assert not server.requests


def test_sources_are_tried_in_order(server: Server) -> None:
    first, second, third = (server.put(f"/{name}/x.pth", WEIGHTS) for name in "abc")
    server.files.pop("/a/x.pth")
    spec = make_spec(source(first), source(second), source(third))
    assert fetch_weights(spec).read_bytes() == WEIGHTS
    assert [request.path for request in server.requests] == ["/a/x.pth", "/b/x.pth"]


@pytest.mark.parametrize(
    "fault",
    [Fault(status=503, headers={"Retry-After": "3600"}), Fault(longer=-100)],
    ids=["long-wait", "wrong-hash"],
)
def test_the_next_source_is_used_after_a_failure(server: Server, fault: Fault) -> None:
    first, second = server.put("/a/x.pth", WEIGHTS, fault), server.put("/b/x.pth", WEIGHTS)
    assert fetch_weights(make_spec(source(first), source(second))).read_bytes() == WEIGHTS
    assert [request.path for request in server.requests] == ["/a/x.pth", "/b/x.pth"]


def test_the_error_lists_every_source_and_where_to_copy_a_file(server: Server, cache: Path) -> None:
    urls = [
        server.url + "/gone.pth",
        server.put("/wrong.pth", OTHER),
        "http://example.invalid/x.pth",
        "file:///none/x.pth",
    ]
    spec = make_spec(*(source(url) for url in urls))
    with pytest.raises(FetchError) as caught:
        fetch_weights(spec)
    assert caught.value.args[0].split("; ") == [
        f"no source provided the weights of vit_nano_hashtags: {urls[0]}: HTTP 404 Not Found",
        f"{urls[1]}: SHA-256 is {sha256(OTHER)[:16]}, not {sha256(WEIGHTS)[:16]}",
        f"{urls[2]}: {urls[2]} is not allowed: use https (plain http only on loopback)",
        f"{urls[3]}: no such file",
        f"to use a file copied by hand, store it as {cache / 'gone.pth'} or wrong.pth or x.pth",
    ]
    assert not list_files(cache / "files")
    server.requests.clear()
    path = put(cache / "wrong.pth", WEIGHTS)
    assert fetch_weights(spec) == path
    assert not server.requests


def test_a_file_in_the_torch_hub_cache_is_used_in_place(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    path = put(tmp_path / "torch" / "hub" / "checkpoints" / "x.pth", WEIGHTS)
    spec = make_spec(source(server.put("/x.pth", WEIGHTS)))
    assert fetch_weights(spec) == path
    assert not server.requests
    assert not list_files(cache / "files")
    path.unlink()
    assert fetch_weights(spec).is_relative_to(cache)


@pytest.mark.parametrize("folder", ["torch/hub/checkpoints", "cache"])
def test_a_file_with_another_hash_is_ignored_and_logged(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    path = put(tmp_path / folder / "x.pth", OTHER)
    assert fetch_one(server.put("/x.pth", WEIGHTS)) == WEIGHTS
    assert (
        f"{path} is ignored: its SHA-256 is {sha256(OTHER)}, not {sha256(WEIGHTS)}"
        in caplog.messages
    )
    assert path.read_bytes() == OTHER


def test_files_of_the_same_name_do_not_collide(server: Server) -> None:
    with Server() as second:
        urls = {server.put("/x.pth", WEIGHTS): WEIGHTS, second.put("/x.pth", OTHER): OTHER}
        for _ in range(2):
            assert [fetch_one(url, content) for url, content in urls.items()] == [WEIGHTS, OTHER]
        assert (len(server.requests), len(second.requests)) == (1, 1)


def test_urls_that_differ_in_their_query_do_not_collide(server: Server) -> None:
    urls = {server.put("/x.pth?id=1", WEIGHTS): WEIGHTS, server.put("/x.pth?id=2", OTHER): OTHER}
    assert [fetch_one(url, None) for url in urls] == [WEIGHTS, OTHER]


def test_the_same_content_is_not_downloaded_from_a_second_url(server: Server) -> None:
    first, second = server.put("/x.pth", WEIGHTS), server.put("/y.pth", WEIGHTS)
    assert fetch_one(first) == fetch_one(second) == WEIGHTS
    assert not server.list_requests("/y.pth")


def test_a_source_without_hash_is_pinned_on_first_use(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.put("/x.pth", WEIGHTS)
    spec = make_spec(source(url, None))
    path = fetch_weights(spec)
    (record,) = list_files(cache / "records")
    assert pinned(caplog) == [
        f"{url} has no published hash: SHA-256 {sha256(WEIGHTS)} is pinned from now on in {record}"
    ]
    path.unlink()
    assert fetch_weights(spec) == path
    assert len(server.requests) == 2
    assert len(pinned(caplog)) == 1


def test_content_that_differs_from_the_pin_is_an_error_naming_the_record(
    server: Server, cache: Path
) -> None:
    url = server.put("/x.pth", WEIGHTS)
    spec = make_spec(source(url, None))
    fetch_weights(spec).unlink()
    server.put("/x.pth", OTHER)
    (record,) = list_files(cache / "records")
    with pytest.raises(FetchError) as caught:
        fetch_weights(spec)
    message = caught.value.args[0]  # the text is cut after 499 characters, and paths are long here
    assert f"SHA-256 is {sha256(OTHER)[:16]}" in message
    assert f"not {sha256(WEIGHTS)[:16]}" in message
    assert f"if the change is expected, delete {record})" in message
    assert not list_files(cache / "files")
    record.unlink()
    assert fetch_weights(spec).read_bytes() == OTHER


BROKEN = {
    "html": HTML,
    "empty": b"",
    "truncated-safetensors": WEIGHTS[:-1],
    "truncated-zip": make_zip()[:-100],
    "header-without-numbers": (30).to_bytes(8, "little") + b'{"a":{"data_offsets":[0,"x"]}}',
    "header-nested-deeply": (100_000).to_bytes(8, "little") + b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_not_a_complete_weight_file_is_not_pinned(
    server: Server, cache: Path, content: bytes
) -> None:
    url = server.put("/x.pth", content)
    with pytest.raises(FetchError, match="the downloaded file is truncated or not a weight file"):
        fetch_one(url, None)
    assert not [path for path in list_files(cache) if path.suffix != ".lock"]
    server.put("/x.pth", WEIGHTS)
    assert fetch_one(url, None) == WEIGHTS


@pytest.mark.parametrize(
    "content",
    [make_safetensors(0), make_safetensors(100_000), make_zip()],
    ids=["0", "100000", "zip"],
)
def test_complete_weight_files_without_hash_are_accepted(server: Server, content: bytes) -> None:
    assert fetch_one(server.put("/x.pth", content), None) == content


def test_a_truncated_copy_without_hash_is_ignored(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(cache / "x.pth", WEIGHTS[:-1])
    assert fetch_one(server.put("/x.pth", WEIGHTS), None) == WEIGHTS
    assert f"{path} is ignored: it is truncated or not a weight file" in caplog.messages


def test_a_local_file_without_hash_may_change(tmp_path: Path, cache: Path) -> None:
    path = put(tmp_path / "my weights.pth", WEIGHTS)
    spec = make_spec(source(path.as_uri(), None))
    assert fetch_weights(spec) == path
    path.write_bytes(OTHER)
    assert fetch_weights(spec) == path
    reason = f"{path.as_uri()}: SHA-256 is {sha256(OTHER)}, not {sha256(WEIGHTS)}"
    with pytest.raises(FetchError, match=f" {re.escape(reason)}$"):
        fetch_one(path.as_uri(), WEIGHTS)
    assert not list_files(cache)


def test_weights_in_the_package_are_found() -> None:
    folder = Path(swag_models.__file__).parent
    assert (
        fetch_weights(get_spec("vit_nano_hashtags"))
        == folder / "weights" / "vit_nano_hashtags.safetensors"
    )
    with pytest.raises(FetchError, match=r"package://missing\.safetensors: no such file"):
        fetch_one("package://missing.safetensors", None)


def test_the_mirror_replaces_the_host(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put("/base/SWAG/x.pth", WEIGHTS)
    monkeypatch.setenv("SWAG_MODELS_MIRROR", server.url + "/base/")
    spec = make_spec(source("https://unreachable.invalid/SWAG/x.pth"))
    path = fetch_weights(spec)
    assert path.read_bytes() == WEIGHTS
    monkeypatch.delenv("SWAG_MODELS_MIRROR")
    assert fetch_weights(spec) == path, "records are named by source, not by mirror"


def test_a_model_without_sources_is_an_error(cache: Path) -> None:
    message = r"^no source provided the weights of vit_nano_hashtags: it has no sources$"
    with pytest.raises(FetchError, match=message):
        fetch_weights(make_spec())
    assert find_weights(make_spec()) is None
    assert verify_weights(make_spec()) == []


def test_a_mirror_must_be_a_url(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAG_MODELS_MIRROR", "mirror.example")
    with pytest.raises(FetchError, match=r"invalid SWAG_MODELS_MIRROR 'mirror.example': set a URL"):
        fetch_one(server.put("/x.pth", WEIGHTS))


@pytest.mark.parametrize("variable", ["SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"])
def test_values_that_turn_offline_mode_on(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for value in ("1", "true", "YES", "On"):
        monkeypatch.setenv(variable, value)
        assert is_offline()
    for value in ("", "0", "false", "off"):
        monkeypatch.setenv(variable, value)
        assert not is_offline()


@pytest.mark.parametrize("variable", ["SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_sends_no_request(
    server: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    cached_url, missing_url = server.put("/x.pth", WEIGHTS), server.put("/y.pth", OTHER)
    fetch_one(cached_url)
    server.requests.clear()
    monkeypatch.setenv(variable, "1")
    assert fetch_one(cached_url) == WEIGHTS
    with pytest.raises(FetchError, match=r"/y.pth: not on this machine, and offline mode is set"):
        fetch_one(missing_url, OTHER)
    assert not server.requests


def test_the_licence_is_logged_once_per_download(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spec = make_spec(source(server.url + "/gone.pth"), source(server.put("/x.pth", WEIGHTS)))
    fetch_weights(spec)
    notice = f"vit_nano_hashtags: the weights are licensed Apache-2.0, see {spec.license_url}"
    assert caplog.messages == [notice]
    fetch_weights(spec)
    assert caplog.messages == [notice]


def test_waiting_for_another_process_is_logged(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(source(server.put("/x.pth", WEIGHTS)))
    with fetch_module._lock(spec.sources[0]):
        thread = threading.Thread(target=fetch_weights, args=(spec,))
        thread.start()
        wait_until(lambda: any("waiting for another process" in text for text in caplog.messages))
        assert not server.requests
    thread.join()
    assert find_weights(spec) is not None


def test_the_config_draws_no_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bars: list[object] = []

    config = tmp_path / "config.json"
    config.write_text("{}")

    def download_file(*_: object, progress: object) -> Path:
        bars.append(progress)
        return config

    monkeypatch.setattr(fetch_module, "find_cached", lambda *_: None)
    monkeypatch.setattr(fetch_module, "download_file", download_file)
    assert (fetch_module.fetch_config("org/repo", "main"), bars) == (config, [False])


def flip(path: Path, keep_time: bool) -> None:
    """Change the last byte of a file."""
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [True, False])
@pytest.mark.parametrize("content", [WEIGHTS, None], ids=["hash", "pin"])
def test_verify_finds_a_flipped_bit(server: Server, content: bytes | None, keep_time: bool) -> None:
    spec = make_spec(source(server.put("/x.pth", WEIGHTS), content))
    assert verify_weights(spec) == []
    path = fetch_weights(spec)
    assert [(check.path, check.sha256, check.ok) for check in verify_weights(spec)] == [
        (str(path), sha256(WEIGHTS), True)
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        verify_weights(spec)[0].ok = False  # type: ignore[misc]
    flip(path, keep_time)
    assert [(check.sha256, check.ok) for check in verify_weights(spec)] == [(sha256(path), False)]
    path.unlink()
    assert [(check.sha256, check.ok) for check in verify_weights(spec)] == [("missing", False)]
    fetch_weights(spec)
    assert [check.ok for check in verify_weights(spec)] == [True]


def test_a_file_that_changed_is_downloaded_again(server: Server) -> None:
    spec = make_spec(source(server.put("/x.pth", WEIGHTS)))
    flip(fetch_weights(spec), keep_time=False)
    assert fetch_weights(spec).read_bytes() == WEIGHTS
    assert len(server.requests) == 2


def test_a_part_with_wrong_bytes_is_downloaded_again_without_a_hash(
    server: Server, cache: Path
) -> None:
    url = server.put("/x.pth", WEIGHTS, Fault(cut=2000), Fault(status=404))
    with pytest.raises(FetchError):
        fetch_one(url, None)
    (part,) = list_files(cache / "parts")
    part.write_bytes(bytes(part.stat().st_size))  # what a broken proxy may have sent
    assert fetch_one(url, None) == WEIGHTS
    assert [start is None for start in server.list_start_bytes("/x.pth")[2:]] == [False, True]
