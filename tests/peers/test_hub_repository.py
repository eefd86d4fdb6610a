"""Scenarios of torch.hub's tests: a repository's archive is downloaded, trusted, listed and loaded.

The archive is served on loopback. As control, a repository of torchvision's models runs through the
same scenarios.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from server import Server

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[2]
CONTROL = """
dependencies = ["torch", "torchvision"]
from torchvision.models import shufflenet_v2_x0_5
"""
# torch.hub has no setting for its host.
PREPARE = """
import sys, threading, torch
torch.hub._git_archive_link = lambda owner, name, ref: f"{sys.argv[1]}/{owner}/{name}/{ref}.zip"
torch.hub._validate_not_a_forked_repo = lambda *_: None
repo, entry = sys.argv[2:4]
"""


@dataclass(frozen=True)
class Repository:
    """A repository on loopback, and one of its entry points."""

    name: str
    entry: str
    server: Server
    folder: Path

    def run(self, code: str, answer: str = "", **environment: str) -> tuple[int, str, str]:
        """Run a script with `repo` and `entry` defined; return exit code, stdout and stderr."""
        done = subprocess.run(
            [sys.executable, "-c", PREPARE + code, self.server.url, self.name, self.entry],
            input=answer,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, "TORCH_HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
            | environment,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


def archive(files: dict[str, bytes]) -> bytes:
    """Return a zip file as GitHub makes it: everything in one folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("repository-0123abc/", b"")
        for name, content in files.items():
            target.writestr(f"repository-0123abc/{name}", content)
    return file.getvalue()


def read_checkout() -> dict[str, bytes]:
    """Read what a model needs of this repository."""
    paths = [ROOT / "hubconf.py", *(ROOT / "swag_models").rglob("*")]
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(params=["swag_models", "torchvision"])
def repository(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Repository:
    ours = request.param == "swag_models"
    content = archive(read_checkout() if ours else {"hubconf.py": CONTROL.encode()})
    for ref in ("main", "v1"):
        server.put(f"/owner/repository/{ref}.zip", content)
    entry = "vit_nano_hashtags" if ours else "shufflenet_v2_x0_5"
    return Repository("owner/repository:main", entry, server, tmp_path)


LOAD = "model = torch.hub.load(repo, entry, {options}, verbose=False)\nprint(type(model).__name__)"
OPTIONS = {"vit_nano_hashtags": "pretrained=False", "shufflenet_v2_x0_5": "weights=None"}


def load(repository: Repository, options: str = "trust_repo=True") -> str:
    return LOAD.format(options=f"{OPTIONS[repository.entry]}, {options}")


def test_entries_are_listed_and_explained(repository: Repository) -> None:
    code = (
        "print(entry in torch.hub.list(repo, trust_repo=True, verbose=False))\n"
        "print(len(torch.hub.help(repo, entry, trust_repo=True)) > 50)"
    )
    status, printed, errors = repository.run(code)
    assert status == 0, errors
    assert printed.endswith("\nTrue\nTrue\n")  # after the line about the download


def test_the_archive_is_downloaded_once(repository: Repository) -> None:
    for _ in range(2):
        code, printed, errors = repository.run(load(repository))
        assert (code, bool(printed.strip())) == (0, True), errors
    assert len(repository.server.requests) == 1
    assert repository.run(load(repository, "trust_repo=True, force_reload=True"))[0] == 0
    assert len(repository.server.requests) == 2


def test_another_branch_is_another_archive(repository: Repository) -> None:
    assert repository.run(load(repository))[0] == 0
    other = Repository(
        "owner/repository:v1", repository.entry, repository.server, repository.folder
    )
    assert other.run(load(other))[0] == 0
    assert [request.path for request in repository.server.requests] == [
        "/owner/repository/main.zip",
        "/owner/repository/v1.zip",
    ]


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_the_user_is_asked_for_trust(answer: str, code: int, repository: Repository) -> None:
    trust = 'trust_repo="check"'
    assert repository.run(load(repository, trust), answer)[0] == code
    if code == 0:  # and not asked again
        assert repository.run(load(repository, trust))[0] == 0


def test_a_missing_dependency_is_named(repository: Repository) -> None:
    code = (
        "import importlib.util\n"
        "find, hidden = importlib.util.find_spec, 'torchvision'\n"
        "importlib.util.find_spec = lambda name, *a: None if name == hidden else find(name)\n"
        + load(repository)
    )
    status, _, errors = repository.run(code)
    assert status == 1
    assert "Missing dependencies: torchvision" in errors.splitlines()[-1]


def test_two_threads_load_at_once(repository: Repository) -> None:
    assert repository.run(load(repository))[0] == 0
    code = (
        "import threading\n"
        "def work():\n"
        f"    {load(repository).splitlines()[0]}\n"
        "    names.append(type(model).__name__)\n"
        "names = []\n"
        "threads = [threading.Thread(target=work) for _ in range(2)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(len(names))"
    )
    assert repository.run(code)[:2] == (0, "2\n")


def test_a_local_folder_is_loaded(repository: Repository) -> None:
    assert repository.run(load(repository))[0] == 0
    (folder,) = (repository.folder / "hub").glob("owner_*")
    local = load(repository, "source='local'").replace("repo,", f"{str(folder)!r},")
    assert repository.run(local)[0] == 0
