"""A stack of blocks, with optional gradient checkpointing and with linear layers through oneDNN.

Gradient checkpointing: Chen et al., arXiv 1604.06174.

PyTorch sends float32 matrix products on x86 to MKL, which on an AMD EPYC with AVX-512 reached about
half the speed of oneDNN (benchmarks/README.md). A linear layer is a 1x1 convolution, and PyTorch
sends convolutions to oneDNN. On a fourth-generation EPYC (CPU family 25), which executes AVX-512
in two halves, both are equally fast; on an AMD CPU without AVX-512, MKL is faster.

Axes: N batch, S tokens, D input width, E output width.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from swag_models.models.arguments import is_scripting, is_symbolic

MIN_PRODUCTS = 10**7  # multiply-adds; below it, the fixed cost of a convolution exceeds the gain


class Blocks(nn.Sequential):
    """A sequence of blocks, optionally with gradient checkpointing.

    With `grad_checkpointing`, only the input of each block is stored, and the block runs again in
    the backward pass.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x) if is_scripting() else self.step(block, x)
        return x

    def step(self, block: nn.Module, x: Tensor, *others: Any) -> Any:
        """Run one block, with checkpointing if it is on.

        Args:
            block: one of the blocks.
            x: its input.
            others: its further arguments.
        """
        inputs = (x, *others)
        if is_symbolic(x):
            return block(*inputs)
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            with accelerate_linear(x):
                return block(*inputs)
        # The compiler does not accept `context_fn`, and does not need it: it runs no update twice.
        if torch.compiler.is_compiling():
            return checkpoint(block, *inputs, use_reentrant=False)
        # Reentrant checkpointing needs an input with gradients, which frozen layers do not return.
        return checkpoint(
            block,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), keep_statistics(block)),
        )

    # A ViT passes tokens from block to block, possibly with more; see `token_merging`.

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """What goes into the first block, given tokens (N, S, D); its first element is tokens."""
        return (x,)

    def advance(
        self, block: nn.Module, state: tuple[Tensor, ...], attn_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Run one block. Without a mask it gets tokens only, as a replaced one may take no more."""
        masks = () if attn_mask is None else (attn_mask,)
        return (self.step(block, *state, *masks),)

    def weigh(self, block: Any, state: tuple[Tensor, ...]) -> Tensor:
        """Return the attention weights (N, heads, S, S) of all tokens in one block."""
        weights: Tensor = block.attn.weigh(block.norm1(state[0]))
        return weights

    def restore(self, x: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Return what was computed of the tokens of a state, for all tokens (N, S, D)."""
        return x


def keep_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """Keep the running statistics of batch norms unchanged inside the `with` block.

    The second run of a checkpointed block would otherwise update them twice per step.

    Args:
        module: its batch norms update copies of their statistics instead.
    """
    return keep_buffers([norm for norm in module.modules() if isinstance(norm, _BatchNorm)])


@contextmanager
def keep_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules change copies of their own buffers inside the `with` block."""
    statistics = [(module, dict(module._buffers)) for module in modules]
    for norm, buffers in statistics:
        norm._buffers.update(
            {name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()}
        )
    try:
        yield
    finally:
        for norm, buffers in statistics:
            norm._buffers.update(buffers)


def accelerate_linear(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which linear layers use oneDNN, if that is faster for `x`.

    Modules keep their types and their `forward`, so state dicts, hooks, adapters, quantisers and
    copies of a model are unaffected. With autograd, and while a compiler or exporter traces the
    model, the context does nothing, so that they see linear layers.

    Args:
        x: tokens (N, S, D) that the layers are about to receive.
    """
    if (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or is_symbolic(x)
        or x.ndim != 3  # a feature map; RegNet blocks have no linear layers
        or x.dtype != torch.float32
        or x.device.type != "cpu"
        or not is_mkl_slow()
    ):
        return nullcontext()
    return OneDNNLinear()


class OneDNNLinear(TorchFunctionMode):
    """Compute large plain float32 `F.linear` calls of this thread as 1x1 convolutions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _is_large_and_plain(*args):
            return apply_as_convolution(*args)
        return func(*args, **(kwargs or {}))


def _is_large_and_plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        # A quantised or sharded weight has another type, with its own kernels.
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and x.ndim == 3
        and x.dtype == weight.dtype == torch.float32
        and x.shape[0] * x.shape[1] * weight.numel() >= MIN_PRODUCTS
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # a block compiled on its own
    )


def apply_as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer as a 1x1 convolution: (N, S, D) -> (N, S, E)."""
    image = x.contiguous().transpose(1, 2).unsqueeze(2)  # (N, D, 1, S), channels last
    return F.conv2d(image, weight[:, :, None, None], bias).squeeze(2).transpose(1, 2)


@cache
def is_mkl_slow() -> bool:
    """Return whether PyTorch uses MKL on an AMD CPU with AVX-512, and has oneDNN as well."""
    libraries: Any = (torch.backends.mkl, torch.backends.mkldnn)
    if not all(library.is_available() for library in libraries):
        return False
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    cpu_info = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (cpu_info.read_text() if cpu_info.exists() else platform.processor())
