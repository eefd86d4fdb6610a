"""Records of verified files: copied caches, damaged records, other installations, leftovers."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from fetch_support import FETCH, isolate, list_files, make_safetensors, make_spec, run
from server import Fault, Server, sha256

from swag_models import get_spec
from swag_models.hub import cache as cache_module
from swag_models.hub.cache import CacheRecord, is_unchanged, record_path
from swag_models.hub.fetch import fetch_weights, find_weights, verify_weights
from swag_models.spec import ModelSpec, Source

WEIGHTS = make_safetensors()
SECOND = 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder."""
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from now on."""
    paths: list[Path] = []
    original = cache_module.hash_file
    monkeypatch.setattr(
        cache_module, "hash_file", lambda path: (paths.append(path), original(path))[1]
    )
    return paths


def fetch_one(server: Server, *faults: Fault, sha: str | None = sha256(WEIGHTS)) -> ModelSpec:
    """Fetch a model; return its spec."""
    spec = make_spec(Source(server.put("/x.pth", WEIGHTS, *faults), "timm", sha))
    fetch_weights(spec)
    return spec


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_cache_in_a_layer_of_a_container_image_is_not_hashed_again(
    format: int, server: Server, cache: Path, tmp_path: Path, hashed: list[Path]
) -> None:
    spec = fetch_one(server)
    path = find_weights(spec)
    assert path is not None
    before = path.stat().st_mtime_ns
    with tarfile.open(tmp_path / "layer.tar", "w", format=format) as layer:
        layer.add(cache, "cache")
    subprocess.run(["rm", "-r", str(cache)], check=True)
    subprocess.run(["tar", "-xf", str(tmp_path / "layer.tar"), "-C", str(tmp_path)], check=True)
    assert path.stat().st_mtime_ns == before // SECOND * SECOND
    assert find_weights(spec) == path
    assert not hashed


@pytest.mark.parametrize("unit", [100, 1000, 10**6, SECOND, 2 * SECOND])
def test_a_coarser_time_of_a_copy_is_accepted_and_any_other_is_not(
    unit: int, server: Server
) -> None:
    spec = fetch_one(server)
    path = find_weights(spec)
    assert path is not None
    time = 1_700_000_001_123_456_789
    record = CacheRecord(spec.sources[0].url, str(path), sha256(WEIGHTS), len(WEIGHTS), time)
    for mtime, same in [
        (time // unit * unit, True),
        (time // unit * unit + unit, False),
        (time // unit * unit + 1, False),
        (time - 4 * SECOND, False),
    ]:
        os.utime(path, ns=(mtime, mtime))
        assert is_unchanged(record, spec.sources[0]) == same, mtime


@pytest.mark.parametrize(
    "change",
    [
        {"path": 5},
        {"path": "a\0b"},
        {"path": "\ud800"},
        {"mtime_ns": "x"},
        {"mtime_ns": 1.5},
        {"sha256": 7},
        {"sha256": ""},
        {"sha256": "ab"},
        {"size": None},
        {"more": 1},
    ],
    ids=repr,
)
@pytest.mark.parametrize("sha", [sha256(WEIGHTS), None], ids=["hash", "pin"])
def test_a_damaged_record_is_ignored(
    change: dict[str, object], sha: str | None, server: Server
) -> None:
    spec = fetch_one(server, sha=sha)
    record = record_path(spec.sources[0])
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    assert fetch_weights(spec).read_bytes() == WEIGHTS
    assert json.loads(record.read_text())["sha256"] == sha256(WEIGHTS)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\x00", '{"url": 1'])
def test_a_record_of_another_form_is_ignored(text: str, server: Server) -> None:
    spec = fetch_one(server)
    record_path(spec.sources[0]).write_text(text)
    assert fetch_weights(spec).read_bytes() == WEIGHTS


def test_a_shipped_model_is_never_taken_from_another_installation(tmp_path: Path) -> None:
    spec = get_spec("vit_nano_hashtags")
    (source,) = spec.sources
    other = tmp_path / "other" / source.file_name
    other.parent.mkdir()
    expected = fetch_weights(spec)
    other.write_bytes(expected.read_bytes())
    status = other.stat()
    record = record_path(source)
    record.parent.mkdir(parents=True)
    record.write_text(
        json.dumps(
            {
                "url": source.url,
                "path": str(other),
                "sha256": source.sha256,
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
        )
    )
    assert fetch_weights(spec) == find_weights(spec) == expected


def test_files_that_killed_processes_left_are_removed(server: Server, cache: Path) -> None:
    first = server.put("/a/x.pth", WEIGHTS, Fault(cut=2000), Fault(status=404))
    second = server.put("/b/x.pth", WEIGHTS)
    spec = make_spec(*(Source(url, "timm", sha256(WEIGHTS)) for url in (first, second)))
    leftover = record_path(spec.sources[1]).with_name(".0123.tmp")
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half a rec")
    assert fetch_weights(spec).read_bytes() == WEIGHTS
    assert not [path for path in list_files(cache) if path.suffix in (".tmp", ".part")]


# What tqdm and this library look for; a real kernel needs a browser or a client.
NOTEBOOK = """
import sys, types
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
class Shell: pass
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = Shell
"""


PROMPT = "import os, sys; sys.ps1 = '>>> '\n"
FRONT_ENDS = {
    "Jupyter": (NOTEBOOK, True),
    "another that shows stderr": (PROMPT + "sys.stderr = os.fdopen(os.dup(2), 'w')\n", True),
    "interactive, stderr in a pipe": (PROMPT, False),
    "script, stderr replaced": ("import os, sys; sys.stderr = os.fdopen(os.dup(2), 'w')\n", False),
    "script": ("", False),
}


@pytest.mark.parametrize("kind", FRONT_ENDS)
def test_an_interactive_front_end_gets_a_progress_bar(kind: str, server: Server) -> None:
    spec = make_spec(Source(server.put("/x.pth", WEIGHTS), "timm", sha256(WEIGHTS)))
    code, drawn = FRONT_ENDS[kind]
    path, errors = run(spec, code + FETCH)
    assert path is not None, errors
    assert ("x.pth: 100%|" in errors) == drawn
    assert "Warning" not in errors


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to itself", "too large"])
def test_a_record_that_is_not_a_record_file_is_ignored(kind: str, server: Server) -> None:
    spec = fetch_one(server)
    path, record = find_weights(spec), record_path(spec.sources[0])
    content = record.read_text("utf-8")
    record.unlink()
    match kind:
        case "fifo":
            os.mkfifo(record)
        case "device":
            record.symlink_to("/dev/zero")
        case "folder":
            record.mkdir()
        case "link to itself":
            record.symlink_to(record)
        case "too large":
            record.write_text(content + " " * (1 << 24), "utf-8")
    assert find_weights(spec) == path  # by its hash


@pytest.mark.parametrize(
    "change", [{"url": "https://elsewhere.example/x.pth"}, {"path": "/" + "a" * 5000}]
)
def test_a_record_of_another_file_is_ignored(
    change: dict[str, str], server: Server, tmp_path: Path
) -> None:
    spec = fetch_one(server, sha=None)
    other = tmp_path / "other.pth"
    other.write_bytes(make_safetensors(seed=1))
    status, record = other.stat(), record_path(spec.sources[0])
    values = {
        **json.loads(record.read_text("utf-8")),
        "path": str(other),
        "sha256": sha256(other),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        **change,
    }
    record.write_text(json.dumps(values), "utf-8")
    assert find_weights(spec) != other
    assert all(len(check.sha256) < 100 for check in verify_weights(spec))
