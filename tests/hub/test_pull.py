"""Models loaded from a Hugging Face Hub of our own, through the real client; fetching them imports no torch."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import Hub
from fetch_support import list_files
from hub_support import GET, READER, REPO, asked, get, read_files, start
from server import Server, Twist, sha256

from swag_models import get_spec

pytestmark = pytest.mark.usefixtures("caches")


@pytest.mark.parametrize("kind", ["first", "sharded"])
def test_a_branch_is_asked_once_a_commit_not_and_offline_nothing(
    kind: str, hub: Hub, folders: dict[str, Path], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(folders[kind]))
    first = get(f"hf-hub:{REPO}")
    assert first.commit == commit
    assert first.path is not None
    assert first.path.is_relative_to(caches / "hf" / "hub")
    assert first.path.read_bytes() == (folders[kind] / first.path.name).read_bytes()
    assert {path.name for path in first.path.parent.iterdir()} == {
        path.name for path in folders[kind].iterdir()
    } - {"README.md"}
    assert first.errors == "tiny: the weights are licensed MIT\n".replace("tiny", kind)
    hub.requests.clear()
    assert get(f"hf-hub:{REPO}") == replace(first, errors="")
    assert asked(hub) == [f"HEAD /{REPO}/resolve/main/config.json"]
    hub.requests.clear()
    assert get(f"hf-hub:{REPO}@{commit}") == replace(first, errors="")
    for variable in ("SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "1")
            assert get(f"hf-hub:{REPO}") == replace(first, errors="")
            assert get(f"hf-hub:{REPO}@main") == replace(first, errors="")
    assert not hub.requests


def test_a_new_commit_is_picked_up_and_the_old_one_stays(
    hub: Hub, folders: dict[str, Path]
) -> None:
    old = hub.put_repo(REPO, read_files(folders["first"]))
    assert get(f"hf-hub:{REPO}").commit == old
    new = hub.put_repo(REPO, read_files(folders["second"]))
    after = get(f"hf-hub:{REPO}")
    assert after.commit == new
    assert after.path is not None
    assert after.path.read_bytes() == (folders["second"] / "model.safetensors").read_bytes()
    assert get(f"hf-hub:{REPO}@{old}").commit == old


def test_a_hub_that_went_away_is_told_and_what_is_here_is_used(
    hub: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["first"]))
    first = get(f"hf-hub:{REPO}")
    with Server() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    later = get(f"hf-hub:{REPO}")
    assert later.path == first.path
    assert re.search(
        rf"the Hub cannot be reached \(.*\): hf-hub:{REPO}@main is used as it was here last, at {commit}",
        later.errors,
    )


@pytest.mark.parametrize("kind", ["first", "sharded"])
def test_wrong_bytes_are_found_out(kind: str, hub: Hub, folders: dict[str, Path]) -> None:
    files = read_files(folders[kind])
    name = max(name for name in files if name.endswith(".safetensors"))
    files[name] = files[name][:-1] + b"x"
    hub.put_repo(REPO, files)
    got = get(f"hf-hub:{REPO}")
    assert got.spec is None
    assert f"SHA-256 is {sha256(files[name])}, not {sha256(folders[kind] / name)}" in got.errors


def test_a_private_repository_needs_a_token(
    hub: Hub, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["first"]), private=True)
    got = get(f"hf-hub:{REPO}")
    private = f"{REPO} does not exist on the Hub, or is private (HTTP 401)"
    assert (
        got.errors.strip()
        == f"FetchError: {private}: check the name, and set HF_TOKEN, or run: hf auth login"
    )
    monkeypatch.setenv("HF_TOKEN", READER)
    assert get(f"hf-hub:{REPO}").commit == commit


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
            "ConfigError: 'hf-hub:tiny' names no repository; write hf-hub:org/repo or hf-hub:org/repo@revision",
        ),
        ("hf-hub:org/tiny@", "names no repository"),
        ("hf-hub:org/tiny@../../x", "names no repository"),
        ("hf-hub:../tiny", "names no repository"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(
    hub: Hub, folders: dict[str, Path], name: str, message: str
) -> None:
    hub.put_repo(REPO, read_files(folders["first"]))
    got = get(name)
    assert got.spec is None
    assert re.search(message, got.errors)
    assert len(got.errors.splitlines()) == 1


def test_a_repository_of_another_library_is_one_line(hub: Hub) -> None:
    hub.put_repo(REPO, {"config.json": b'{"architecture": "resnet50"}'})
    got = get(f"hf-hub:{REPO}")
    assert re.fullmatch(
        r"ConfigError: .*config.json describes no model of this library \(it has no 'swag_models'\).*\n",
        got.errors,
    )


def test_offline_and_not_here_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    got = get(f"hf-hub:{REPO}")
    assert (
        got.errors
        == f"FetchError: hf-hub:{REPO}@main is not on this machine, and offline is asked for\n"
    )
    assert not hub.requests


def test_a_kill_while_fetching_leaves_nothing_that_would_be_taken_for_whole(
    hub: Hub, folders: dict[str, Path], caches: Path
) -> None:
    files = read_files(folders["first"])
    commit = hub.put_repo(REPO, files)
    path = f"/storage/{sha256(files['model.safetensors'])}"
    hub.twists[path] = [Twist(hold=20_000)]
    with start(GET, f"hf-hub:{REPO}") as process:
        hub.wait_for(path, 1)
        time.sleep(0.2)
        process.kill()
    hub.release.set()
    assert not [file for file in list_files(caches) if file.name == "model.safetensors"]
    got = get(f"hf-hub:{REPO}")
    assert got.commit == commit
    assert got.path is not None
    assert got.path.read_bytes() == files["model.safetensors"]


def test_a_repository_that_the_catalog_names_is_the_catalogs_model() -> None:
    spec = get_spec("hf-hub:timm/regnety_160.swag_lc_in1k")
    assert spec == replace(get_spec("regnety_16gf_in1k_linear"), sources=spec.sources)
    assert [source.url for source in spec.sources] == [
        "hf://timm/regnety_160.swag_lc_in1k/model.safetensors"
    ]
    (source,) = get_spec("hf-hub:timm/regnety_160.swag_ft_in1k@refs/pr/1").sources
    assert source.url == "hf://timm/regnety_160.swag_ft_in1k@refs%2Fpr%2F1/model.safetensors"
