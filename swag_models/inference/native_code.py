"""Models compiled ahead of time by torch's AOTInductor, for one kind of CPU, on Linux.

Such a file is native code, which runs with all rights of the process that loads it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swag_models.errors import ExportError
from swag_models.formatting import describe_error

# Beginnings of the names, in Linux's /proc/cpuinfo, of instructions that compilers generate
INSTRUCTIONS = ("amx", "avx", "bmi", "f16c", "fma", "gfni", "sse", "ssse", "vaes", "vpclmul")


def compile_package(
    program: torch.export.ExportedProgram, path: Path, strings: Mapping[str, str]
) -> None:
    """Compile a graph for this CPU.

    Args:
        program: the graph.
        path: file to write, with the suffix .pt2.
        strings: metadata to store in the file.

    Raises:
        ExportError: torch cannot compile the graph.
    """
    try:
        # With gradients enabled, torch ignores `freezing`, which makes the weights constants that
        # are laid out for the CPU ahead of time.
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(path),
                inductor_configs={"aot_inductor.metadata": dict(strings), "freezing": True},
            )
    except RuntimeError as error:
        raise ExportError(
            f"torch {torch.__version__} cannot compile it ({describe_error(error)})"
        ) from None


def load_package(path: Path) -> Callable[[Tensor], Tensor]:
    """Load a compiled file as a function.

    Args:
        path: file of `compile_package`, which must be trusted.

    Raises:
        ExportError: torch cannot load it.
    """
    try:
        package: Any = torch._inductor.aoti_load_package(str(path))
    except (RuntimeError, OSError) as error:
        raise ExportError(f"torch cannot load {path}: {describe_error(error)}") from None

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = package(images)
            return output

    return run


def list_instructions() -> list[str]:
    """The instructions of this CPU that a compiler may use, by Linux's names; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    fields = (line.partition(":") for line in lines)
    # "flags" on x86, "Features" on Arm
    for name, _, value in fields:
        if name.strip() == "flags":
            return sorted(flag for flag in value.split() if flag.startswith(INSTRUCTIONS))
        if name.strip() == "Features":
            return sorted(value.split())
    return []
