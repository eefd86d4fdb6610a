"""The page in another process, as `swag-models app` serves it, and requests to it.

Gradio is never imported in the test process, because importing it changes global state.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[1]
MODEL = "vit_nano_hashtags"
APP = ("-m", "swag_models", "app", "--port", "0")


@dataclass
class PageServer:
    """A running page.

    Attributes:
        address: its URL, with a token if the page needs one.
        process: the process that serves it.
        log: the file that its stderr is written to.
        scratch: TMPDIR of the process, which contains the uploads.
    """

    address: str
    process: subprocess.Popen[str]
    log: Path
    scratch: Path

    @property
    def url(self) -> str:
        """The URL without a token."""
        return self.address.partition("?")[0]

    def read_log(self) -> list[str]:
        """The lines on stderr so far."""
        return self.log.read_text("utf-8", "replace").splitlines()

    def measure_memory(self) -> float:
        """The resident memory of the process in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Visitor:
    """A client of a page, with the cookies of one browser and one session of Gradio.

    Args:
        page: the page.
        session: the session hash.
        client: the HTTP client; a new one by default.
    """

    def __init__(
        self, page: PageServer, session: str, client: requests.Session | None = None
    ) -> None:
        self.page = page
        self.session = session
        self.client = client or requests.Session()

    def open(self) -> requests.Response:
        """Open the page, which sets the cookie."""
        return self.client.get(self.page.address, timeout=60)

    def read_handlers(self) -> dict[str, int]:
        """The number of each event handler; of the last one, if several have the same name."""
        config = self.client.get(self.page.url + "config", timeout=60).json()
        return {event["api_name"]: event["id"] for event in config["dependencies"]}

    def upload(self, content: bytes, name: str = "image.jpg") -> str:
        """Upload a file; returns its path on the server."""
        url, files = self.page.url + "gradio_api/upload", {"files": (name, content)}
        response = self.client.post(url, files=files, timeout=60)
        response.raise_for_status()
        return response.json()[0]

    def call(self, handler: int, *data: Any, **fields: Any) -> requests.Response:
        """Call an event handler."""
        body = {"data": data, "fn_index": handler, "session_hash": self.session, **fields}
        return self.client.post(self.page.url + "gradio_api/run/predict", json=body, timeout=120)

    def get(self, path: str, **options: Any) -> requests.Response:
        """Request another address of the page."""
        return self.client.get(self.page.url + path, timeout=60, **options)


@contextmanager
def serve_page(
    folder: Path, *command: str, environment: Mapping[str, str] | None = None
) -> Iterator[PageServer]:
    """Serve the page from another process.

    SIGTERM ends the process, which must leave no temporary file.

    Args:
        folder: an empty folder for its cache, temporary files and log.
        command: arguments of Python.
        environment: further environment variables.
    """
    scratch = folder / "temporary"
    scratch.mkdir()
    variables = {
        **os.environ,
        "SWAG_MODELS_CACHE": str(folder / "cache"),
        "TMPDIR": str(scratch),
        **(environment or {}),
    }
    log = folder / "stderr"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=variables,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdout
        try:
            yield PageServer(process.stdout.readline().strip(), process, log, scratch)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            finally:
                process.kill()  # else leaving the `with` block would wait forever
    assert list(scratch.iterdir()) == []
