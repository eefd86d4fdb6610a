"""Scenarios of huggingface_hub's tests of file downloads, against a Hub on loopback.

Our fetch and the Hub's own client run through the same scenarios, each call in a new process.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_hub import Hub
from fetch_support import list_files
from hub_support import REPO, read_files
from server import Fault, ServedFile, sha256

pytestmark = pytest.mark.peers
OURS = """
import sys
from swag_models import get_spec
from swag_models.errors import SwagModelsError
from swag_models.hub.fetch import fetch_weights
try:
    print(fetch_weights(get_spec(sys.argv[1]), progress=False))
except SwagModelsError as error:
    sys.exit(str(error))
"""
THEIRS = """
import sys
from huggingface_hub import hf_hub_download
repo, _, revision = sys.argv[1].removeprefix("hf-hub:").partition("@")
print(hf_hub_download(repo, "model.safetensors", revision=revision or None))
"""


Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Client:
    """One of the two clients, with a Hub that has one model."""

    script: str
    hub: Hub
    caches: Path
    content: bytes

    @property
    def storage_path(self) -> str:
        """Path of the weights on the Hub's storage."""
        return f"/storage/{sha256(self.content)}"

    def start(self, name: str = f"hf-hub:{REPO}", umask: int = -1, **environment: str) -> Process:
        """Start a download."""
        return subprocess.Popen(
            [sys.executable, "-c", self.script, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ten seconds are the default of theirs; ours is shorter.
            env={**os.environ, "HF_HUB_ETAG_TIMEOUT": "10", **environment},
            umask=umask,
        )

    def finish(self, process: Process) -> Path | None:
        """Return the path of the weights, None after an error; ours is one line."""
        output, errors = process.communicate(timeout=120)
        if self.script == OURS:
            assert "Traceback" not in errors
        return Path(output.strip()) if process.returncode == 0 else None

    def get(self, name: str = f"hf-hub:{REPO}", **options: Any) -> Path | None:
        """Download in a new process."""
        return self.finish(self.start(name, **options))

    def count_bodies(self) -> int:
        """Return how often the weights were requested."""
        return len(
            [
                request
                for request in self.hub.requests
                if request.method == "GET" and request.path == self.storage_path
            ]
        )


@pytest.fixture(params=["swag_models", "huggingface_hub"])
def client(
    request: pytest.FixtureRequest, hub: Hub, caches: Path, folders: Mapping[str, Path]
) -> Client:
    files = read_files(folders["first"])
    hub.put_repo(REPO, files)
    script = OURS if request.param == "swag_models" else THEIRS
    return Client(script, hub, caches, files["model.safetensors"])


def test_a_file_is_downloaded_once(client: Client) -> None:
    first, second = client.get(), client.get()
    assert first == second
    assert first is not None
    assert first.read_bytes() == client.content
    assert client.count_bodies() == 1


def test_a_cached_file_needs_no_network(client: Client) -> None:
    path = client.get()
    client.hub.requests.clear()
    assert client.get(HF_HUB_OFFLINE="1") == path
    assert not client.hub.requests


def test_without_network_and_file_there_is_an_error(client: Client) -> None:
    assert client.get(HF_HUB_OFFLINE="1") is None
    assert not client.hub.requests


@pytest.mark.parametrize("name", ["hf-hub:org/absent", f"hf-hub:{REPO}@absent"])
def test_an_unknown_repository_or_branch_is_an_error(name: str, client: Client) -> None:
    assert client.get(name) is None


def test_an_interrupted_download_is_resumed_or_repeated(client: Client) -> None:
    client.hub.faults[client.storage_path] = [Fault(cut=len(client.content) // 2)]
    path = client.get()
    assert path is not None
    assert path.read_bytes() == client.content


def test_a_file_that_is_too_short_is_not_kept(client: Client) -> None:
    short = client.content[: len(client.content) // 2]
    served = ServedFile(short, None, None)
    client.hub.faults[client.storage_path] = [Fault(served=served)] * 20
    assert client.get() is None
    assert not [path for path in list_files(client.caches) if path.suffix == ".safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_permissions_follow_the_umask(umask: int, client: Client) -> None:
    path = client.get(umask=umask)
    assert path is not None
    assert stat.S_IMODE(path.resolve().stat().st_mode) & umask == 0


def test_six_downloads_at_once_end_with_one_file(client: Client) -> None:
    processes = [client.start() for _ in range(6)]
    paths = {client.finish(process) for process in processes}
    assert len(paths) == 1
    (path,) = paths
    assert path is not None
    assert path.read_bytes() == client.content


def test_a_new_commit_is_downloaded(client: Client) -> None:
    old = client.get()
    changed = client.content[:-1] + bytes([client.content[-1] ^ 1])
    files = {**client.hub.repos[REPO].commits[client.hub.repos[REPO].branches["main"]]}
    config = files["config.json"].replace(sha256(client.content).encode(), sha256(changed).encode())
    client.hub.put_repo(REPO, {**files, "model.safetensors": changed, "config.json": config})
    new = client.get()
    assert new is not None
    assert old is not None
    assert (old.read_bytes(), new.read_bytes()) == (client.content, changed)
