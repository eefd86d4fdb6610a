"""What the tests of publishing share: processes that send to a Hub and fetch from it.

The client reads its settings when it is imported, hence a process for each call; none of them imports torch.
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
class Got:
    """What `get` found: a spec and its weights, or what was written to stderr."""

    spec: ModelSpec | None
    path: Path | None
    errors: str

    @property
    def commit(self) -> str:
        assert self.spec is not None, self.errors
        match = re.fullmatch(r"hf://[\w.-]+/[\w.-]+@(\w{40})/.+", self.spec.sources[0].url)
        assert match
        return match[1]


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str, *arguments: str) -> tuple[Any, str]:
    """(what the process printed, None if it failed; its stderr)."""
    output, errors = (process := start(script, *arguments)).communicate(timeout=120)
    return (json.loads(output) if process.returncode == 0 else None), errors


def get(name: str) -> Got:
    found, errors = run(GET, name)
    return (
        Got(ModelSpec.from_dict(found[0]), Path(found[1]), errors)
        if found
        else Got(None, None, errors)
    )


def push(model: Path | str, repo: str = REPO, **options: Any) -> tuple[Any, str]:
    return run(PUSH, str(model), repo, json.dumps(options))


def asked(hub: Hub) -> list[str]:
    return [f"{request.method} {request.path}" for request in hub.requests]


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
