"""Write a model as .onnx or .pt2 with metadata, load such a file, and quantise an .onnx.

Axes: N batch, C channels, H W pixels.
"""

import copy
import io
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_models.errors import ExportError
from swag_models.export.bfloat16 import write_emulation
from swag_models.export.compiled import load_compiled
from swag_models.export.external_data import list_data_paths
from swag_models.export.metadata import COMPILED_SUFFIX, Metadata, find_suffix
from swag_models.model_limits import LIMITS
from swag_models.models import Backbone, ViT
from swag_models.models.conv_net import MIN_SIZE

INPUT_NAME = "images"
AXES = ("batch", "channels", "height", "width")
MAX_INPUT_SIDE = int(LIMITS["image_size"][1])  # pixels

ModelFunction = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> output (N, ...)


class Float32Interface(nn.Module):
    """A model that takes and returns float32, and computes in `dtype`."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:  # (N, C, H, W) -> (N, ...)
        return self.model(images.to(self.dtype)).float()


def trace_model(
    model: Backbone, dtype: torch.dtype, *, dynamic_size: bool = False
) -> torch.export.ExportedProgram:
    """Trace a model as a graph for any batch size and device.

    Args:
        model: in float32 on the CPU, in eval mode.
        dtype: internal precision; inputs and outputs are float32.
        dynamic_size: for images of any height and width that the model accepts.
    """
    # Without a maximum, torch 2.6 rejects slices.
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=2**31 - 1)}
    size = model.image_size
    if dynamic_size:
        step, minimum = find_sides(model)
        # not the minimum: an inner axis of length 1 would become a constant
        size = (2 * minimum + step, 2 * minimum)
        for axis in (2, 3):
            side = torch.export.Dim(AXES[axis], min=minimum // step, max=MAX_INPUT_SIDE // step)
            axes[axis] = side if step == 1 else step * side
    # torch.export treats an axis of length 1 as constant.
    sample = torch.zeros(2, model.in_chans, *size, dtype=torch.float32, device="cpu")
    program = torch.export.export(
        Float32Interface(model, dtype), (sample,), dynamic_shapes=(axes,), strict=False
    )
    for node in list(program.graph.nodes):
        node.meta.pop("stack_trace", None)  # contains paths of this machine
        # These nodes assert that tensors are on the CPU.
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    return program


def find_sides(model: Backbone) -> tuple[int, int]:
    """Return of which number a side of an image must be a multiple, and its minimum, in pixels."""
    if isinstance(model, ViT):
        return model.patch_size, 2 * model.patch_size  # torch.export treats a length of 1 apart
    # torch.export also treats a last feature map of one row or column apart
    return 1, max(MIN_SIZE, model.feature_info.reduction()[-1] + 1)


def write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Write the graph in the format of torch.export."""
    with _ErrorKeepingFile(path, "w") as file:
        torch.export.save(program, file, extra_files=metadata.to_strings())
    if file.error:
        raise file.error


class _ErrorKeepingFile(io.FileIO):
    """A file whose `write` never fails; the first error is stored in `error`.

    torch's archive writer terminates the process if a write raises.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        remaining = memoryview(data)
        while remaining and not self.error:
            try:
                remaining = remaining[super().write(remaining) :]
            except OSError as error:
                self.error = error
        return len(data)


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: Metadata,
    opset: int,
    calibration: Iterable[Tensor] | None,
    external_data: bool,
) -> None:
    """Write the graph as ONNX, quantised to 8-bit integers if `metadata.dtype` is "int8".

    Args:
        program: traced in the precision of the file, or in float32 for int8.
        path: file to write.
        metadata: stored in the file.
        opset: ONNX opset.
        calibration: batches (N, C, H, W) to calibrate the ranges of activations on; None
            quantises dynamically.
        external_data: store the weights beside the file, in PATH.data.

    Raises:
        ExportError: torch's exporter does not support the model.
    """
    (name,) = program.graph_signature.user_inputs
    shape = next(node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    axes = {axis: AXES[axis] for axis in range(4) if isinstance(shape[axis], torch.SymInt)}
    try:
        # The exporter warns about its own use of torch; under `python -W error` that would end it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[metadata.input],
                output_names=[metadata.output],
                opset_version=opset,
                dynamic_shapes=(axes,),  # names the axes in the file
                # The optimiser leaves folded convolutions of a bfloat16 graph in float32.
                optimize=metadata.dtype != "bfloat16",
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ExportError(
            f"torch {torch.__version__} cannot write it as ONNX ({reason}); "
            "upgrade torch and onnxscript, or export to .pt2"
        ) from None
    assert exported is not None
    if metadata.dtype == "int8":
        float32_path = path.with_name("float32.onnx")
        exported.save(float32_path)
        # Marks the file as pre-processed: torch's exporter already did the work of that step.
        _set_metadata(float32_path, {"onnx.quant.pre_process": "onnxruntime.quant"})
        _quantise(float32_path, path, calibration)
        if external_data:
            _move_weights_out(path)
    else:
        exported.save(path, external_data=external_data)
    _set_metadata(path, metadata.to_strings())


def _set_metadata(path: Path, strings: dict[str, str]) -> None:
    """Replace the metadata of an .onnx, including that of its nodes."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # added by the exporter: a quarter of a small file
    # Shapes of intermediate values. Runtimes infer them, and older quantisers leave wrong ones.
    model.graph.ClearField("value_info")
    onnx.helper.set_model_props(model, strings)
    onnx.save(model, path)


def _move_weights_out(path: Path) -> None:
    """Store the weights of an .onnx beside it."""
    import onnx

    name = list_data_paths(path)[0].name
    onnx.save(onnx.load(path), path, save_as_external_data=True, location=name)


def _quantise(source: Path, target: Path, calibration: Iterable[Tensor] | None) -> None:
    """Quantise an .onnx to 8-bit integers with a scale for each output channel.

    Weights are limited to 7 bits, because CPUs without VNNI add pairs of products in 16 bits, which
    overflow with 8-bit weights: on such a CPU a ViT deviated by 21% (mean). A file must give the
    same results on all CPUs.

    With calibration, the ranges of activations are measured and the whole network computes in
    integers. Without it, only the matrix products do, and their inputs are scaled for each batch.
    On two cores with VNNI and random weights, a ViT-B/16 is twice as fast as in float32 either way,
    but deviates by 11% (mean) with and 2% without calibration; a RegNetY-16GF is 2.7 times as fast
    with calibration, and not faster without.
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
        _CalibrationReader(calibration),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


class _CalibrationReader:
    """Batches in the interface of onnxruntime's CalibrationDataReader."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        images = next(self.batches, None)
        return None if images is None else {INPUT_NAME: images.numpy()}


def load_file(path: Path, dtype: str) -> ModelFunction:
    """Load an exported file as a function on the CPU.

    Args:
        path: the file.
        dtype: its internal precision.

    Raises:
        ExportError: onnxruntime cannot run the model.
    """
    if find_suffix(path) == COMPILED_SUFFIX:
        return load_compiled(path)
    if path.suffix == ".pt2":
        program: ModelFunction = torch.export.load(path).module()
        return program
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if dtype == "bfloat16":
        path = write_emulation(path)
        # Optimisations would remove the rounding.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (state.Fail, state.InvalidGraph, state.NotImplemented) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot run the model: {reason}; "
            "try another opset"
        ) from None
    return lambda images: torch.from_numpy(session.run(None, {INPUT_NAME: images.numpy()})[0])
