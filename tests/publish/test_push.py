"""Models sent to a Hugging Face Hub of our own, through the real client."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fake_hub import Hub
from hub_support import PUSH, READER, REPO, WRITER, get, push, read_files, run, start
from server import Server, Twist, sha256
from tiny import images

from swag_models import load_model

pytestmark = pytest.mark.usefixtures("caches")


def test_a_folder_goes_and_comes_back_the_same(
    hub: Hub, token: None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, errors = push(folders["first"], message="The first")
    assert sent, errors
    address, commit, url, files = sent
    assert (address, url) == (f"hf-hub:{REPO}", f"{hub.url}/{REPO}/commit/{commit}")
    assert (
        len(hub.repos[REPO].commits) == 2
    )  # that the repository began with, and one for all files
    there = hub.repos[REPO].commits[commit]
    assert {
        name: len(content) for name, content in there.items() if name != ".gitattributes"
    } == files
    assert there["model.safetensors"] == (folders["first"] / "model.safetensors").read_bytes()
    assert b'load_model("hf-hub:org/tiny")' in there["README.md"]
    assert b'timm.create_model("hf-hub:org/tiny", pretrained=True)' in there["README.md"]
    assert b"path/to" not in there["README.md"]
    assert hub.cards == [there["README.md"].decode()]

    inputs = images()
    torch.save(inputs, folders["first"].parent / "inputs.pt")
    script = """
import sys, timm, torch
from swag_models import load_model
inputs = torch.load(sys.argv[1])
model = load_model(sys.argv[2])
theirs = timm.create_model(sys.argv[2].split("@")[0], pretrained=True).eval()
print([model(inputs).tolist(), theirs(inputs).tolist()])
"""
    outputs, errors = run(script, str(folders["first"].parent / "inputs.pt"), f"{address}@{commit}")
    assert outputs, errors
    expected = load_model(folders["first"])(inputs)
    for output in outputs:
        torch.testing.assert_close(torch.tensor(output), expected.detach(), rtol=1e-5, atol=1e-6)
    assert "first: the weights are licensed MIT\n" in errors


def test_weights_and_a_recipe_that_an_earlier_version_left_are_deleted_in_the_same_commit(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    sharded, errors = push(folders["sharded"])
    assert sharded, errors
    there = hub.repos[REPO].commits[sharded[1]]
    assert "model.safetensors.index.json" in there
    hub.put_repo(REPO, {**there, "recipe.json": b"{}", "vocabulary.parquet": b"", "notes.txt": b""})
    single, errors = push(folders["first"])
    assert single, errors
    assert len(hub.repos[REPO].commits) == 4
    left = sorted(hub.repos[REPO].commits[single[1]])
    assert left == [".gitattributes", "README.md", "config.json", "model.safetensors", "notes.txt"]


def test_only_the_published_files_are_sent(
    hub: Hub, token: None, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name, content in read_files(folders["first"]).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".env").write_text("SECRET=1")
    sent, errors = push(tmp_path)
    assert sent, errors
    assert ".env" not in hub.repos[REPO].commits[sent[1]]


def test_a_branch_is_made_and_named_in_the_card(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    sent, errors = push(folders["first"], revision="try/1", private=True)
    assert sent, errors
    assert sent[0] == "hf-hub:org/tiny@try/1"
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.branches["try/1"] == sent[1] != repo.branches["main"]
    assert b'load_model("hf-hub:org/tiny@try/1")' in repo.commits[sent[1]]["README.md"]
    assert get("hf-hub:org/tiny@try/1").commit == sent[1]


def test_what_is_to_be_private_is_not_sent_to_a_public_repository(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["first"]))
    sent, errors = push(folders["second"], private=True)
    assert sent is None
    assert re.search(
        "PublishError: org/tiny is there already, and public; make it private on its page", errors
    )
    assert hub.repos[REPO].branches["main"] == commit


def test_the_same_again_makes_no_commit(hub: Hub, token: None, folders: dict[str, Path]) -> None:
    first, errors = push(folders["first"])
    assert first, errors
    again, errors = push(folders["first"])
    assert again == first, errors
    assert len(hub.repos[REPO].commits) == 2


def test_a_dry_run_asks_nothing(hub: Hub, folders: dict[str, Path]) -> None:
    sent, errors = push(folders["sharded"], dry_run=True)
    assert sent, errors
    address, commit, url, files = sent
    assert (address, commit, url) == ("hf-hub:org/tiny", None, None)
    sizes = {path.name: path.stat().st_size for path in folders["sharded"].iterdir()}
    assert files.keys() == sizes.keys()
    assert all(files[name] == size for name, size in sizes.items() if name != "README.md")
    assert not hub.requests


def test_without_token_nothing_is_asked(hub: Hub, folders: dict[str, Path]) -> None:
    sent, errors = push(folders["first"])
    assert sent is None
    assert (
        errors.strip()
        == f"PublishError: no token to write to {REPO} with; set HF_TOKEN, or run: hf auth login"
    )
    assert not hub.requests


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (
            READER,
            REPO,
            r"nothing was published: no permission for org/tiny \(HTTP 403: .*\); set HF_TOKEN",
        ),
        (
            "hf_stolen",
            REPO,
            r"nothing was published: no permission for org/tiny \(HTTP 401: Invalid credentials",
        ),
        (WRITER, "tiny", "repository is 'tiny'; write org/repo, and the branch as revision="),
        (WRITER, "org/tiny@dev", "repository is 'org/tiny@dev'"),
        (WRITER, "org/a/b", "repository is 'org/a/b'"),
        (WRITER, "org/a..b", "repository is 'org/a..b'"),
        (WRITER, "org/-a", "repository is 'org/-a'"),
    ],
)
def test_what_the_hub_does_not_take_is_one_line(
    hub: Hub,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    repo: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    sent, errors = push(folders["first"], repo)
    assert sent is None
    assert re.search(message, errors)
    assert len(errors.splitlines()) == 1
    assert REPO not in hub.repos


def test_a_hub_that_cannot_be_reached_is_one_line(
    token: None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as gone:
        monkeypatch.setenv("HF_ENDPOINT", gone.url)
    sent, errors = push(folders["first"])
    assert sent is None
    assert re.fullmatch(
        r"PublishError: nothing was published: the Hub cannot be reached \(.*refused\)\n", errors
    )


def test_a_refused_upload_publishes_nothing(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    path = f"/storage/{sha256(folders['first'] / 'model.safetensors')}"
    hub.twists[path] = [Twist(status=403)]
    sent, errors = push(folders["first"])
    assert sent is None
    assert re.search(
        r"PublishError: nothing was published: no permission for org/tiny \(HTTP 403: Forbidden\)",
        errors,
    )
    assert len(hub.repos[REPO].commits) == 1


def test_a_folder_whose_weights_changed_is_not_sent(
    hub: Hub, token: None, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name, content in read_files(folders["first"]).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.safetensors").write_bytes(
        (folders["second"] / "model.safetensors").read_bytes()
    )
    sent, errors = push(tmp_path)
    assert sent is None
    assert "SHA-256 is" in errors
    assert not hub.requests


def test_a_kill_while_sending_leaves_the_repository_as_it_was(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["second"]))
    path = f"/storage/{sha256(folders['first'] / 'model.safetensors')}"
    hub.twists[path] = [Twist(hold=0)]
    before = read_files(folders["first"])
    with start(PUSH, str(folders["first"]), REPO, "{}") as process:
        hub.wait_for(path, 1)
        process.kill()
    hub.release.set()
    assert read_files(folders["first"]) == before
    assert get(f"hf-hub:{REPO}").commit == commit == hub.repos[REPO].branches["main"]
