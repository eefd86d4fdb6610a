"""Models pushed to a Hugging Face Hub on loopback, through the real client."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fake_hub import Hub
from hub_support import PUSH, READER, REPO, WRITER, fetch_model, push, read_files, run, start
from server import Fault, Server, sha256
from tiny import images

from swag_models import load_model

pytestmark = pytest.mark.usefixtures("caches")


def test_a_pushed_folder_loads_as_the_same_model(
    hub: Hub, token: None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, errors = push(folders["first"], message="The first")
    assert sent, errors
    address, commit, url, files = sent
    assert (address, url) == (f"hf-hub:{REPO}", f"{hub.url}/{REPO}/commit/{commit}")
    assert len(hub.repos[REPO].commits) == 2  # the repository's first, and one for all files
    contents = dict(hub.repos[REPO].commits[commit])
    del contents[".gitattributes"]
    assert {name: len(content) for name, content in contents.items()} == files
    assert contents["model.safetensors"] == (folders["first"] / "model.safetensors").read_bytes()
    card = contents["README.md"].decode()
    assert 'load_model("hf-hub:org/tiny")' in card
    assert 'timm.create_model("hf-hub:org/tiny", pretrained=True)' in card
    assert "path/to" not in card
    assert hub.cards == [card]

    inputs = images()
    torch.save(inputs, folders["first"].parent / "inputs.pt")
    script = """
import sys, timm, torch
from swag_models import load_model
inputs = torch.load(sys.argv[1])
model = load_model(sys.argv[2])
timm_model = timm.create_model(sys.argv[2].split("@")[0], pretrained=True).eval()
print([model(inputs).tolist(), timm_model(inputs).tolist()])
"""
    outputs, errors = run(script, str(folders["first"].parent / "inputs.pt"), f"{address}@{commit}")
    assert outputs, errors
    expected = load_model(folders["first"])(inputs)
    for output in outputs:
        torch.testing.assert_close(torch.tensor(output), expected.detach(), rtol=1e-5, atol=1e-6)
    assert "first: the weights are licensed MIT\n" in errors


def test_files_of_an_earlier_version_are_deleted_in_the_same_commit(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    sharded, errors = push(folders["sharded"])
    assert sharded, errors
    contents = hub.repos[REPO].commits[sharded[1]]
    assert "model.safetensors.index.json" in contents
    recipe = {"recipe.json": b"{}", "vocabulary.parquet": b""}
    hub.put_repo(REPO, {**contents, **recipe, "notes.txt": b""})
    single, errors = push(folders["first"])
    assert single, errors
    assert len(hub.repos[REPO].commits) == 4
    names = sorted(hub.repos[REPO].commits[single[1]])
    assert names == [".gitattributes", "README.md", "config.json", "model.safetensors", "notes.txt"]


def test_only_the_published_files_are_sent(
    hub: Hub, token: None, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name, content in read_files(folders["first"]).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".env").write_text("SECRET=1")
    sent, errors = push(tmp_path)
    assert sent, errors
    assert ".env" not in hub.repos[REPO].commits[sent[1]]


def test_a_branch_is_created_and_named_in_the_card(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    sent, errors = push(folders["first"], revision="try/1", private=True)
    assert sent, errors
    assert sent[0] == "hf-hub:org/tiny@try/1"
    repo = hub.repos[REPO]
    assert repo.private
    assert repo.branches["try/1"] == sent[1] != repo.branches["main"]
    assert b'load_model("hf-hub:org/tiny@try/1")' in repo.commits[sent[1]]["README.md"]
    assert fetch_model("hf-hub:org/tiny@try/1").commit == sent[1]


def test_private_is_an_error_for_a_public_repository(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["first"]))
    sent, errors = push(folders["second"], private=True)
    assert sent is None
    assert re.search(
        "PublishError: org/tiny exists and is public; make it private on its page", errors
    )
    assert hub.repos[REPO].branches["main"] == commit


def test_pushing_the_same_files_again_makes_no_commit(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    first, errors = push(folders["first"])
    assert first, errors
    again, errors = push(folders["first"])
    assert again == first, errors
    assert len(hub.repos[REPO].commits) == 2


def test_a_dry_run_sends_no_request(hub: Hub, folders: dict[str, Path]) -> None:
    sent, errors = push(folders["sharded"], dry_run=True)
    assert sent, errors
    address, commit, url, files = sent
    assert (address, commit, url) == ("hf-hub:org/tiny", None, None)
    sizes = {path.name: path.stat().st_size for path in folders["sharded"].iterdir()}
    assert files.keys() == sizes.keys()
    assert all(files[name] == size for name, size in sizes.items() if name != "README.md")
    assert not hub.requests


def test_without_token_no_request_is_sent(hub: Hub, folders: dict[str, Path]) -> None:
    sent, errors = push(folders["first"])
    assert sent is None
    assert errors.strip() == (
        f"PublishError: no token with write access to {REPO}; set HF_TOKEN, or run: hf auth login"
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
        (WRITER, "tiny", "invalid repository 'tiny': write org/repo, and the branch as revision="),
        (WRITER, "org/tiny@dev", "invalid repository 'org/tiny@dev'"),
        (WRITER, "org/a/b", "invalid repository 'org/a/b'"),
        (WRITER, "org/a..b", "invalid repository 'org/a..b'"),
        (WRITER, "org/-a", "invalid repository 'org/-a'"),
    ],
)
def test_a_rejected_push_is_an_error_of_one_line(
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


def test_an_unreachable_hub_is_an_error_of_one_line(
    token: None, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as stopped_server:
        monkeypatch.setenv("HF_ENDPOINT", stopped_server.url)
    sent, errors = push(folders["first"])
    assert sent is None
    message = r"nothing was published: the Hub cannot be reached \(.*refused.*\)"
    assert re.fullmatch(rf"PublishError: {message}\n", errors)


def test_a_rejected_upload_publishes_nothing(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    path = f"/storage/{sha256(folders['first'] / 'model.safetensors')}"
    hub.faults[path] = [Fault(status=403)]
    sent, errors = push(folders["first"])
    assert sent is None
    assert re.search(
        r"PublishError: nothing was published: no permission for org/tiny \(HTTP 403: Forbidden\)",
        errors,
    )
    assert len(hub.repos[REPO].commits) == 1


def test_a_folder_with_changed_weights_is_not_pushed(
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


def test_a_killed_push_leaves_the_repository_unchanged(
    hub: Hub, token: None, folders: dict[str, Path]
) -> None:
    commit = hub.put_repo(REPO, read_files(folders["second"]))
    path = f"/storage/{sha256(folders['first'] / 'model.safetensors')}"
    hub.faults[path] = [Fault(hold=0)]
    before = read_files(folders["first"])
    with start(PUSH, str(folders["first"]), REPO, "{}") as process:
        hub.wait_for(path, 1)
        process.kill()
    hub.release.set()
    assert read_files(folders["first"]) == before
    assert fetch_model(f"hf-hub:{REPO}").commit == commit == hub.repos[REPO].branches["main"]


@pytest.mark.slow
def test_a_pushed_model_opens_in_transformers_and_what_it_saves_loads_from_the_hub(
    hub: Hub, token: None, folders: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    sent, errors = push(folders["first"])
    assert sent, errors
    script = """
import json, sys, torch
from transformers import AutoModelForImageClassification
inputs = torch.load(sys.argv[2])
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
model.save_pretrained(sys.argv[3])
print(json.dumps(model(inputs).logits.tolist()))
"""
    inputs = images()
    torch.save(inputs, tmp_path / "inputs.pt")
    logits, errors = run(script, REPO, str(tmp_path / "inputs.pt"), str(tmp_path / "saved"))
    assert logits, errors
    expected = load_model(folders["first"])(inputs).detach()
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-5, atol=1e-5)
    hub.put_repo("org/saved", read_files(tmp_path / "saved"))
    script = """
import json, sys, torch, swag_models
model = swag_models.load_model(sys.argv[1])
print(json.dumps(model(torch.load(sys.argv[2])).tolist()))
"""
    logits, errors = run(script, "hf-hub:org/saved", str(tmp_path / "inputs.pt"))
    assert logits, errors
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-5, atol=1e-5)
