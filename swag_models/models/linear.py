"""Linear layers at full speed on AMD processors.

Torch gives float32 matrix products on x86 to MKL, which on an AMD EPYC with AVX-512 reaches about half of what oneDNN does. A
linear layer is a 1x1 convolution, and those go to oneDNN. On one with AVX2 alone, MKL is the faster of the two.

Axes: N batch, S tokens, D width in, E width out.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PRODUCTS = 10**7  # multiply-adds; below, a convolution's own cost is more than it saves


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer(x)`, (N, S, D) -> (N, S, E).

    Anything but a plain linear layer, without hooks, in plain float32 inference on such a processor is simply called, so that
    adapters, quantisers, exporters and autograd see what they expect.
    """
    if not (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and x.dtype == layer.weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[0] * x.shape[1] * layer.weight.numel() >= MIN_PRODUCTS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
        and is_mkl_slow()
    ):
        return layer(x)
    image = x.contiguous().transpose(1, 2).unsqueeze(2)  # (N, D, 1, S), channels last
    return F.conv2d(image, layer.weight[:, :, None, None], layer.bias).squeeze(2).transpose(1, 2)


@cache
def is_mkl_slow() -> bool:
    """Whether torch multiplies with MKL on a processor of AMD's with AVX-512, and has oneDNN to do better."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    processors = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (
        processors.read_text() if processors.exists() else platform.processor()
    )
