"""Models fetched from a Hub on loopback through the real client, without importing torch."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import Hub
from fetch_support import list_files
from hub_support import GET, READER, REPO, fetch_model, list_requests, read_files, start
from server import Fault, Server, sha256

from swag_models import get_spec

pytestmark = pytest.mark.usefixtures("caches")


@pytest.mark.parametrize("kind", ["first", "sharded"])
def test_a_branch_takes_one_request_and_a_commit_or_offline_mode_none(
    kind: str, hub: Hub, folders: dict[str, Path], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(folders[kind]))
    first = fetch_model(f"hf-hub:{REPO}")
    assert first.commit == commit
    assert first.path is not None
    assert first.path.is_relative_to(caches / "hf" / "hub")
    assert first.path.read_bytes() == (folders[kind] / first.path.name).read_bytes()
    assert {path.name for path in first.path.parent.iterdir()} == {
        path.name for path in folders[kind].iterdir()
    } - {"README.md"}
    assert first.errors == "tiny: the weights are licensed MIT\n".replace("tiny", kind)
    hub.requests.clear()
    assert fetch_model(f"hf-hub:{REPO}") == replace(first, errors="")
    assert list_requests(hub) == [f"HEAD /{REPO}/resolve/main/config.json"]
    hub.requests.clear()
    assert fetch_model(f"hf-hub:{REPO}@{commit}") == replace(first, errors="")
    for variable in ("SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "1")
            assert fetch_model(f"hf-hub:{REPO}") == replace(first, errors="")
            assert fetch_model(f"hf-hub:{REPO}@main") == replace(first, errors="")
    assert not hub.requests


def test_a_new_commit_is_fetched_and_the_old_one_stays_available(
    hub: Hub, folders: dict[str, Path]
) -> None:
    old = hub.put_repo(REPO, read_files(folders["first"]))
    assert fetch_model(f"hf-hub:{REPO}").commit == old
    new = hub.put_repo(REPO, read_files(folders["second"]))
    after = fetch_model(f"hf-hub:{REPO}")
    assert after.commit == new
    assert after.path is not None
    assert after.path.read_bytes() == (folders["second"] / "model.safetensors").read_bytes()
    assert fetch_model(f"hf-hub:{REPO}@{old}").commit == old


def test_an_unreachable_hub_is_logged_and_the_cached_commit_used(
    hub: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["first"]))
    first = fetch_model(f"hf-hub:{REPO}")
    with Server() as stopped_server:
        monkeypatch.setenv("HF_ENDPOINT", stopped_server.url)
    later = fetch_model(f"hf-hub:{REPO}")
    assert later.path == first.path
    assert re.search(
        rf"the Hub cannot be reached \(.*\): using the cached hf-hub:{REPO}@main, commit {commit}",
        later.errors,
    )


@pytest.mark.parametrize("kind", ["first", "sharded"])
def test_wrong_bytes_are_an_error(kind: str, hub: Hub, folders: dict[str, Path]) -> None:
    files = read_files(folders[kind])
    name = max(name for name in files if name.endswith(".safetensors"))
    files[name] = files[name][:-1] + b"x"
    hub.put_repo(REPO, files)
    fetched = fetch_model(f"hf-hub:{REPO}")
    assert fetched.spec is None
    assert f"SHA-256 is {sha256(files[name])}, not {sha256(folders[kind] / name)}" in fetched.errors


def test_a_private_repository_needs_a_token(
    hub: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["first"]), private=True)
    fetched = fetch_model(f"hf-hub:{REPO}")
    private = f"{REPO} does not exist on the Hub, or is private (HTTP 401)"
    assert fetched.errors.strip() == (
        f"FetchError: {private}: check the name, and set HF_TOKEN, or run: hf auth login"
    )
    monkeypatch.setenv("HF_TOKEN", READER)
    assert fetch_model(f"hf-hub:{REPO}").commit == commit


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf-hub:org/other",
            r"FetchError: org/other does not exist on the Hub, or is private \(HTTP 401\)",
        ),
        (
            "hf-hub:org/tiny@no",
            r"FetchError: org/tiny has no such branch, tag or commit \(HTTP 404\)",
        ),
        ("hf-hub:org/tiny@" + "0" * 40, r"FetchError: org/tiny has no such file \(HTTP 404\)"),
        (
            "hf-hub:tiny",
            "ConfigError: invalid repository name 'hf-hub:tiny': write hf-hub:org/repo or hf-hub:",
        ),
        ("hf-hub:org/tiny@", "invalid repository name"),
        ("hf-hub:org/tiny@../../x", "invalid repository name"),
        ("hf-hub:../tiny", "invalid repository name"),
    ],
)
def test_an_invalid_or_unknown_name_is_an_error_of_one_line(
    hub: Hub, folders: dict[str, Path], name: str, message: str
) -> None:
    hub.put_repo(REPO, read_files(folders["first"]))
    fetched = fetch_model(name)
    assert fetched.spec is None
    assert re.search(message, fetched.errors)
    assert len(fetched.errors.splitlines()) == 1


def test_a_repository_of_another_library_is_an_error_of_one_line(hub: Hub) -> None:
    hub.put_repo(REPO, {"config.json": b'{"architecture": "convnext_tiny"}'})
    fetched = fetch_model(f"hf-hub:{REPO}")
    message = "is 'convnext_tiny', which this library does not have; allowed: RegNetY, and ResNet"
    assert re.fullmatch(rf"ConfigError: .*{message}.*\n", fetched.errors)


def test_a_missing_model_in_offline_mode_is_an_error_of_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    fetched = fetch_model(f"hf-hub:{REPO}")
    assert fetched.errors == (
        f"FetchError: hf-hub:{REPO}@main is not on this machine, and offline mode is set; "
        "unset SWAG_MODELS_OFFLINE and HF_HUB_OFFLINE to download it\n"
    )
    assert not hub.requests


def test_a_killed_download_leaves_no_incomplete_weights(
    hub: Hub, folders: dict[str, Path], caches: Path
) -> None:
    files = read_files(folders["first"])
    commit = hub.put_repo(REPO, files)
    path = f"/storage/{sha256(files['model.safetensors'])}"
    hub.faults[path] = [Fault(hold=20_000)]
    with start(GET, f"hf-hub:{REPO}") as process:
        hub.wait_for(path, 1)
        time.sleep(0.2)
        process.kill()
    hub.release.set()
    assert not [file for file in list_files(caches) if file.name == "model.safetensors"]
    fetched = fetch_model(f"hf-hub:{REPO}")
    assert fetched.commit == commit
    assert fetched.path is not None
    assert fetched.path.read_bytes() == files["model.safetensors"]


def test_a_repository_of_the_catalog_gives_the_catalogs_spec() -> None:
    spec = get_spec("hf-hub:timm/regnety_160.swag_lc_in1k")
    assert spec == replace(get_spec("regnety_16gf_in1k_linear"), sources=spec.sources)
    assert [source.url for source in spec.sources] == [
        "hf://timm/regnety_160.swag_lc_in1k/model.safetensors"
    ]
    (source,) = get_spec("hf-hub:timm/regnety_160.swag_ft_in1k@refs/pr/1").sources
    assert source.url == "hf://timm/regnety_160.swag_ft_in1k@refs%2Fpr%2F1/model.safetensors"
