"""The best safe setting for the hardware: bf16, folded batch norm, channels last, compiled if that repays, quick resizing.

Axes: N batch, C channels, H W pixels.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from swag_models.models import Backbone, RegNet
from swag_models.models.regnet import ConvNorm

# Share of the time that compiling saves over what `accelerate` has made of the model already, and seconds it takes for each
# block of the model: measured by benchmarks/fast.py at batch 8 and 224 px, rounded to the careful side.
SAVED = {
    "matrix": {"ViT": 0.15, "RegNet": 0.35},
    "vector": {"ViT": 0.0, "RegNet": 0.1},
    "cuda": {"ViT": 0.1, "RegNet": 0.2},
}
SECONDS_PER_BLOCK = 1.5
TRITON_NEEDS = (7, 0)  # compute capability


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor or GPU multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32
        )
    return torch.bfloat16 if device.type == "cpu" and _cpu_kind() else torch.float32


def resizes_faster() -> bool:
    """Whether torch has vector instructions here for resizing bytes, in which it is faster than Pillow."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def accelerate(model: Backbone, dtype: torch.dtype) -> Backbone:
    """The model itself, in `dtype`, for inference only: a RegNet's batch norms folded into its convolutions, channels last."""
    if isinstance(model, RegNet):
        fold_batch_norm(model, dtype)
        model = model.to(memory_format=torch.channels_last)
    return model.to(dtype).requires_grad_(False)


@torch.no_grad()
def fold_batch_norm(model: nn.Module, dtype: torch.dtype) -> None:
    """Put each batch norm's scale and shift into the convolution before it, whose weight becomes `dtype` and channels last.

    In float32 the outputs stay the same. Each weight is written once, because for a single picture that takes longer than it
    saves otherwise.
    """
    for module in model.modules():
        if isinstance(module, ConvNorm) and isinstance(norm := module.bn, nn.BatchNorm2d):
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[arg-type, operator]
            weight = torch.empty_like(
                module.conv.weight, dtype=dtype, memory_format=torch.channels_last
            )
            module.conv.weight = nn.Parameter(
                torch.mul(module.conv.weight, scale[:, None, None, None], out=weight)
            )
            module.conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)  # type: ignore[operator]
            module.bn = nn.Identity()  # type: ignore[assignment]


def repays_compiling(model: Backbone, device: torch.device, seconds: float) -> bool:
    """Whether compiling saves more than it takes, if the model as it is would be busy for so many more seconds."""
    kind = "cuda" if device.type == "cuda" else _cpu_kind() if device.type == "cpu" else None
    if kind is None:
        return False
    blocks = len(model.layers) - 1  # all but the stem
    return seconds * SAVED[kind][
        type(model).__name__
    ] > blocks * SECONDS_PER_BLOCK and has_compiler(device)


def compile_forward(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of the model compiled for one input shape, its weights laid out for the processor in advance."""
    compiled = torch.compile(forward, dynamic=False)

    def run(x: Tensor) -> Tensor:
        import torch._inductor.config as inductor

        with inductor.patch(freezing=True), torch.no_grad():
            return compiled(x)

    return run


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds Python's headers and a C++ compiler, or for a GPU Triton and the C compiler that it needs."""
    if device.type == "cuda":
        if (
            importlib.util.find_spec("triton") is None
            or torch.cuda.get_device_capability(device) < TRITON_NEEDS
        ):
            return False
        named, usual = os.environ.get("CC"), ["gcc", "clang"]  # as Triton does
    else:
        named = os.environ.get("CXX")  # as inductor does
        usual = [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    found = any(shutil.which(compiler) for compiler in ([named.split()[0]] if named else usual))
    return found and Path(sysconfig.get_path("include"), "Python.h").exists()


def _cpu_kind() -> str | None:
    """ "matrix" or "vector" for a processor with matrix or vector instructions for bfloat16, None for one without."""
    if torch.cpu._is_amx_tile_supported():
        return "matrix"
    return "vector" if torch.cpu._is_avx512_bf16_supported() else None
