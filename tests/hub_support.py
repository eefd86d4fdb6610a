"""Fetch from and push to a fake Hub in new processes, which import no torch.

The Hub's client reads its settings on import, so each call needs a new process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_hub import Hub

from swag_models import ModelSpec

REPO = "org/tiny"
WRITER, READER = "hf_writer", "hf_reader"
GET = """
import json, sys
from swag_models import get_spec
from swag_models.errors import SwagModelsError
from swag_models.hub.fetch import fetch_weights
try:
    spec = get_spec(sys.argv[1])
    print(json.dumps([spec.to_dict(), str(fetch_weights(spec, progress=False))]))
except SwagModelsError as error:
    sys.exit(f"{type(error).__name__}: {error}")
assert "torch" not in sys.modules
"""
PUSH = """
import json, sys
from swag_models import publish
from swag_models.errors import SwagModelsError
try:
    upload = publish.push(*sys.argv[1:3], **json.loads(sys.argv[3]))
    print(json.dumps([upload.address, upload.commit, upload.url, dict(upload.files)]))
except SwagModelsError as error:
    sys.exit(f"{type(error).__name__}: {error}")
assert "torch" not in sys.modules
"""


@dataclass(frozen=True)
class FetchResult:
    """The spec and the weights of a model, None after an error; and the stderr of the process."""

    spec: ModelSpec | None
    path: Path | None
    errors: str

    @property
    def commit(self) -> str:
        """The commit in the URL of the weights."""
        assert self.spec is not None, self.errors
        match = re.fullmatch(r"hf://[\w.-]+/[\w.-]+@(\w{40})/.+", self.spec.sources[0].url)
        assert match
        return match[1]


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: str) -> tuple[Any, str]:
    """Run a script; return the JSON that it printed, None on failure, and its stderr."""
    process = start(script, *arguments)
    output, errors = process.communicate(timeout=120)
    return (json.loads(output) if process.returncode == 0 else None), errors


def fetch_model(name: str) -> FetchResult:
    """Fetch the spec and the weights of a model."""
    output, errors = run(GET, name)
    if output is None:
        return FetchResult(None, None, errors)
    spec, path = output
    return FetchResult(ModelSpec.from_dict(spec), Path(path), errors)


def push(model: Path | str, repo: str = REPO, **options: Any) -> tuple[Any, str]:
    """Push a folder; return (address, commit, URL, files), None on failure, and its stderr."""
    return run(PUSH, str(model), repo, json.dumps(options))


def list_requests(hub: Hub) -> list[str]:
    """List the method and path of each request."""
    return [f"{request.method} {request.path}" for request in hub.requests]


def read_files(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, by file name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
