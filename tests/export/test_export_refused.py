"""What cannot be exported, or comes out wrong, is refused in one line; a file that was there before stays as it was."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
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


class Turncoat(nn.Linear):
    """A head that does something else once it is exported."""

    def __init__(self, change: float) -> None:
        super().__init__(32, 10)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (self.change if torch.compiler.is_compiling() else 0.0)


def turncoat(change: float) -> ViT:
    model = tiny("vit")
    assert isinstance(model, ViT)
    model.head = Turncoat(change)
    return model


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            1e-3,
            r"as float32 it is 0\.00\d+ of the output's standard deviation .* allowed are 0\.0001",
        ),
        (math.inf, "not finite"),
    ],
)
def test_a_file_that_does_something_else_is_not_written(
    suffix: str, change: float, message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_text("the one before")
    with pytest.raises(
        ExportError, match=f"{re.escape(str(path))} was not written: .*{message}"
    ) as caught:
        export_model(turncoat(change), path, spec=VIT_SPEC)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "the one before"


class Airy(nn.Linear):
    """A head that ONNX has no operator for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(super().forward(x))


def test_what_onnx_cannot_say_is_refused_and_pt2_takes_it(tmp_path: Path) -> None:
    model = tiny("vit")
    assert isinstance(model, ViT)
    model.head = Airy(32, 10)
    with pytest.raises(
        ExportError,
        match=r"model\.onnx was not written: torch .* cannot write it as ONNX \(.*airy.*\)",
    ) as caught:
        export_model(model, tmp_path / "model.onnx", spec=VIT_SPEC)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert export_model(model, tmp_path / "model.pt2", spec=VIT_SPEC).path.is_file()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("model.pth", {}, r"end the name in \.onnx or \.pt2"),
        ("model", {}, r"end the name in \.onnx or \.pt2"),
        (
            "model.onnx",
            {"dtype": "bfloat16"},
            r"dtype bfloat16 cannot go into \.onnx; allowed: float32, float16, int8",
        ),
        (
            "model.pt2",
            {"dtype": "int8"},
            r"dtype int8 cannot go into \.pt2; allowed: float32, bfloat16, float16",
        ),
        ("model.pt2", {"dtype": torch.float64}, r"dtype float64 cannot go into \.pt2"),
        ("model.onnx", {"dtype": "int8"}, "int8 needs a folder of pictures"),
        ("model.onnx", {"dtype": "int8", "pictures": "."}, r"no image in \."),
        ("model.onnx", {"pictures": "gone"}, "gone is not a folder; give one of pictures"),
        ("model.onnx", {"opset": 17}, "opset is 17; allowed: 18 to 23"),
        ("nowhere/model.onnx", {}, "nowhere is not a folder; make it first"),
        (
            "model.onnx",
            {"image_size": 30},
            "image size 30x30 is not a multiple of the patch size 8",
        ),
        ("model.onnx", {"spec": VIT_SPEC}, "spec= goes with a loaded model"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    name: str, given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        export_model("vit_nano_hashtags", name, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "this model does not say where it came from; make it with load_model, or give spec="),
        (
            {"spec": VIT_SPEC, "image_size": 64},
            "a loaded model is exported as it is; load it with image_size",
        ),
        ({"spec": VIT_SPEC, "num_classes": 3}, "a loaded model is exported as it is"),
    ],
)
def test_a_loaded_model_needs_a_spec_and_takes_no_options(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(tiny("vit"), tmp_path / "model.onnx", **given)


def export_in_process(setup: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after some code."""
    code = f"import sys; {setup}; from swag_models.cli import main; sys.exit(main(['export', *sys.argv[1:]]))"
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
def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    done = export_in_process(limit, "vit_nano_hashtags", str(tmp_path / f"model{suffix}"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"swag-models: error: {tmp_path / 'model'}{suffix} was not written: [Errno 27] File too large"
    )
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_without_the_extra_onnx_says_what_to_install_and_pt2_works(tmp_path: Path) -> None:
    without = "sys.modules |= dict.fromkeys(['onnx', 'onnxruntime', 'onnxscript'])"
    done = export_in_process(without, "vit_nano_hashtags", str(tmp_path / "model.onnx"))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "swag-models: error: .onnx needs onnx: pip install 'swag-models[export]'\n"
    )
    done = export_in_process(without, "vit_nano_hashtags", str(tmp_path / "model.pt2"))
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'model.pt2'}\n")


def test_the_command_prints_the_path_and_reports_beside(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = Path(swag_models.__file__).parent / "weights" / "vit_nano_hashtags.safetensors"
    path = tmp_path / "model.onnx"
    assert (
        main(
            [
                "export",
                "vit_nano_hashtags",
                str(path),
                "--image-size",
                "24x40",
                "--weights",
                str(weights),
            ]
        )
        == 0
    )
    shown = capfd.readouterr()
    assert shown.out == f"{path}\n"
    assert re.fullmatch(
        r"swag-models: float32, 1\.3 MiB; differs from eager float32 by at most \d\.\de-0\d .*\n",
        shown.err,
    )


def test_the_command_refuses_a_size_that_is_none(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(
            ["export", "vit_nano_hashtags", str(tmp_path / "model.onnx"), "--image-size", "24by40"]
        )
    assert stopped.value.code == 2
    assert "'24by40' is no size; give pixels as N or HxW" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "example: swag-models export" in capsys.readouterr().out


def test_broken_pictures_are_skipped_but_not_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, path = tmp_path / "pictures", tmp_path / "model.pt2"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(
        ConfigError, match="none of 1 pictures can be read; give a folder of pictures"
    ):
        export_model(tiny("vit"), path, spec=VIT_SPEC, pictures=folder)
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"]
    Image.new("RGB", (9, 9)).save(folder / "good.png")
    Image.new("RGB", (9, 9)).save(folder / "manual.pdf")
    caplog.clear()
    assert export_model(tiny("vit"), path, spec=VIT_SPEC, pictures=folder).pictures == 1
    said = [
        record.message for record in caplog.records if record.name == "swag_models"
    ]  # torch says much
    assert said == [f"skipped: {folder / 'broken.png'} is not an image that Pillow can read"]


def test_a_model_of_one_channel_is_checked_on_grey_pictures(tmp_path: Path) -> None:
    report = export_model(
        tiny("vit", in_chans=1), tmp_path / "model.pt2", spec=VIT_SPEC, pictures=SCENES
    )
    assert (report.kept, report.pictures) == (1, 10)
