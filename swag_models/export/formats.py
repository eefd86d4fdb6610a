"""A model -> a file of either format -> a function again; ONNX's quantised form.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_models.errors import ExportError
from swag_models.export.metadata import Metadata
from swag_models.models import Backbone

ONE_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB, beyond which they lie in NAME.onnx.data
INPUT = "images"

Run = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> output (N, ...)


class Served(nn.Module):
    """A model as a file offers it: float32 in and out, computing in `dtype`."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:  # (N, C, H, W) -> (N, ...)
        return self.model(images.to(self.dtype)).float()


def trace_model(model: Backbone, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The model as a graph with a free batch, fit for any device, without the paths of the source files."""
    sample = torch.zeros(
        2, model.in_chans, *model.image_size
    )  # a batch of 1 would be taken for a constant
    batch = (
        {0: torch.export.Dim("batch", min=1, max=2**31 - 1)},
    )  # without an end, torch 2.6 refuses slices
    program = torch.export.export(
        Served(model, dtype), (sample,), dynamic_shapes=batch, strict=False
    )
    for node in list(program.graph.nodes):
        node.meta.pop("stack_trace", None)
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # insists on the CPU
            program.graph.erase_node(node)
    return program


def write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Write the graph as torch.export's own format."""
    with _Sink(path, "w") as file:
        torch.export.save(program, file, extra_files=metadata.to_strings())
    if file.error:
        raise file.error


class _Sink(io.FileIO):
    """A file that takes everything and keeps its error for later: where a write fails, torch ends the whole process."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        while rest and not self.error:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: Metadata,
    opset: int,
    calibration: Iterable[Tensor] | None,
) -> None:
    """Write the graph as ONNX; as 8-bit integers if the metadata say so."""
    try:
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[metadata.input],
            output_names=[metadata.output],
            opset_version=opset,
            dynamic_shapes=({0: "batch"},),  # names the free axis
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ExportError(
            f"torch {torch.__version__} cannot write it as ONNX ({reason}); newer torch and onnxscript may"
        ) from None
    assert made is not None
    aside = sum(tensor.nbytes for tensor in program.state_dict.values()) > ONE_FILE
    if metadata.dtype == "int8":
        full = path.with_name("float32.onnx")
        made.save(full, external_data=aside)
        _label_onnx(
            full, {"onnx.quant.pre_process": "onnxruntime.quant"}
        )  # what that would do, torch's exporter has done
        _quantise(full, path, calibration)
    else:
        made.save(path, external_data=aside)
    _label_onnx(path, metadata.to_strings())


def _label_onnx(path: Path, strings: dict[str, str]) -> None:
    """Put metadata in.

    The exporter's own on every node, a quarter of a small file, goes; so do the shapes of what lies between, which runtimes
    infer, and which older quantisers leave behind wrong.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    onnx.helper.set_model_props(model, strings)
    onnx.save(model, path)


def _quantise(source: Path, target: Path, calibration: Iterable[Tensor] | None) -> None:
    """8-bit weights of a range of 7, each output channel with a scale of its own.

    Processors without VNNI add pairs of products in 16 bits, which 8-bit weights overflow: a ViT was 21% off there (mean). The
    file is to answer the same wherever it runs.

    With pictures to calibrate on, the ranges of activations are measured and the whole network computes in integers. Without,
    matrix products do, and scale their inputs batch by batch. On two cores with VNNI and random weights, a ViT-B/16 is twice as
    fast as in float32 either way, but 11% off (mean) with, 2% without; a RegNetY-16GF is 2.7 times as fast with, not without.
    """
    from onnxruntime import quantization

    if calibration is None:
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
        )
        return
    quantization.quantize_static(
        source,
        target,
        _Feed(calibration),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


class _Feed:
    """Batches one by one, as onnxruntime's calibration asks for them."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.batches, None)
        return None if images is None else {INPUT: images.numpy()}


def open_file(path: Path) -> Run:
    """A file as a function, images -> output, on the CPU."""
    if path.suffix == ".pt2":
        program: Run = torch.export.load(path).module()
        return program
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.NotImplemented) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot run the model: {reason}; try another opset"
        ) from None
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def move_file(made: Path, path: Path) -> int:
    """Give the checked file its final name, external data first; the bytes of both."""
    data, final_data = (each.with_name(f"{each.name}.data") for each in (made, path))
    size = made.stat().st_size
    if data.exists():
        size += data.stat().st_size
        os.replace(data, final_data)
        os.replace(made, path)
    else:
        os.replace(made, path)
        if path.suffix == ".onnx":
            final_data.unlink(missing_ok=True)  # of the file that was replaced
    return size
