"""The fast inference setting: bfloat16, folded batch norm, channels last, torch.compile.

Axes: N batch, C channels, H W pixels.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swag_models.models import Backbone, ResNet
from swag_models.models.conv_net import ConvNet
from swag_models.models.regnet_block import ConvNorm
from swag_models.models.resnet_block import BasicBlock, Bottleneck, Shortcut

# Share of the run time that torch.compile saves on top of `accelerate`, by hardware and model
# family. Measured by benchmarks/fast.py at batch size 8 and 224 px, rounded down; 0 for a ResNet,
# which was not measured.
COMPILE_SAVINGS = {
    "amx": {"ViT": 0.15, "RegNet": 0.35, "ResNet": 0.0},
    "avx512_bf16": {"ViT": 0.1, "RegNet": 0.1, "ResNet": 0.0},
    "cuda": {"ViT": 0.1, "RegNet": 0.2, "ResNet": 0.0},
}
COMPILE_SECONDS_PER_BLOCK = 3.0  # of vit_b16 in benchmarks/compiled_cache.py, rounded up
# Hashing the weights, checking and loading stored code; benchmarks/compiled_cache.py, rounded up
MIN_LOAD_SECONDS, LOAD_SECONDS_PER_GB = 0.5, 5.0
# Modules in which each convolution is followed by its batch norm
FOLDABLE = (ConvNorm, ResNet, BasicBlock, Bottleneck, Shortcut)
MIN_TRITON_CAPABILITY = (7, 0)  # compute capability of the GPU


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the device multiplies it faster than float32, otherwise float32."""
    if device.type == "cuda":
        # emulated bfloat16 would be slower than float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and _find_bf16_instructions() is not None
    return torch.bfloat16 if native else torch.float32


def has_fast_resize() -> bool:
    """Whether torch resizes uint8 images faster than Pillow, that is with vector instructions."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def accelerate(model: Backbone, dtype: torch.dtype) -> Backbone:
    """Prepare a model for fast inference, in place.

    The batch norms of a RegNet or ResNet are folded into its convolutions, and its memory format
    becomes channels last.

    Args:
        model: the model; it can no longer be trained.
        dtype: dtype of the weights.

    Returns:
        The same model.
    """
    if isinstance(model, ConvNet):
        fold_batch_norm(model, dtype)
        model = model.to(memory_format=torch.channels_last)
    return model.to(dtype).requires_grad_(False)


@torch.no_grad()
def fold_batch_norm(model: nn.Module, dtype: torch.dtype) -> None:
    """Fold the scale and shift of each batch norm into the convolution before it, in place.

    In float32 the outputs stay the same up to rounding.

    Args:
        model: the model; modules other than FOLDABLE are not changed.
        dtype: dtype of the folded weights, which are stored channels last.
    """
    for module in model.modules():
        if not isinstance(module, FOLDABLE):
            continue
        for (_, conv), (name, norm) in pairwise(list(module.named_children())):
            # A layer that was replaced may compute its weight by itself.
            if isinstance(norm, nn.BatchNorm2d) and type(conv) is nn.Conv2d:
                _fold(conv, norm, dtype)
                setattr(module, name, nn.Identity())


def _fold(conv: nn.Conv2d, norm: Any, dtype: torch.dtype) -> None:
    """Fold a batch norm, whose statistics are optional for the type checker, into a convolution."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    # Product, dtype and memory format in one pass over each weight: for a single image, separate
    # passes would take longer than the folded model saves.
    weight = torch.empty_like(conv.weight, dtype=dtype, memory_format=torch.channels_last)
    torch.mul(conv.weight, scale[:, None, None, None], out=weight)
    conv.weight = nn.Parameter(weight)
    conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)


def compiling_pays_off(model: Backbone, device: torch.device, seconds: float) -> bool:
    """Whether torch.compile saves more time than it takes.

    Args:
        model: the model, prepared by `accelerate`.
        device: device that it runs on.
        seconds: how long the remaining images would take without compiling.
    """
    num_blocks = len(model.layers) - 1  # all but the stem
    saved = seconds * _find_savings(model, device)
    return saved > num_blocks * COMPILE_SECONDS_PER_BLOCK and has_compiler(device)


def loading_pays_off(model: Backbone, seconds: float) -> bool:
    """Whether code that is stored on this machine saves more time than its loading takes.

    Args:
        model: the model, prepared by `accelerate`, on the CPU.
        seconds: how long the images would take without compiling.
    """
    size = sum(tensor.nbytes for tensor in model.parameters())
    saved = seconds * _find_savings(model, torch.device("cpu"))
    return saved > MIN_LOAD_SECONDS + LOAD_SECONDS_PER_GB * size / 1e9


def _find_savings(model: Backbone, device: torch.device) -> float:
    """The share of COMPILE_SAVINGS for this hardware; 0 where it was not measured."""
    if device.type == "cuda":
        hardware: str | None = "cuda"
    else:
        hardware = _find_bf16_instructions() if device.type == "cpu" else None
    return 0.0 if hardware is None else COMPILE_SAVINGS[hardware][type(model).__name__]


def compile_forward(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compile a function of the model for inference at one input shape."""
    compiled = torch.compile(forward, dynamic=False)

    def run_compiled(x: Tensor) -> Tensor:
        import torch._inductor.config as inductor

        # freezing makes the weights constants, which are laid out for the CPU ahead of time
        with inductor.patch(freezing=True), torch.no_grad():
            return compiled(x)

    return run_compiled


def has_compiler(device: torch.device) -> bool:
    """Whether the requirements of torch.compile are installed.

    These are Python's headers and a C++ compiler; for a GPU, Triton and a C compiler.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if importlib.util.find_spec("triton") is None or capability < MIN_TRITON_CAPABILITY:
            return False
        configured, defaults = os.environ.get("CC"), ["gcc", "clang"]  # as Triton looks for it
    else:
        configured = os.environ.get("CXX")  # as inductor looks for it
        defaults = [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    # CC and CXX may contain options after the name of the compiler
    names = [configured.split()[0]] if configured else defaults
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return any(shutil.which(name) for name in names) and headers.exists()


def _find_bf16_instructions() -> str | None:
    """The bfloat16 instructions of the CPU, a key of COMPILE_SAVINGS; None if it has none."""
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else None
