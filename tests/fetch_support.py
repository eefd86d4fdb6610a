"""What the tests of fetching share: a clean environment, weight files, specs, processes and small disks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from swag_models import get_spec
from swag_models.spec import ModelSpec, Source

MIB = 1 << 20
CLEARED = (
    *(
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
    ),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *(
        "SWAG_MODELS_OFFLINE",
        "SWAG_MODELS_MIRROR",
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "HF_TOKEN",
    ),
)
FETCH = """
import sys
from swag_models.errors import SwagModelsError
from swag_models.hub.fetch import fetch_weights
from swag_models.spec import ModelSpec
try:
    print(fetch_weights(ModelSpec.from_json(sys.argv[1])))
except SwagModelsError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
FETCH_WITHOUT_LOCK = (
    "import contextlib, swag_models.hub.fetch\nswag_models.hub.fetch._lock = contextlib.nullcontext\n"
    + FETCH
)


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every cache below `folder` and clear what else steers downloads; our cache folder, which does not exist yet."""
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "TORCH_HOME": "torch",
        "XDG_CACHE_HOME": "xdg",
        "HF_HOME": "hf",
        "SWAG_MODELS_CACHE": "cache",
    }.items():
        monkeypatch.setenv(name, str(folder / value))
    return folder / "cache"


def make_spec(*sources: Source) -> ModelSpec:
    """A small model with these sources."""
    return replace(get_spec("vit_nano_hashtags"), sources=sources)


def make_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that compress badly and repeat nowhere."""
    return random.Random(seed).randbytes(size)


def make_safetensors(size: int = 4096, seed: int = 0) -> bytes:
    """A safetensors file with one tensor of `size` bytes."""
    header = json.dumps(
        {"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + make_bytes(size, seed)


def make_zip(size: int = 4096) -> bytes:
    """A torch.save file with one tensor of `size` bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(size) % 251}, buffer)
    return buffer.getvalue()


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, which need not exist."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def wait_until(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Return once the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def start(
    spec: ModelSpec, script: str = FETCH, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that fetches the weights of `spec` and prints their path; killed at the end of the `with` block."""
    with subprocess.Popen(
        [sys.executable, "-c", script, spec.to_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(spec: ModelSpec, script: str = FETCH, **environment: str) -> tuple[Path | None, str]:
    """The path that a process of its own fetched, None if it failed, and what it wrote to stderr."""
    with start(spec, script, **environment) as process:
        return finish(process)


def finish(process: subprocess.Popen[str]) -> tuple[Path | None, str]:
    """The same of a process under way."""
    output, errors = process.communicate(timeout=60)
    return (Path(output.strip()) if process.returncode == 0 else None), errors


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: float) -> Iterator[Path]:
    """A disk of that size mounted at `folder`; skips the test where that is not allowed."""
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", f"size={int(mebibytes * 1024)}k", "tmpfs", str(folder)):
        pytest.skip("mounting a disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a mounted disk."""
    assert _mount("-o", f"remount,{option}", str(folder))


def _mount(*arguments: str) -> bool:
    return (
        shutil.which("mount") is not None
        and subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    )
