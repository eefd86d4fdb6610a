"""Failed exports raise an error of one line and leave an existing file unchanged."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_support import SCENES
from PIL import Image
from tiny import VIT_SPEC, tiny
from torch import Tensor, nn

import swag_models
from swag_models.cli import main
from swag_models.errors import ConfigError, ExportError
from swag_models.export import export_model
from swag_models.models import ViT

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("one_thread")


class ChangedOnExport(nn.Linear):
    """A head that adds `change` to its output once it is exported."""

    def __init__(self, change: float) -> None:
        super().__init__(32, 10)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.change if torch.compiler.is_compiling() else 0.0)


def make_changed_on_export(change: float) -> ViT:
    """A model whose exported output differs by `change`."""
    model = tiny("vit")
    assert isinstance(model, ViT)
    model.head = ChangedOnExport(change)
    return model


@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".pt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            1e-3,
            r"it deviates from eager float32 by 0\.00\d+ of .* deviation, allowed: 0\.0001;",
        ),
        (math.inf, "non-finite values"),
    ],
)
def test_a_file_that_deviates_from_the_model_is_not_written(
    suffix: str, change: float, message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("the previous file")
    with pytest.raises(
        ExportError, match=f"{re.escape(str(path))} was not written: .*{message}"
    ) as caught:
        export_model(make_changed_on_export(change), path, spec=VIT_SPEC)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "the previous file"


class UnsupportedByOnnx(nn.Linear):
    """A head with an operator that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(super().forward(x))


def test_an_operator_that_onnx_lacks_is_an_error_and_pt2_works(tmp_path: Path) -> None:
    model = tiny("vit")
    assert isinstance(model, ViT)
    model.head = UnsupportedByOnnx(32, 10)
    with pytest.raises(
        ExportError,
        match=r"model\.onnx was not written: torch .* cannot write it as ONNX \(.*airy.*\)",
    ) as caught:
        export_model(model, tmp_path / "model.onnx", spec=VIT_SPEC)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert export_model(model, tmp_path / "model.pt2", spec=VIT_SPEC).path.is_file()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "model.pth",
            {},
            r"invalid suffix '\.pth' of model\.pth: allowed: \.onnx, \.pt2, \.aoti\.pt2",
        ),
        ("model", {}, r"invalid suffix '' of model: allowed: \.onnx, \.pt2, \.aoti\.pt2"),
        (
            "model.onnx",
            {"dtype": "float64"},
            r"invalid dtype float64 for \.onnx: allowed: float32, float16, bfloat16, int8",
        ),
        (
            "model.pt2",
            {"dtype": "int8"},
            r"invalid dtype int8 for \.pt2: allowed: float32, float16, bfloat16",
        ),
        ("model.pt2", {"dtype": torch.float64}, r"invalid dtype float64 for \.pt2"),
        ("model.onnx", {"dtype": "int8"}, "int8 needs a folder of images"),
        ("model.onnx", {"dtype": "int8", "images": "."}, r"no image in \."),
        ("model.onnx", {"images": "gone"}, "gone is not a folder; pass a folder of images"),
        ("model.onnx", {"opset": 17}, "invalid opset 17 for float32: allowed: 18 to 23"),
        (
            "model.onnx",
            {"opset": 21, "dtype": "bf16"},
            "invalid opset 21 for bfloat16: allowed: 22 to 23",
        ),
        ("model.pt2", {"external_data": False}, r"external_data is for \.onnx; a \.pt2 is always"),
        ("model.onnx", {"external_data": 1}, "invalid external_data 1: allowed: bool or None"),
        ("model.onnx", {"dynamic_size": "yes"}, "invalid dynamic_size 'yes': allowed: bool"),
        ("model.onnx", {"classes": ["a"]}, "1 class name for 65 classes; pass one string each"),
        ("model.onnx", {"classes": "ab"}, "invalid classes 'ab': allowed: list or tuple"),
        ("nowhere/model.onnx", {}, "nowhere is not a folder; create it first"),
        (
            "model.onnx",
            {"image_size": 30},
            "image size 30x30 is not a multiple of the patch size 8",
        ),
        (
            "model.onnx",
            {"spec": VIT_SPEC},
            "invalid spec= for a model's name: pass it with a loaded model",
        ),
    ],
)
def test_invalid_arguments_are_an_error_before_any_work(
    name: str,
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        export_model("vit_nano_hashtags", name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["model.onnx", "model.onnx.data", "model.onnx.new.data"])
@pytest.mark.parametrize("kind", [os.mkdir, os.mkfifo])
def test_only_files_are_replaced(taken: str, kind: Callable[[Path], None], tmp_path: Path) -> None:
    kind(tmp_path / taken)
    with pytest.raises(ConfigError, match=f"{taken} exists and is not a file; choose another name"):
        export_model(tiny("vit"), tmp_path / "model.onnx", spec=VIT_SPEC)
    assert [file.name for file in tmp_path.iterdir()] == [taken]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a model of unknown origin: make it with load_model, or pass spec="),
        (
            {"spec": VIT_SPEC, "image_size": 64},
            "invalid image_size for a loaded model, which is exported unchanged",
        ),
        (
            {"spec": VIT_SPEC, "num_classes": 3},
            "invalid num_classes for a loaded model, which is exported unchanged",
        ),
    ],
)
def test_a_loaded_model_needs_a_spec_and_takes_no_options(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(tiny("vit"), tmp_path / "model.onnx", **options)


def export_in_process(setup: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process after the code `setup`."""
    command = "from swag_models.cli import main; sys.exit(main(['export', *sys.argv[1:]]))"
    code = f"import sys; {setup}; {command}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_full_disk_is_an_error_of_one_line_and_leaves_no_file(
    suffix: str, tmp_path: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    result = export_in_process(limit, "vit_nano_hashtags", str(tmp_path / f"model{suffix}"))
    assert (result.returncode, result.stdout) == (1, "")
    error = f"{tmp_path / 'model'}{suffix} was not written: [Errno 27] File too large"
    assert result.stderr.startswith(f"swag-models: error: {error}")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_onnx_the_error_says_what_to_install_and_pt2_works(tmp_path: Path) -> None:
    without = "sys.modules |= dict.fromkeys(['onnx', 'onnxruntime', 'onnxscript'])"
    result = export_in_process(without, "vit_nano_hashtags", str(tmp_path / "model.onnx"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "swag-models: error: .onnx needs onnx; install it with: pip install 'swag-models[export]'\n"
    )
    result = export_in_process(without, "vit_nano_hashtags", str(tmp_path / "model.pt2"))
    assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'model.pt2'}\n")


def test_the_command_prints_the_path_and_reports_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = Path(swag_models.__file__).parent / "weights" / "vit_nano_hashtags.safetensors"
    path = tmp_path / "model.onnx"
    options = ["--image-size", "24x40", "--weights", str(weights)]
    assert main(["export", "vit_nano_hashtags", str(path), *options]) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{path}\n"
    assert re.fullmatch(
        r"swag-models: float32, 1\.3 MiB; differs from eager float32 by at most \d\.\de-0\d .*\n",
        captured.err,
    )


def test_the_command_rejects_an_invalid_size(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(
            ["export", "vit_nano_hashtags", str(tmp_path / "model.onnx"), "--image-size", "24by40"]
        )
    assert stopped.value.code == 2
    assert "invalid size '24by40': allowed: pixels as N or HxW" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "example: swag-models export" in capsys.readouterr().out


def test_unreadable_images_are_skipped_unless_none_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, path = tmp_path / "images", tmp_path / "model.pt2"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ConfigError, match="none of 1 image can be read; pass a folder of images"):
        export_model(tiny("vit"), path, spec=VIT_SPEC, images=folder)
    assert [file.name for file in tmp_path.iterdir()] == ["images"]
    Image.new("RGB", (9, 9)).save(folder / "good.png")
    Image.new("RGB", (9, 9)).save(folder / "manual.pdf")
    caplog.clear()
    assert export_model(tiny("vit"), path, spec=VIT_SPEC, images=folder).num_images == 1
    # torch logs as well
    messages = [record.message for record in caplog.records if record.name == "swag_models"]
    assert messages == [
        "left out beside the images: 1 .pdf",
        f"skipped: {folder / 'broken.png'} is not an image that Pillow can read",
    ]


def test_a_model_of_one_channel_is_checked_on_grey_images(tmp_path: Path) -> None:
    report = export_model(
        tiny("vit", in_chans=1), tmp_path / "model.pt2", spec=VIT_SPEC, images=SCENES
    )
    assert (report.agreement, report.num_images) == (1, 10)
