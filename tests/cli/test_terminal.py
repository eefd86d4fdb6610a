"""Commands on terminals without a character, full disks, closed streams, few open files."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny import load_tiny

from swag_models.cli import main
from swag_models.publish import save

SOURCE = Path(__file__).parents[2]
# A name that clears the screen, reverses the direction of writing and begins a second line
HOSTILE = "a\x1b[2J\u202e\nb"
ESCAPED = r"a\x1b[2J\u202e\nb"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose classes have names that are not ASCII."""
    classes = [f"猫{index}" for index in range(10)]
    return save(load_tiny(), tmp_path_factory.mktemp("model") / "cjk", classes=classes)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "犬.png"
    Image.new("RGB", (64, 64), "red").save(path)
    return path


def run_shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command, in which `swag-models` is the command of this source tree."""
    program = f'swag-models() {{ {sys.executable} -m swag_models "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", program + command],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "shift_jis"])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    encoding: str, folder: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = "猫" if encoding == "shift_jis" else r"\u732b"
    for command, name in {
        ("info", str(folder)): shown,
        ("classify", str(image), "--model", str(folder)): shown,
        ("classify", str(image), "--model", str(folder), "--json"): r"\u732b",
        ("embed", str(image), "--model", str(folder), "-o", str(tmp_path / "猫1.npy")): shown,
        ("save", str(folder), str(tmp_path / "猫1")): shown,
        ("push", str(folder), "org/repo", "--dry-run"): shown,
    }.items():
        stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(command) == 0
        stdout.flush()
        assert name.encode(encoding) in stdout.buffer.getvalue(), command
    monkeypatch.undo()


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", HOSTILE],
        ["info", f"{HOSTILE}/x"],
        ["list", HOSTILE],
        ["list", f"{HOSTILE}*"],
        ["fetch", HOSTILE],
        ["bundle", HOSTILE, "-o", HOSTILE],
        ["verify", HOSTILE],
        ["convert", HOSTILE, "x.pth", "--to", "timm"],
        ["classify", HOSTILE, "--model", HOSTILE],
        ["classify", HOSTILE, "--model", "vit_nano_hashtags", "--device", HOSTILE],
        ["classify", f"{HOSTILE}*", "--model", "vit_nano_hashtags"],
        ["embed", HOSTILE, "--model", "vit_nano_hashtags", "-o", f"{HOSTILE}/x.npy"],
        ["merge", HOSTILE, "-o", "x.npy"],
        ["save", HOSTILE, "x"],
        ["push", HOSTILE, "org/repo"],
        ["export", "vit_nano_hashtags", f"{HOSTILE}.onnx", "--dtype", HOSTILE],
        ["recipe", "show", HOSTILE],
        ["recipe", "show", "vit_b16_in1k", "--set", HOSTILE],
        ["recipe", "shards", "verify", HOSTILE],
        [HOSTILE],
        ["list", f"--{HOSTILE}"],
        ["embed", "x", "--workers", HOSTILE],
        ["recipe", "plan", "vit_b16_in1k", "--gpus", HOSTILE],
        ["x" * 10_000],
        ["info"] + ["\x1b" * 1000] * 3,
        ["recipe", "x" * 480],
    ],
)
def test_names_on_the_command_line_cannot_control_the_terminal(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stopped:  # argparse's
        code = stopped.code
    assert code in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.isprintable()
    assert ": error: " in error
    assert len(error) < 500


def test_hostile_names_of_files_are_escaped_but_exact_in_json(
    tmp_path: Path, capsys: Capture
) -> None:
    image = tmp_path / f"{HOSTILE}.png"
    Image.new("RGB", (64, 64), "red").save(image)
    command = ["classify", str(image), "--model", "vit_nano_hashtags"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0] == f"{tmp_path}/{ESCAPED}.png"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == str(image)
    image.write_bytes(b"")
    assert main(command) == 1
    assert all(line.isprintable() for line in capsys.readouterr().err.split("\n"))


def test_names_in_log_messages_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("swag_models").warning("%s has %d", HOSTILE, 3)
    assert caplog.messages == [f"{ESCAPED} has 3"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["list", "info vit_b16 --json", "--help", "--version"])
def test_a_full_disk_under_stdout_is_one_line(command: str, unbuffered: str) -> None:
    process = run_shell(f"swag-models {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert process.returncode == 1
    assert process.stderr == (
        "swag-models: error: stdout cannot be written: No space left on device\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
@pytest.mark.slow
def test_messages_that_cannot_be_written_do_not_stop_the_work(tmp_path: Path, image: Path) -> None:
    command = f"swag-models embed {image} --model vit_nano_hashtags -o x.npy 2> /dev/full"
    process = run_shell(f"cd {tmp_path}; {command}")  # it draws a progress bar
    assert (process.returncode, process.stdout) == (0, "x.npy\n")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_bars_are_drawn_on_terminals_only(
    is_terminal: bool, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    command = ["embed", str(image), "--model", "vit_nano_hashtags", "-o", str(tmp_path / "x.npy")]
    assert main(command) == 0
    assert ("1/1" in capsys.readouterr().err) == is_terminal


def test_every_bar_asks_whether_it_can_be_drawn() -> None:
    drawn = {
        path.relative_to(SOURCE).as_posix()
        for folder in ("swag_models", "studies")
        for path in (SOURCE / folder).rglob("*.py")
        if re.search(r"\btqdm\(", path.read_text("utf-8"))
    }
    # Only the bar of the web page, which draws nothing on a terminal.
    assert drawn <= {"swag_models/app/service.py"}


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_not_an_error(closed: str) -> None:
    process = run_shell(f"swag-models list {closed}; swag-models info nope {closed}; echo $?")
    assert process.stdout.splitlines()[-1] == "2"
    assert "Traceback" not in process.stderr


def test_a_file_does_not_take_the_place_of_a_closed_stdout(tmp_path: Path, folder: Path) -> None:
    # What a library prints to descriptor 1 must not get into the converted file.
    code = (
        "import os, sys; from swag_models import atomic, cli; replace = os.replace;"
        "os.replace = lambda *paths: (os.write(1, b'printed'), replace(*paths));"
        f"sys.exit(cli.main(['convert', '{folder}/model.safetensors', 'x.safetensors', '--to', "
        "'timm']))"
    )
    process = run_shell(f'cd {tmp_path}; {sys.executable} -c "{code}" 0<&- 1>&-')
    assert process.returncode == 0, process.stderr
    assert load_file(tmp_path / "x.safetensors")
    assert b"printed" not in (tmp_path / "x.safetensors").read_bytes()


@pytest.mark.parametrize("limit", [8])
def test_too_few_open_files_cause_no_traceback(limit: int, image: Path) -> None:
    process = run_shell(
        f"ulimit -n {limit}; swag-models classify {image} --model vit_nano_hashtags"
    )
    assert "Traceback" not in process.stderr
    assert process.returncode in (0, 1)
