"""The Dockerfile: what it copies exists, and its steps give a server that starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from image_support import ROOT
from PIL import Image
from serving_support import encode_png, start_server

from swag_models.cli import main


def read_steps(stage: int) -> list[tuple[str, str]]:
    """Return the instructions of a stage of the Dockerfile, with their arguments."""
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    stages: list[list[tuple[str, str]]] = [[]]
    for line in filter(None, lines):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, arguments))
    return stages[stage]


def test_everything_that_is_copied_is_sent_to_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        "*",
        "!dist",
        "!examples/serving",
    ]
    copied = [
        arguments for stage in (1, 2) for step, arguments in read_steps(stage) if step == "COPY"
    ]
    assert copied
    for arguments in copied:
        if not arguments.startswith("--from=export"):
            source = arguments.split()[0]
            assert source.startswith("dist/") or (ROOT / source).exists()
    assert {path.name for path in ROOT.glob("examples/serving/requirements-*.txt")} == {
        "requirements-cpu.txt",
        "requirements-gpu.txt",
    }


def test_the_server_runs_as_a_user_without_the_network() -> None:
    steps = dict(read_steps(2))  # the last of each kind
    assert int(steps["USER"]) > 0
    variables = dict(word.split("=", 1) for word in shlex.split(steps["ENV"]))
    offline = {"SWAG_MODELS_OFFLINE", "HF_HUB_OFFLINE", "ORT_DISABLE_TELEMETRY"}
    assert {name for name in offline if variables.get(name) == "1"} == offline
    health = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
    for command in (json.loads(steps["ENTRYPOINT"]), health):
        assert command[0] == "python"
        assert (ROOT / "examples" / "serving" / Path(command[1]).name).exists()


@pytest.mark.slow
def test_the_steps_of_the_last_stage_give_a_server(tmp_path: Path) -> None:
    """Run them in a virtual environment, with folders of a temporary one, without a builder."""
    dist, app, python = tmp_path / "dist", tmp_path / "app", tmp_path / "venv" / "bin" / "python"
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "-w",
        str(dist),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (tmp_path / "model").mkdir()
    assert main(["export", "regnety_nano_hashtags", str(tmp_path / "model" / "model.onnx")]) == 0
    app.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{python.parent}:{environment['PATH']}", "DEVICE": "cpu"}
    for step, arguments in read_steps(2):
        if step == "COPY" and "/model/" not in arguments:
            source = arguments.removeprefix("--from=export ").split()[0]
            folder = tmp_path if source.startswith("/dist") else ROOT
            command = (
                f"cp -r {folder}/{source.strip('/')}{'/.' if source.endswith('/') else ''} {app}"
            )
        elif step == "RUN":
            command = arguments.replace("/app/", f"{app}/").split(" && useradd")[0]
        else:
            continue
        subprocess.run(["bash", "-c", command], check=True, env=environment)
    *command, host, address = json.loads(dict(read_steps(2))["ENTRYPOINT"])
    assert (host, address) == ("--host", "0.0.0.0")
    command = [str(tmp_path / part.strip("/")) if "/" in part else part for part in command]
    with start_server(
        *command[1:],
        "--port",
        "0",
        ready=r"running on (http://127\.0\.0\.1:\d+)",
        environment={"PYTHONPATH": ""},
        python=python,
    ) as server:
        answer = server.post(encode_png(Image.new("RGB", (60, 50), "teal")))
        assert len(answer.json()["predictions"]) == 5
    installed = subprocess.run(
        [python, "-c", "import torch"], capture_output=True, check=False, env=environment
    )
    assert installed.returncode == 1, "torch is in the image"
