"""Exported files with token merging compute what the merged model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import deviation, images
from torch import Tensor

from swag_models import get_spec, load_model
from swag_models.cli import main
from swag_models.export import load_compiled

NANO = "vit_nano_hashtags"


def run_file(path: Path, batch: Tensor) -> Tensor:
    """The outputs of a file, by the runtime for its format."""
    if path.name.endswith(".aoti.pt2"):
        return load_compiled(path)(batch)
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        outputs: Tensor = module(batch)
        return outputs
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(np.asarray(result))


@pytest.mark.slow  # 5 to 60 s each on an idle machine
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".aoti.pt2"])
def test_outputs_are_those_of_the_merged_model(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    assert main(["export", NANO, str(path), "--merge-tokens", "6"]) == 0
    merged, plain = load_model(NANO, merge_tokens=6), load_model(NANO)
    for count in (1, 5):
        batch = images(count, get_spec(NANO).image_size)
        with torch.inference_mode():
            outputs = run_file(path, batch)
            assert deviation(outputs, merged(batch)) < 1e-3
            assert deviation(outputs, plain(batch)) > 1e-2
    # another number is another file
    written = path.stat().st_mtime_ns
    assert main(["export", NANO, str(path), "--merge-tokens", "6"]) == 0
    assert path.stat().st_mtime_ns == written
    if suffix == ".pt2":
        assert main(["export", NANO, str(path), "--merge-tokens", "5"]) == 0
        assert path.stat().st_mtime_ns != written


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            NANO,
            ["--dynamic-size"],
            "dynamic_size is not possible with merge_tokens, whose graph",
        ),
        ("regnety_nano_hashtags", [], "merge_tokens is 6; a RegNet has no tokens"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    name: str,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.pt2"
    assert main(["export", name, str(path), "--merge-tokens", "6", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not path.exists()
