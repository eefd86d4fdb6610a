"""Compiled code in the cache folder: reused by later processes, and only where it is trusted."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_support import NANO, SCENES, make_spec, write_images
from tiny import VIT_SPEC, deviation, images, load_tiny
from torch import Tensor, nn

from swag_models import load_model
from swag_models.errors import CacheError
from swag_models.inference import Embedder, compiled_cache
from swag_models.inference.acceleration import loading_pays_off
from swag_models.inference.compiled_cache import CachedForward, is_cacheable, open_cache

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="compiled code is kept on Linux only"),
]

# Prints the vectors, and whether the compiler was imported.
PROCESS = """
import json, sys, time
import torch
from swag_models.inference import Embedder
torch.set_num_threads(1)
options = json.loads(sys.argv[3])
vectors = Embedder(sys.argv[1], batch_size=4, **options)(sys.argv[2].split()).vectors
print(json.dumps([vectors.tolist(), "torch._inductor.compile_fx" in sys.modules]))
"""


class Compiler:
    """Stands in for AOTInductor, which takes a minute: files name functions of this process."""

    def __init__(self) -> None:
        self.programs: dict[str, Any] = {}

    def compile_package(self, program: Any, path: Path, strings: dict[str, str]) -> None:
        key = str(len(self.programs))
        self.programs[key] = program.module()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("code", key + " " * 1000)

    def load_package(self, path: Path) -> Callable[[Tensor], Tensor]:
        with zipfile.ZipFile(path) as archive:
            run: Callable[[Tensor], Tensor] = self.programs[archive.read("code").decode().strip()]
        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    compiler = Compiler()
    monkeypatch.setattr(compiled_cache, "compile_package", compiler.compile_package)
    monkeypatch.setattr(compiled_cache, "load_package", compiler.load_package)
    monkeypatch.setattr(compiled_cache, "compile_forward", lambda forward: forward)
    monkeypatch.setenv("SWAG_MODELS_CACHE", str(tmp_path / "cache"))
    return compiler


def make_forward(model: Any = None, output: str = "logits") -> CachedForward:
    model = load_tiny("vit") if model is None else model
    return CachedForward(model, model, output)


def list_files() -> list[Path]:
    return sorted(open_cache().glob("*.aoti.pt2"))


@torch.no_grad()
def test_code_is_compiled_once_per_input_weights_and_output(compiler: Compiler) -> None:
    model, x = load_tiny("vit"), images(2)
    for _ in range(2):  # as two processes would
        forward = make_forward(model)
        assert deviation(forward(x), model(x)) <= 1e-4
        assert forward.is_stored(x)
        assert len(compiler.programs) == 1
    assert not make_forward(model).is_stored(images(3))
    assert not make_forward(model, "features").is_stored(x)
    assert not make_forward(load_tiny("vit", merge_tokens=1)).is_stored(x)
    assert not make_forward(load_tiny("vit").bfloat16()).is_stored(x.bfloat16())
    (path,) = list_files()
    assert path.name.startswith(VIT_SPEC.name)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file for file in path.parent.iterdir() if file.suffix == ".tmp"] == []


@torch.no_grad()
def test_changed_weights_and_modules_get_code_of_their_own(compiler: Compiler) -> None:
    model, x = load_tiny("vit"), images(2)
    forward = make_forward(model)
    forward(x)
    model.head.bias.add_(1)
    assert deviation(forward(x), model(x)) <= 1e-4
    model.head = nn.Linear(32, 7)
    assert forward(x).shape == (2, 7)
    assert len(compiler.programs) == 3


@torch.no_grad()
@pytest.mark.parametrize("damage", ["truncated", "byte", "empty", "text"])
def test_a_damaged_file_is_compiled_again(
    damage: str, compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = load_tiny("vit"), images(2)
    make_forward(model)(x)
    (path,) = list_files()
    content = bytearray(path.read_bytes())
    content[100] ^= 1  # within the code
    damaged = {"truncated": content[:500], "byte": content, "empty": b"", "text": b"text"}
    path.write_bytes(damaged[damage])
    assert deviation(make_forward(model)(x), model(x)) <= 1e-4
    assert len(compiler.programs) == 2
    (record,) = [record for record in caplog.records if record.name == "swag_models"]
    assert "is compiled again: " in record.message
    assert "\n" not in record.message
    make_forward(model)(x)
    assert len(compiler.programs) == 2


def refuse_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    return "is read-only"


def fill_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(compiled_cache, "MIN_FREE", 10**18)
    return "GB free, and compiling needs 1000000000"


def fill_disk_late(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def compile_package(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled_cache, "compile_package", compile_package)
    return "cannot be written: No space left on device"


def open_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.chmod(0o770)
    return "is not a folder that only this user can read and write"


def link_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.rename(folder.with_name("other"))
    folder.symlink_to("other")
    return "is not a folder that only this user can read and write"


def own_by_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    user = os.geteuid() + 1
    folder.rename(folder.with_name(f"compiled-{user}"))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    return "is not a folder that only this user can read and write"


def replace_by_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.rmdir()
    folder.write_text("")
    return "cannot be created: File exists"


def break_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def compile_package(*_: Any) -> None:
        raise AssertionError("first\nsecond")

    monkeypatch.setattr(compiled_cache, "compile_package", compile_package)
    return r"torch cannot export the model \(AssertionError: first\)"


def compute_wrongly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(compiled_cache, "load_package", lambda path: lambda x: torch.randn(2, 10))
    return "the compiled code deviates by "


@torch.no_grad()
@pytest.mark.parametrize(
    "break_cache",
    [
        refuse_writes,
        fill_disk,
        fill_disk_late,
        open_to_others,
        link_elsewhere,
        own_by_other,
        replace_by_file,
        break_compiler,
        compute_wrongly,
    ],
)
def test_without_a_usable_cache_one_line_says_why(
    break_cache: Callable[[Path, pytest.MonkeyPatch], str],
    compiler: Compiler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = open_cache()
    reason = break_cache(folder, monkeypatch)
    model, x = load_tiny("vit"), images(2)
    forward = make_forward(model)
    for _ in range(2):
        assert torch.equal(forward(x), model(x))
    (record,) = [record for record in caplog.records if record.name == "swag_models"]
    assert record.message.startswith("compiled for this process only: ")
    with pytest.raises(CacheError, match=reason):
        raise CacheError(record.message)
    assert "\n" not in record.message
    assert not list(folder.parent.glob("*/*.pt2"))


@torch.no_grad()
def test_a_file_of_another_user_is_not_loaded(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = load_tiny("vit"), images(2)
    make_forward(model)(x)
    (path,) = list_files()
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")
    make_forward(model)(x)
    assert len(compiler.programs) == 2
    assert "it is not a file of this user" in caplog.text
    assert not path.is_symlink()


@torch.no_grad()
def test_the_least_recently_used_files_are_removed(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tiny("vit")
    for seconds, count in enumerate((1, 2, 3)):
        make_forward(model)(images(count))
        newest = max(list_files(), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (seconds, seconds))
    size = newest.stat().st_size
    make_forward(model)(images(1))  # is now the most recently used
    monkeypatch.setattr(compiled_cache, "MAX_BYTES", int(2.5 * size))
    make_forward(model)(images(4))
    stored = [count for count in (1, 2, 3, 4) if make_forward(model).is_stored(images(count))]
    assert stored == [1, 4]


def test_code_of_the_user_is_not_kept() -> None:
    model = load_tiny("vit")
    assert is_cacheable(model)
    hook = model.blocks[0].register_forward_hook(lambda module, args, output: output + 1)
    assert not is_cacheable(model)
    hook.remove()

    class Head(nn.Linear):
        pass

    model.head = Head(32, 10)
    assert not is_cacheable(model)
    assert not is_cacheable(load_model(VIT_SPEC, pretrained=False, device="meta"))
    with torch.inference_mode():
        assert not is_cacheable(load_tiny("vit"))


@pytest.mark.usefixtures("compiler")
def test_stored_code_is_used_where_loading_saves_time(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, weights = make_spec("regnet", tmp_path)
    files = write_images(tmp_path / "images", 16)
    options: dict[str, Any] = {"weights": weights, "batch_size": 4, "dtype": "float32"}
    expected = Embedder(spec, fast=True, compile=False, **options)(files).vectors
    Embedder(spec, fast=True, compile=True, **options)(files[:4])
    assert len(compiler.programs) == 1
    embedder = Embedder(spec, fast=True, **options)
    embedder(files)
    assert embedder._compiled is None  # loading takes longer than these images
    monkeypatch.setattr("swag_models.inference.pipeline.loading_pays_off", lambda *_: True)
    copied = pickle.loads(pickle.dumps(embedder))
    for pipeline in (embedder, copied):
        assert deviation(pipeline(files).vectors, expected) <= 1e-4
        assert isinstance(pipeline._compiled, CachedForward)
    assert len(compiler.programs) == 1
    in_memory = Embedder(load_model(spec, weights=weights), fast=True, batch_size=4)
    in_memory(files)
    assert in_memory._compiled is None


def test_loading_pays_off_above_some_amount_of_work() -> None:
    model = load_model("regnety_16gf", pretrained=False, device="meta")
    decisions = [loading_pays_off(model, seconds) for seconds in (0, 0.1, 1, 10, 1e6)]
    assert decisions == sorted(decisions)
    assert not any(decisions[:2])


def run_process(
    files: list[Path], cache: Path, options: dict[str, Any], name: str = NANO
) -> tuple[Tensor, bool, str]:
    process = start_process(files, cache, options, name)
    output, log = process.communicate()
    assert process.returncode == 0, log
    vectors, has_compiler = json.loads(output)
    return torch.tensor(vectors), has_compiler, log


def start_process(
    files: list[Path], cache: Path, options: dict[str, Any], name: str = NANO
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, name, " ".join(map(str, files)), json.dumps(options)],
        env=os.environ | {"SWAG_MODELS_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [NANO, "regnety_nano_hashtags"])
def test_a_second_process_does_not_compile(name: str, tmp_path: Path) -> None:
    files = sorted(SCENES.iterdir())[:4]
    expected = Embedder(name)(files).vectors
    # two processes at once, of which one compiles
    processes = [start_process(files, tmp_path, {"compile": True}, name) for _ in range(2)]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    for output, _ in results:
        assert deviation(torch.tensor(json.loads(output)[0]), expected) <= 1e-4
    (path,) = (tmp_path / f"compiled-{os.geteuid()}").glob("*.aoti.pt2")
    written = path.stat().st_ino
    vectors, has_compiler, log = run_process(files, tmp_path, {"compile": True}, name)
    assert deviation(vectors, expected) <= 1e-4
    assert not has_compiler
    assert "compil" not in log
    assert path.stat().st_ino == written
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    vectors, _, log = run_process(files, tmp_path, {"compile": True}, name)
    assert deviation(vectors, expected) <= 1e-4
    assert log.count("is compiled again") == 1
