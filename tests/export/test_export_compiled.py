"""Files compiled ahead of time: used without this library, refused on other CPUs and releases."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from packages import MEMBER, write_package
from tiny import TINY_SPECS, deviation, images, tiny

import swag_models
from swag_models.cli import main
from swag_models.errors import ConfigError, ExportError
from swag_models.export import compiled, export_model, load_compiled, read_metadata
from swag_models.export.compiled import CPU_FIELD, TORCH_FIELD
from swag_models.inference.native_code import list_instructions

ALONE = """
import sys, torch
from torch._inductor import aoti_load_package
model = aoti_load_package(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
assert not any(name.startswith("swag_models") for name in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["vit", "regnet"])
def test_a_compiled_file_answers_without_this_library(
    family: str, dtype: str, tmp_path: Path
) -> None:
    model, path = tiny(family), tmp_path / "model.aoti.pt2"
    report = export_model(model, path, spec=TINY_SPECS[family], dtype=dtype)
    assert report.path == path
    assert report.size == path.stat().st_size
    metadata = read_metadata(path)
    assert metadata.name == TINY_SPECS[family].name
    assert metadata.dtype == dtype
    assert metadata.preprocess.image_size == model.image_size
    batch, paths = images(3), [tmp_path / "images.pt", tmp_path / "outputs.pt"]
    torch.save(batch, paths[0])
    subprocess.run([sys.executable, "-c", ALONE, path, *paths], check=True, cwd=tmp_path)
    outputs = torch.load(paths[1])
    assert torch.equal(outputs, load_compiled(path)(batch))
    assert not outputs.requires_grad
    with torch.inference_mode():
        assert deviation(outputs, model(batch)) < (1e-4 if dtype == "float32" else 0.2)


@pytest.mark.slow
def test_the_command_compiles_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.aoti.pt2"
    arguments = ["export", "vit_nano_hashtags", str(path), "--dynamic-size"]
    assert main(arguments) == 0
    assert "float32" in capsys.readouterr().err
    written = path.stat().st_mtime_ns
    assert main(arguments) == 0
    assert path.stat().st_mtime_ns == written
    model = swag_models.load_model("vit_nano_hashtags").eval()
    for size in ((48, 48), (64, 40)):
        batch = images(2, size)
        with torch.inference_mode():
            assert deviation(load_compiled(path)(batch), model(batch)) < 1e-4


def test_a_file_for_another_cpu_is_refused(tmp_path: Path) -> None:
    theirs = " ".join([*list_instructions(), "avx1024", "amx_fp4"])
    path = write_package(tmp_path / "model.aoti.pt2", **{CPU_FIELD: theirs})
    with pytest.raises(
        ExportError,
        match=r"model\.aoti\.pt2 was compiled for another CPU: this one lacks amx_fp4, avx1024; "
        r"export the model to \.aoti\.pt2 on this machine$",
    ):
        load_compiled(path)


@pytest.mark.parametrize("version", ["1.13.1+cpu", "9.0.0", ""])
def test_a_file_of_another_release_of_torch_is_refused(version: str, tmp_path: Path) -> None:
    path = write_package(tmp_path / "model.aoti.pt2", **{TORCH_FIELD: version})
    with pytest.raises(ExportError, match=r"was compiled by torch .*, this is .*; export the"):
        load_compiled(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"\x7fELF", json.dumps({}).encode()]
)
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.aoti.pt2"
    path.write_bytes(content)
    for function in (load_compiled, read_metadata):
        with pytest.raises(ExportError) as error:
            function(path)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("name", "content"),
    [(MEMBER, b"[1]"), (MEMBER, b'{"name": 1}'), (MEMBER, b"{"), ("model/version", b"1")],
)
def test_metadata_of_a_wrong_kind_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.aoti.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    for function in (load_compiled, read_metadata):
        with pytest.raises(ExportError):
            function(path)


def test_a_package_without_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^torch cannot load .*; export the model again$"):
        load_compiled(write_package(tmp_path / "model.aoti.pt2"))


def test_other_suffixes_and_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"invalid suffix of model\.pt2: allowed: \.aoti\.pt2"):
        load_compiled("model.pt2")
    with pytest.raises(ConfigError, match=r"invalid dtype int8 for \.aoti\.pt2"):
        export_model("vit_nano_hashtags", tmp_path / "model.aoti.pt2", dtype="int8")


def test_where_nothing_can_be_compiled_the_error_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.aoti.pt2"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"^\.aoti\.pt2 needs a C\+\+ compiler"):
        export_model("vit_nano_hashtags", path)
    monkeypatch.setattr(compiled.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"^\.aoti\.pt2 is for Linux, this is darwin"):
        export_model("vit_nano_hashtags", path)
    assert not list(tmp_path.iterdir())
