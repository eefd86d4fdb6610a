"""`recipe plan --slurm` prints a script that trains, is requeued with a checkpoint, and resumes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image
from slurm_support import install_slurm

from swag_models.cli import main

SETTINGS = ["steps=100000", "init=none", "batch_size=4", "log_every=1", "engine.workers=0"]
Capture = pytest.CaptureFixture[str]


def write_images(folder: Path) -> Path:
    for number in range(16):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((64, 64), number + 1).convert("RGB").save(path)
    return folder


def print_script(capsys: Capture, data: object, *options: object, decode_rate: int = 500) -> str:
    rate = ["--decode-rate", str(decode_rate)]
    arguments = ["recipe", "plan", "vit_nano_finetune", "--slurm", "--data", str(data), *rate]
    assert main([*arguments, *map(str, options)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "it's $(data) here")


def test_the_script_is_correct_bash(data: Path, tmp_path: Path, capsys: Capture) -> None:
    options = ["--license", "a `b` \"c\" 'd' $HOME", "--set", "steps=7", "--set", "init=none"]
    text = print_script(capsys, data, "-o", tmp_path / "run", *options)
    script = tmp_path / "train.slurm"
    script.write_text(text)
    subprocess.run(["bash", "-n", str(script)], check=True)
    if program := shutil.which("shellcheck"):
        subprocess.run([program, str(script)], check=True)
    (tmp_path / "srun").write_text('#!/bin/sh\nfor text; do printf "%s\\0" "$text"; done\n')
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "70123"}
    environment["SLURM_JOB_NODELIST"] = "node[7-8]"
    done = subprocess.run(
        ["bash", str(script)], env=environment, capture_output=True, text=True, check=True
    )
    arguments = done.stdout.split("\0")
    assert arguments[arguments.index("train") + 1 :] == [
        *("vit_nano_finetune", "--data", str(data), "-o", str(tmp_path / "run")),
        *("--license", options[1], "--quiet", "--set=steps=7", "--set=init=none"),
        *("--set=engine.workers=12", ""),
    ]
    assert "--rdzv-endpoint=node7:30123" in arguments


def test_cores_follow_from_what_the_data_must_deliver(data: Path, capsys: Capture) -> None:
    def read(*options: object) -> tuple[dict[str, str], str]:
        text = print_script(capsys, data, "-o", "run", *options)
        return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE)), text

    given, text = read("--throughput", 4200, "--gpus", 32)  # 9 cores, and 2 for training
    assert (given["nodes"], given["gpus-per-node"], given["cpus-per-task"]) == ("4", "8", "88")
    assert (
        "9 processes per GPU to read images; 9 would keep it busy, at the rate measured with "
        in text
    )
    assert "--set=engine.workers=9" in text
    given, text = read("--throughput", 420, "--gpus", 2)  # the preset has 1 worker
    assert (given["nodes"], given["gpus-per-node"], given["cpus-per-task"]) == ("1", "2", "6")
    given, text = read("--throughput", 1e6, "--gpus", 4, "--gpus-per-node", 2)
    assert (given["nodes"], given["cpus-per-task"]) == ("2", "28")
    assert (
        "2000 would keep it busy, at the rate measured with images: training will wait for data"
        in text
    )
    given, text = read("--set", "engine.workers=3")
    assert given["cpus-per-task"] == str(8 * 5)
    assert text.count("engine.workers") == 1


def test_a_long_run_is_requeued_and_a_short_one_asks_for_less(data: Path, capsys: Capture) -> None:
    for steps, hours in (("steps=10", 1), ("steps=100000000", 24)):
        options = ["-o", "run", "--set", steps, "--throughput", 1]
        assert f"#SBATCH --time={hours}:00:00\n" in print_script(capsys, data, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--slurm needs --data and --output, as recipe train does"),
        (["--data", "."], "--slurm needs --output"),
        (["--json", "-o", "run", "--data", "."], "--slurm writes a script, not JSON"),
        (["--gpus", "12"], "gpus is 12, which does not fill nodes of 8 GPUs; give a multiple"),
        (["--gpus-per-node", "0"], "invalid gpus_per_node 0: allowed: 1 or more"),
        (["--description", "a\nb"], r"'a\nb' cannot be written into a script"),
        (["--gpu", "H001"], "unknown GPU 'H001'; known: GB200, B200, H200 NVL"),
        (["--decode-rate", "0"], "decode rate of images is 0.0; give a positive number"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(data)
    if not {"--data", "--json"} & {*options} and options:
        options = [*options, "--data", ".", "-o", "run"]
    rate = [] if "--decode-rate" in options else ["--decode-rate", "500"]
    assert main(["recipe", "plan", "vit_nano_finetune", "--slurm", *rate, *options]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["USR1", "TERM"])
def test_a_preempted_job_is_requeued_and_resumes(sent: str, data: Path, tmp_path: Path) -> None:
    environment = install_slurm(tmp_path)
    options = ["--gpus", "2", "--gpus-per-node", "1", "-o", "a run", "--license", "mit"]
    options += [f"--set={setting}" for setting in SETTINGS]
    command = f"swag-models recipe plan vit_nano_finetune --slurm --data {shlex.quote(data.name)} "
    command += f"{shlex.join(options)} > train.slurm"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True)

    log, steps = tmp_path / "a run" / "log.jsonl", []
    for _ in range(2):
        first = steps[-1] if steps else 0
        job = subprocess.Popen(
            ["sbatch", "train.slurm"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while job.poll() is None and not (log.exists() and log.read_text().count("\n") > first + 3):
            time.sleep(0.05)
        for node in (tmp_path / "calls.nodes").read_text().split():
            os.kill(int(node), getattr(signal, f"SIG{sent}"))
        output, _ = job.communicate(timeout=120)
        assert job.returncode == 75, output
        assert "rerun the same command to resume" in output
        steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1)), "resumed where it stopped"
    assert (tmp_path / "calls").read_text() == f"{environment['SLURM_JOB_ID']}\n" * 2
