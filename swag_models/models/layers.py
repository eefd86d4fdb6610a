"""A stack of blocks, with or without gradient checkpointing (Chen et al., arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Blocks(nn.Sequential):
    """Modules in turn; with `grad_checkpointing` each keeps its input only, and runs again in the backward pass."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.step(block, x)
        return x

    def step(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block's output."""
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(x)
        if torch.compiler.is_compiling():  # it takes no contexts, and runs no update twice
            return checkpoint(block, x, use_reentrant=False)
        return checkpoint(
            block,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), keep_statistics(block)),
        )


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms work on copies of their running statistics, which a second run must not move again."""
    kept = [
        (norm, dict(norm._buffers)) for norm in module.modules() if isinstance(norm, _BatchNorm)
    ]
    for norm, buffers in kept:
        norm._buffers.update(
            {name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()}
        )
    try:
        yield
    finally:
        for norm, buffers in kept:
            norm._buffers.update(buffers)
