"""Files for any height and width, and in bfloat16, in onnxruntime and in OpenVINO."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from tiny import REGNET_SPEC, SMALL_REGNET, TINY_SPECS, deviation, images, randomise, tiny
from torch import Tensor

import swag_models
from swag_models.architectures import RegNetConfig
from swag_models.cli import main
from swag_models.errors import ExportError
from swag_models.export import export_model
from swag_models.export.bfloat16 import write_emulation
from swag_models.export.formats import trace_model
from swag_models.models import RegNet, ViT, build

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {
    "vit": [(64, 64), (16, 16), (16, 104), (72, 56), (200, 120)],
    "regnet": [(64, 64), (32, 32), (33, 101), (64, 65), (200, 123)],
}


def small(family: str, **options: Any) -> ViT | RegNet:
    if family == "vit":
        return tiny(family, **options)
    return randomise(build(SMALL_REGNET, num_classes=10, image_size=64, **options)).eval()


def run_onnxruntime(path: Path, batch: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def run_openvino(path: Path, batch: Tensor) -> Tensor:
    core = openvino.Core()
    # By default OpenVINO computes in bfloat16 on CPUs that have it.
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(np.asarray(model(batch.numpy())[0]))


def run_torch(path: Path, batch: Tensor) -> Tensor:
    output: Tensor = torch.export.load(path).module()(batch)
    return output


@pytest.mark.parametrize(
    ("family", "suffix"),
    [
        ("vit", ".onnx"),
        pytest.param("vit", ".pt2", marks=pytest.mark.slow),
        pytest.param("regnet", ".onnx", marks=pytest.mark.slow),
        pytest.param("regnet", ".pt2", marks=pytest.mark.slow),
    ],
)
def test_a_file_for_any_size_returns_what_the_model_returns(
    family: str, suffix: str, tmp_path: Path
) -> None:
    model, path = small(family), tmp_path / f"model{suffix}"
    export_model(model, path, spec=TINY_SPECS[family], dynamic_size=True)
    runs = [run_torch] if suffix == ".pt2" else [run_onnxruntime, run_openvino]
    for run in runs:
        for count, size in enumerate(SIZES[family], start=1):
            batch = images(count, size)
            assert deviation(run(path, batch), model(batch)) < 1e-4, (run, size)
    if suffix == ".onnx":
        (axes,) = [tensor.shape for tensor in onnxruntime.InferenceSession(path).get_inputs()]
        assert axes == ["batch", 3, "height", "width"]
    if family == "vit":  # as the model itself does, and never the result of a cropped image
        for run in runs:
            for size in ((60, 64), (64, 65), (20, 20)):
                with pytest.raises(Exception, match=r"shape|Guard"):
                    run(path, images(1, size))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "regnet"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("dynamic_size", [False, True])
def test_half_precision_runs_in_openvino(
    family: str, dtype: str, dynamic_size: bool, tmp_path: Path
) -> None:
    model, path = small(family), tmp_path / "model.onnx"
    report = export_model(
        model, path, spec=TINY_SPECS[family], dtype=dtype, dynamic_size=dynamic_size
    )
    onnx.checker.check_model(str(path), full_check=True)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert report.size < 2 * weights + 200_000
    for size in SIZES[family] if dynamic_size else [(64, 64)]:
        batch = images(3, size)
        output = run_openvino(path, batch)
        assert output.dtype == torch.float32
        assert deviation(output, model(batch)) < (0.02 if dtype == "fp16" else 0.1)
    if dtype == "fp16":
        assert deviation(run_onnxruntime(path, batch), model(batch)) < 0.02
    else:  # stated in docs/usage.md
        with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
            run_onnxruntime(path, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b16", "regnety_16gf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_full_size_runs_in_openvino(name: str, dtype: str, tmp_path: Path) -> None:
    model = randomise(swag_models.load_model(name, pretrained=False, num_classes=10))
    export_model(model, tmp_path / "model.onnx", dtype=dtype, dynamic_size=True)
    for size in ((224, 224), (256, 160)):
        batch = images(1, size)
        with torch.inference_mode():
            expected = model(batch)
        tolerance = 1e-4 if dtype == "float32" else 0.2
        assert deviation(run_openvino(tmp_path / "model.onnx", batch), expected) < tolerance


@pytest.mark.slow
def test_four_stages_are_traced_for_any_size() -> None:
    """At 32 pixels the last of four stages has one cell, which the trace would take as constant."""
    config = RegNetConfig(depth=5, w_0=8, w_a=24.0, w_m=2.0, group_width=8)
    model = build(config, num_classes=3, image_size=64).eval()
    assert model.feature_info.reduction()[-1] == 32
    trace = trace_model(model, torch.float32, dynamic_size=True).module()
    with torch.inference_mode():
        for size in ((33, 64), (97, 33), (256, 160)):
            batch = images(2, size)
            assert deviation(trace(batch), model(batch)) < 1e-5, size


def write_graph(path: Path, weight_type: int) -> None:
    """y = float(bfloat16(x) * w + w), with w of a type."""
    float32, bfloat16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["x"], ["a"], to=bfloat16),
        make("Mul", ["a", "w"], ["b"]),
        make("Add", ["b", "w"], ["c"]),
        make("Cast", ["c"], ["y"], to=float32),
    ]
    values = [onnx.helper.make_tensor_value_info(name, float32, ["n"]) for name in "xy"]
    weight = onnx.helper.make_tensor("w", weight_type, [1], [0.7])
    graph = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)])
    model.ir_version = 10
    onnx.save(model, path)


def test_the_emulation_rounds_every_result_to_bfloat16(tmp_path: Path) -> None:
    write_graph(tmp_path / "x.onnx", onnx.TensorProto.BFLOAT16)
    emulation = write_emulation(tmp_path / "x.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    x, w = torch.randn(1000), torch.tensor(0.7, dtype=torch.bfloat16)
    (output,) = onnxruntime.InferenceSession(emulation, options).run(None, {"x": x.numpy()})
    expected = (x.bfloat16() * w + w).float()
    assert torch.equal(torch.from_numpy(output), expected)
    once = x.bfloat16().float() * w.float() + w.float()
    assert not torch.equal(expected, once.bfloat16().float()), "the product is rounded too"


def test_a_graph_that_mixes_types_is_not_emulated(tmp_path: Path) -> None:
    write_graph(tmp_path / "x.onnx", onnx.TensorProto.FLOAT)
    with pytest.raises(ExportError, match=r"not valid in bfloat16: .*Mul") as error:
        write_emulation(tmp_path / "x.onnx")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_writes_files_for_any_size_in_half_precision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    options = ["--dynamic-size", "--dtype", "bf16"]
    with caplog.at_level(logging.WARNING, "swag_models"):
        assert main(["export", "vit_nano_hashtags", str(path), *options]) == 0
    assert not [record for record in caplog.records if record.name == "swag_models"]
    assert "bfloat16, 0.7 MiB" in capsys.readouterr().err
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in types


@pytest.mark.slow
def test_a_file_that_is_wrong_in_one_size_is_not_written(tmp_path: Path) -> None:
    model = small("regnet")
    forward = model.forward

    def forward_wrong(x: Tensor) -> Tensor:
        return forward(x) + (0.1 if x.shape[3] > 100 else 0)  # fixed when it is traced

    model.forward = forward_wrong  # type: ignore[method-assign]
    with pytest.raises(Exception, match=r"it deviates from eager|invalid model"):
        export_model(model, tmp_path / "x.onnx", spec=REGNET_SPEC, dynamic_size=True)
    assert not list(tmp_path.iterdir())
