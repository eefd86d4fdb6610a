"""Clean environments, weight files, specs, fetching processes and small disks for tests."""

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
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
# Environment variables that affect downloads.
CLEARED_VARIABLES = (
    *PROXY_VARIABLES,
    *map(str.lower, PROXY_VARIABLES),
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SWAG_MODELS_OFFLINE",
    "SWAG_MODELS_MIRROR",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_TOKEN",
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
FETCH_WITHOUT_LOCK = f"""
import contextlib
import swag_models.hub.fetch
swag_models.hub.fetch._lock = contextlib.nullcontext
{FETCH}
"""


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move every cache to `folder`, and clear other settings of downloads.

    Returns:
        The cache folder of this library, which does not exist yet.
    """
    for name in CLEARED_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "xdg"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(folder / "cache"))
    return folder / "cache"


def make_spec(*sources: Source) -> ModelSpec:
    """Make the spec of a small model with these sources."""
    return replace(get_spec("vit_nano_hashtags"), sources=sources)


def make_bytes(size: int, seed: int = 0) -> bytes:
    """Make random bytes."""
    return random.Random(seed).randbytes(size)


def make_safetensors(size: int = 4096, seed: int = 0) -> bytes:
    """Make a safetensors file with one tensor of `size` bytes."""
    header = json.dumps(
        {"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    ).encode()
    return len(header).to_bytes(8, "little") + header + make_bytes(size, seed)


def make_zip(size: int = 4096) -> bytes:
    """Make a torch.save file with one tensor of `size` bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(size) % 251}, buffer)
    return buffer.getvalue()


def list_files(folder: Path) -> list[Path]:
    """List all files below a folder, which need not exist."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def wait_until(condition: Callable[[], bool], timeout: float = 30) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@contextlib.contextmanager
def start(
    spec: ModelSpec, script: str = FETCH, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a process that fetches the weights of `spec` and prints their path.

    It is killed at the end of the `with` block.
    """
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
    """Fetch in a new process; return the path of the weights, None on failure, and its stderr."""
    with start(spec, script, **environment) as process:
        return finish(process)


def finish(process: subprocess.Popen[str]) -> tuple[Path | None, str]:
    """Wait for a started process, and return the same as `run`."""
    output, errors = process.communicate(timeout=60)
    return (Path(output.strip()) if process.returncode == 0 else None), errors


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: float) -> Iterator[Path]:
    """Mount a disk of this size at `folder`; skip the test if mounting is not permitted."""
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", f"size={int(mebibytes * 1024)}k", "tmpfs", str(folder)):
        pytest.skip("mounting a disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Remount a disk with another option, such as "ro"."""
    assert _mount("-o", f"remount,{option}", str(folder))


def _mount(*arguments: str) -> bool:
    return (
        shutil.which("mount") is not None
        and subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    )
