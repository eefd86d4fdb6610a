"""Run an .onnx in bfloat16 with onnxruntime, which has no such arithmetic on CPUs."""

from pathlib import Path
from typing import Any

from swag_models.errors import ExportError
from swag_models.formatting import describe_error

# Their inputs, attributes or both are converted as they are.
CONVERSIONS = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape"})


def write_emulation(path: Path) -> Path:
    """Write a graph that computes in float32 and rounds every result to bfloat16.

    A runtime with bfloat16 multiplies bfloat16 numbers, adds the products in float32 and rounds the
    sum; so does this graph.

    Args:
        path: an .onnx in bfloat16.

    Returns:
        An .onnx beside it, with the same weights: external data is not copied.

    Raises:
        ExportError: values of different types are combined.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    try:
        # Emulated in float32, an operator with inputs of two types would run.
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"its graph is not valid in bfloat16: {describe_error(error)}") from None
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    bfloat16 = onnx.TensorProto.BFLOAT16
    names = {value.name for value in values if value.type.tensor_type.elem_type == bfloat16}
    weights = [tensor.name for tensor in graph.initializer if tensor.data_type == bfloat16]
    nodes = [_make_cast(name, _widen(name), onnx.TensorProto.FLOAT) for name in weights]
    names.update(weights)
    for original in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        nodes.append(node)
        rounded = [name for name in node.output if name in names]
        if node.op_type not in CONVERSIONS:
            node.input[:] = [_widen(name) if name in names else name for name in node.input]
            node.output[:] = [f"{n}/exact" if n in names else n for n in node.output]
            nodes += [_make_cast(f"{name}/exact", name, bfloat16) for name in rounded]
        nodes += [_make_cast(name, _widen(name), onnx.TensorProto.FLOAT) for name in rounded]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("value_info")
    emulation = path.with_name("emulation.onnx")
    onnx.save(model, emulation)
    return emulation


def _widen(name: str) -> str:
    """The name of a value in float32."""
    return f"{name}/float32"


def _make_cast(source: str, target: str, dtype: int) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], to=dtype)
