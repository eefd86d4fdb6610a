"""Models compiled ahead of time by AOTInductor: `.aoti.pt2`, for one kind of CPU, on Linux.

Such a file is native code: load only files that you trust. torch marks the format as experimental.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from swag_models.archives import ZIP_ERRORS
from swag_models.errors import ConfigError, ExportError, plain_arguments
from swag_models.export.metadata import COMPILED_SUFFIX, Metadata, find_suffix, read_compiled
from swag_models.formatting import list_names
from swag_models.inference.acceleration import has_compiler
from swag_models.inference.native_code import compile_package, list_instructions, load_package
from swag_models.paths import expand_path

CPU_FIELD, TORCH_FIELD = "cpu_instructions", "torch"  # beside those of `Metadata`


def check_compiler() -> None:
    """Raise ConfigError where a model cannot be compiled ahead of time."""
    if sys.platform != "linux":
        raise ConfigError(
            f"{COMPILED_SUFFIX} is for Linux, this is {sys.platform}; export to .pt2 or .onnx"
        )
    if not has_compiler(torch.device("cpu")):
        raise ConfigError(
            f"{COMPILED_SUFFIX} needs a C++ compiler and Python's headers; install g++ and "
            "python3-dev, or export to .pt2"
        )


def write_compiled(program: torch.export.ExportedProgram, path: Path, metadata: Metadata) -> None:
    """Compile a graph for this CPU.

    Args:
        program: traced in the precision of the file.
        path: file to write, with the suffix .aoti.pt2.
        metadata: stored in the file.

    Raises:
        ExportError: torch cannot compile the graph.
    """
    strings = metadata.to_strings() | {
        CPU_FIELD: " ".join(list_instructions()),
        TORCH_FIELD: torch.__version__,
    }
    try:
        compile_package(program, path, strings)
    except ExportError as error:
        raise ExportError(f"{error}; export to .pt2") from None


@plain_arguments
def load_compiled(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """Load a file that `export_model` compiled ahead of time, as a function.

    The file is native code, which runs with all rights of the process: load only files that you
    trust. `torch._inductor.aoti_load_package(path)` loads it too, without this library and without
    the check of the CPU.

    Args:
        path: file with the suffix .aoti.pt2.

    Returns:
        A function of images (N, C, H, W), float32, preprocessed as `read_metadata(path).preprocess`
        describes, that returns logits or features (N, ...), float32.

    Raises:
        ConfigError: the suffix is another one.
        ExportError: the file cannot be read, or was compiled for another CPU or release of torch.
    """
    path = expand_path(path)
    if find_suffix(path) != COMPILED_SUFFIX:
        raise ConfigError(f"invalid suffix of {path}: allowed: {COMPILED_SUFFIX}")
    try:
        strings = read_compiled(path)
    except (OSError, *ZIP_ERRORS) as error:
        raise ExportError(f"cannot read {path}: {error}; export the model again") from None
    _check_machine(path, strings)
    try:
        return load_package(path)
    except ExportError as error:
        raise ExportError(f"{error}; export the model again") from None


def _check_machine(path: Path, strings: dict[str, str]) -> None:
    """Raise ExportError if a file was compiled for another CPU or release of torch."""
    advice = f"export the model to {COMPILED_SUFFIX} on this machine"
    lacking = sorted(set(strings.get(CPU_FIELD, "").split()) - set(list_instructions()))
    if lacking:
        raise ExportError(
            f"{path} was compiled for another CPU: this one lacks {list_names(lacking)}; {advice}"
        )
    compiled = strings.get(TORCH_FIELD, "unknown")
    if _get_release(compiled) != _get_release(torch.__version__):
        raise ExportError(
            f"{path} was compiled by torch {compiled}, this is {torch.__version__}; {advice}"
        )


def _get_release(version: str) -> list[str]:
    """The first two numbers of a version."""
    return version.split(".")[:2]
