"""A stack of blocks, with optional gradient checkpointing (Chen et al., arXiv 1604.06174)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from swag_models.models.linear import accelerate_linear


class Blocks(nn.Sequential):
    """A sequence of blocks, optionally with gradient checkpointing.

    With `grad_checkpointing`, only the input of each block is stored, and the block runs again in
    the backward pass.
    """

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.step(block, x)
        return x

    def step(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one block, with checkpointing if it is on.

        Args:
            block: one of the blocks.
            x: its input.
        """
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            with accelerate_linear(x):
                return block(x)
        # The compiler does not accept `context_fn`, and does not need it: it runs no update twice.
        if torch.compiler.is_compiling():
            return checkpoint(block, x, use_reentrant=False)
        # Reentrant checkpointing needs an input with gradients, which frozen layers do not return.
        return checkpoint(
            block,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), keep_statistics(block)),
        )


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms unchanged inside the `with` block.

    The second run of a checkpointed block would otherwise update them twice per step.

    Args:
        module: its batch norms update copies of their statistics instead.
    """
    statistics = [
        (norm, dict(norm._buffers)) for norm in module.modules() if isinstance(norm, _BatchNorm)
    ]
    for norm, buffers in statistics:
        norm._buffers.update(
            {name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()}
        )
    try:
        yield
    finally:
        for norm, buffers in statistics:
            norm._buffers.update(buffers)
