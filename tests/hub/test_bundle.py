"""Bundles: written on one machine, used on another as a cache folder or as a mirror."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from fake_hub import Hub
from fetch_support import isolate, list_files, make_safetensors, run, small_disk
from hub_support import read_files
from server import Server, sha256

import swag_models
from swag_models.cli import main
from swag_models.errors import FetchError
from swag_models.hub import bundle as bundle_module
from swag_models.hub.bundle import LICENSES, SUMS_FILE
from swag_models.hub.cache import PACKAGE_DATA, is_remote
from swag_models.hub.fetch import fetch_weights
from swag_models.registry import SPECS
from swag_models.resumable import read_state
from swag_models.spec import ModelSpec, Source

NAME = "vit_nano_hashtags"
FILE = "models/vit-nano.safetensors"
WEIGHTS = PACKAGE_DATA / f"{NAME}.safetensors"
Capture = pytest.CaptureFixture[str]


def publish(url: str, monkeypatch: pytest.MonkeyPatch, digest: str | None) -> ModelSpec:
    """Put a model into the catalog whose only source is this URL."""
    sources = (Source(url, "timm", digest),)
    spec = replace(SPECS[NAME], sources=sources, license="cc-by-nc-4.0")
    monkeypatch.setitem(SPECS, NAME, spec)
    return spec


@pytest.fixture(params=["published", "pinned"])
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A bundle that another machine wrote, moved to its own folder, without a network."""
    isolate(tmp_path / "first", monkeypatch)
    folder = tmp_path / "first" / "bundle"
    with Server() as server:
        digest = sha256(WEIGHTS)[:8] if request.param == "published" else None
        publish(server.put(f"/{FILE}", WEIGHTS), monkeypatch, digest)
        assert main(["bundle", NAME, "-o", str(folder), "--quiet"]) == 0
        assert len(server.requests) == 1
    folder = shutil.move(folder, tmp_path / "closed network")
    shutil.rmtree(tmp_path / "first")
    isolate(tmp_path / "second", monkeypatch)
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(folder))
    monkeypatch.setenv("SWAG_MODELS_OFFLINE", "1")
    return Path(folder)


def flip_byte(path: Path) -> None:
    """Change one byte of a file, and neither its size nor its times."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_model_is_loaded_by_name_from_a_bundle(bundle: Path, capsys: Capture) -> None:
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS_FILE], cwd=bundle, check=False
    )
    assert checked.returncode == 0
    listed = {line.split("  ")[1] for line in (bundle / SUMS_FILE).read_text().splitlines()}
    files = {str(path.relative_to(bundle)) for path in list_files(bundle)}
    assert {name for name in files - listed if not name.startswith("records/")} == {
        SUMS_FILE,
        ".lock",
    }
    assert listed == {FILE, f"specs/{NAME}.json", "licenses/cc-by-nc-4.0.txt", "README.txt"}

    loaded = swag_models.load_model(NAME).state_dict()
    expected = swag_models.load_model(NAME, weights=WEIGHTS).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    spec = ModelSpec.from_json((bundle / "specs" / f"{NAME}.json").read_text())
    assert spec == SPECS[NAME]
    assert main(["verify"]) == 0
    assert f"ok\t{NAME}\t{sha256(WEIGHTS)}\t{bundle / FILE}\n" in capsys.readouterr().out


def test_a_changed_byte_is_refused(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip_byte(bundle / FILE)
    with pytest.raises(FetchError, match="not on this machine, and offline mode is set"):
        swag_models.load_model(NAME)
    assert f"{bundle / FILE} is ignored: its SHA-256 is {sha256(bundle / FILE)}" in caplog.text
    assert main(["verify", NAME]) == 1


def test_a_bundle_can_be_read_only(bundle: Path) -> None:
    records = {path: path.read_bytes() for path in list_files(bundle / "records")}
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        assert fetch_weights(SPECS[NAME]) == bundle / FILE
    finally:
        for path in [bundle, *bundle.rglob("*/")]:
            path.chmod(0o700)
    if os.getuid() != 0:
        assert {path: path.read_bytes() for path in records} == records


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of a folder as any web server does; yield its URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_bundle_is_the_content_of_a_mirror(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = isolate(tmp_path / "third", monkeypatch)
    shutil.copytree(bundle / "records", cache / "records")  # the hash of a pinned source
    with serve(bundle) as url:
        monkeypatch.setenv("SWAG_MODELS_MIRROR", url)
        path = fetch_weights(SPECS[NAME])
        assert path.is_relative_to(cache)
        assert path.read_bytes() == WEIGHTS.read_bytes()
        shutil.rmtree(cache / "files")
        flip_byte(bundle / FILE)
        with pytest.raises(FetchError, match=f"SHA-256 is {sha256(bundle / FILE)[:16]}"):
            fetch_weights(SPECS[NAME])


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelSpec]:
    """A model of the catalog on a server, with an empty cache."""
    isolate(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with Server() as server:
        url = server.put(f"/{FILE}", WEIGHTS)
        yield publish(url, monkeypatch, sha256(WEIGHTS))


def test_an_interrupted_bundle_is_resumed(
    spec: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise KeyboardInterrupt

    target = tmp_path / "bundle" / FILE
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module.shutil, "copyfile", stop)
        assert main(["bundle", NAME, "-o", "bundle"]) == 130
    assert not list_files(target.parent)
    assert main(["bundle", NAME, "-o", "bundle"]) == 0
    assert capsys.readouterr().out == f"{NAME}\tbundle/{FILE}\n"
    state = read_state(target)
    assert main(["bundle", NAME, "-o", "bundle"]) == 0
    assert caplog.messages[-1] == "bundle is already done"
    assert read_state(target) == state
    flip_byte(target)
    caplog.clear()
    assert main(["bundle", NAME, "-o", "bundle"]) == 0
    assert not caplog.messages
    assert sha256(target) == sha256(WEIGHTS)


def test_models_are_added_to_a_bundle(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["bundle", NAME, "-o", "bundle"]) == 0
    first = Path("bundle", SUMS_FILE).read_text()
    other = make_safetensors()
    with Server() as server:
        publish(server.put("/other/x.safetensors", other), monkeypatch, None)
        assert main(["bundle", NAME, "-o", "bundle"]) == 0
    added = set(Path("bundle", SUMS_FILE).read_text().splitlines()) - set(first.splitlines())
    assert f"{sha256(other)}  other/x.safetensors" in added
    assert f"{sha256(WEIGHTS)}  {FILE}" in first


WRITE_BUNDLE = """
import sys
from pathlib import Path
from swag_models.hub.bundle import write_bundle
from swag_models.spec import ModelSpec
spec = ModelSpec.from_json(sys.argv[1])
print(write_bundle([spec], Path("bundle"))[spec.name])
assert "torch" not in sys.modules
"""


def test_shards_of_the_hub_are_bundled_beside_their_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    model = swag_models.load_model(NAME)
    folder = swag_models.publish.save(model, "model", max_shard_size=100_000)
    index = folder / "model.safetensors.index.json"
    spec = replace(
        SPECS[NAME],
        sources=(Source(f"hf://org/tiny/{index.name}", "timm", sha256(index)),),
        license="cc-by-nc-4.0",
    )
    with Hub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.put_repo("org/tiny", read_files(folder))
        path, errors = run(spec, WRITE_BUNDLE)
    assert path is not None, errors
    assert path.parent == Path("bundle", "hf", "org", "tiny")
    assert len(list_files(path.parent)) == len(list(folder.glob("model*")))
    isolate(tmp_path / "second", monkeypatch)
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(tmp_path / "bundle"))
    shard = path.with_name("model-00002-of-00018.safetensors")
    flip_byte(shard)
    assert run(spec, SWAG_MODELS_OFFLINE="1")[0] is None
    flip_byte(shard)
    assert run(spec, SWAG_MODELS_OFFLINE="1") == (tmp_path / path, "")


def test_a_cached_file_that_has_changed_is_not_bundled(spec: ModelSpec, capsys: Capture) -> None:
    path = fetch_weights(spec)
    flip_byte(path)
    assert main(["bundle", NAME, "-o", "bundle"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    digests = f"SHA-256 of {path} is {sha256(path)}, not {sha256(WEIGHTS)}"
    assert message == f"swag-models: error: {digests}; delete it, and run again"
    assert not Path("bundle", FILE).exists()


def test_errors_are_one_line(spec: ModelSpec, tmp_path: Path, capsys: Capture) -> None:
    published = swag_models.publish.save(
        swag_models.load_model(NAME, weights=WEIGHTS), tmp_path / "published"
    )
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / SUMS_FILE).write_text("nothing")
    capsys.readouterr()
    for arguments, code, message in (
        ([str(published), "-o", "x"], 2, "allowed: models of the catalog"),
        (["regnety_nano_hashtags", "-o", "x"], 2, "a bundle has no files for these models"),
        (["no_such_model", "-o", "x"], 2, "unknown model"),
        ([NAME, "-o", "file"], 2, "must be a folder; file is a file"),
        ([NAME, "-o", "other"], 2, "is not a list of hashes"),
    ):
        assert main(["bundle", *arguments]) == code
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("swag-models: error: ")
        assert message in error
    assert not Path("x").exists()


def test_a_full_disk_is_one_line(spec: ModelSpec, tmp_path: Path, capsys: Capture) -> None:
    with small_disk(tmp_path / "disk", 0.3):
        assert main(["bundle", NAME, "-o", "disk/bundle"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "No space left on device; finished work is kept" in error
        assert not Path("disk", "bundle", FILE).exists()


def test_every_model_of_the_catalog_can_be_bundled() -> None:
    """Licence texts are complete, and files of different hosts do not share a path."""
    names: dict[str, str] = {}
    for spec in SPECS.values():
        for source in filter(is_remote, spec.sources):
            assert (LICENSES / f"{spec.license}.txt").is_file()
            assert names.setdefault(bundle_module._locate(source), source.url) == source.url
    text = (LICENSES / "cc-by-nc-4.0.txt").read_text("utf-8")
    assert "Attribution-NonCommercial 4.0 International Public License" in text
    for number in range(1, 9):
        assert f"Section {number} " in text


def test_records_of_a_bundle_name_no_folder_of_the_machine(bundle: Path) -> None:
    (record,) = list_files(bundle / "records")
    assert json.loads(record.read_text())["path"] == FILE
