"""Commands that are run again repeat nothing, unless an input, an option or the output changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from image_support import write_images
from signing_support import write_keys

from swag_models.cli import main

Capture = pytest.CaptureFixture[str]
Run = Callable[[str], tuple[bool, str]]
NANO = "vit_nano_hashtags"

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Command:
    """A command with relative paths.

    Attributes:
        arguments: of `swag-models`.
        output: what it writes.
        inputs: files that it reads.
        changes: options that give another result.
    """

    arguments: str
    output: str
    inputs: tuple[str, ...]
    changes: tuple[str, ...]


COMMANDS = {
    "convert": Command(
        "convert model/model.safetensors out.pth --to timm",
        "out.pth",
        ("model/model.safetensors",),
        ("--to torchvision", "--to swag"),
    ),
    "convert shards": Command(
        "convert sharded/model.safetensors.index.json out.safetensors --to timm",
        "out.safetensors",
        ("sharded/*.safetensors",),
        (),
    ),
    "export": Command("export model out.pt2", "out.pt2", (), ("--dtype float16",)),
    "save": Command("save model out", "out", ("model/model.safetensors",), ("--dtype bfloat16",)),
    "save signed": Command(
        "save model out --sign keys/private.pem", "out", ("keys/private.pem",), ()
    ),
    "evaluate": Command(
        f"recipe evaluate {NANO} --data classes -o out --device cpu",
        "out",
        ("classes/art/0001.png",),
        ("--only-present", "--dtype bfloat16", "--image-size 32"),
    ),
    "report": Command(
        f"recipe report {NANO} --benchmarks folder=classes -o out --device cpu",
        "out",
        ("classes/art/0001.png",),
        ("--dtype bfloat16",),
    ),
}


@pytest.fixture
def work(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in {"model": "first", "sharded": "sharded"}.items():
        shutil.copytree(folders[source], tmp_path / name)
    for name in ("art", "car"):
        write_images(tmp_path / "classes" / name, 3)
    write_keys(tmp_path / "keys")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: Capture, caplog: pytest.LogCaptureFixture) -> Callable[[str], tuple[bool, str]]:
    """Runs a command: whether it says that nothing is left to do, and its output."""

    def run_command(command: str) -> tuple[bool, str]:
        caplog.clear()
        code = main(command.split())
        output = capsys.readouterr()
        assert code == 0, output.err
        return any("is already done" in message for message in caplog.messages), output.out

    return run_command


def replace(path: Path) -> None:
    """Touch an image; replace another file by one of the same size and modification time."""
    if path.suffix == ".png":
        os.utime(path)
        return
    copy = path.with_name(f"{path.name}.copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def damage_size(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def list_files(output: Path) -> list[Path]:
    files = [output] if output.is_file() else sorted(output.rglob("*"))
    return [path for path in files if path.is_file() and path.name != ".lock"]


SLOW = {"export": pytest.mark.slow}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW.get(name, ())) for name in COMMANDS]
)
def test_finished_work_is_done_again_only_if_something_changed(
    name: str, work: Path, run: Run
) -> None:
    command = COMMANDS[name]
    done, printed = run(command.arguments)
    assert not done
    states = {path: path.stat().st_mtime_ns for path in list_files(work / command.output)}
    assert run(command.arguments) == (True, printed)
    assert states == {path: path.stat().st_mtime_ns for path in list_files(work / command.output)}
    damages = (Path.unlink, damage_size, damage_byte)
    for damage in damages[2:] if name == "export" else damages:  # which takes seconds
        path = max(states, key=lambda path: path.suffix in (".md", ".pt2", ".pth"))
        damage(path)
        assert run(command.arguments) == (False, printed), damage
        assert run(command.arguments) == (True, printed)
    for pattern in command.inputs:
        source = max(work.glob(pattern))
        replace(source)
        assert not run(command.arguments)[0], source
        assert run(command.arguments)[0]
    for option in command.changes:
        shutil.rmtree(work / command.output) if (work / command.output).is_dir() else None
        assert not run(f"{command.arguments} {option}")[0]
        assert run(f"{command.arguments} {option}")[0]
