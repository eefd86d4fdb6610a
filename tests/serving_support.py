"""Start the servers of examples/serving as processes, and send them images from many clients."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from fetch_support import wait_until
from image_support import ROOT
from PIL import Image

SERVING = ROOT / "examples" / "serving"


class RunningServer:
    """A server process; `log` is what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], file: BinaryIO) -> None:
        self.process, self.file, self.url = process, file, ""

    @property
    def log(self) -> str:
        return os.pread(self.file.fileno(), 1 << 20, 0).decode()

    def post(self, body: bytes, query: str = "") -> httpx.Response:
        return httpx.post(f"{self.url}/classify{query}", content=body, timeout=60, trust_env=False)


@contextmanager
def start_server(
    *arguments: str | Path,
    ready: str,
    environment: Mapping[str, str] = {},
    seconds: float = 60,
    python: str | Path = sys.executable,
) -> Iterator[RunningServer]:
    """Run a server until the end of the `with` block.

    Args:
        arguments: a script of examples/serving, and its arguments.
        ready: pattern of the line with the URL, which the server prints when it is ready.
        environment: variables to add.
        seconds: how long to wait for the line.
        python: the interpreter.
    """
    command = [str(python), str(SERVING / arguments[0]), *map(str, arguments[1:])]
    variables = {**os.environ, "SWAG_MODELS_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **environment}
    variables.pop("ORT_DISABLE_TELEMETRY", None)  # servers set it themselves
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=variables)
        server = RunningServer(process, file)
        try:
            wait_until(lambda: process.poll() is not None or re.search(ready, server.log), seconds)
            match = re.search(ready, server.log)
            assert match, server.log
            server.url = match[1]
            yield server
            process.terminate()
            assert process.wait(30) in (0, -signal.SIGTERM)
            assert "Traceback" not in server.log, server.log
        finally:
            process.kill()
            process.wait()


def encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def send_all(url: str, bodies: Sequence[bytes], repeats: int) -> list[list[dict[str, Any]]]:
    """Send images from concurrent clients, one for each image, each with its own connection.

    Returns:
        For each client, the predictions of each of its `repeats` requests.
    """

    async def run_client(body: bytes) -> list[dict[str, Any]]:
        answers = []
        async with httpx.AsyncClient(timeout=300, trust_env=False, verify=False) as client:
            await ready.wait()
            for _ in range(repeats):
                response = await client.post(url, content=body)
                assert response.status_code == 200, response.text
                answers.append(
                    {row["label"]: row["probability"] for row in response.json()["predictions"]}
                )
        return answers

    async def run_clients() -> list[list[dict[str, Any]]]:
        tasks = [asyncio.create_task(run_client(body)) for body in bodies]
        await asyncio.sleep(0)
        ready.set()
        return await asyncio.gather(*tasks)

    ready = asyncio.Event()
    return asyncio.run(run_clients())
