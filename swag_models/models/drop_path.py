"""Stochastic depth (Huang et al., arXiv 1603.09382). N is the batch size."""

import torch
from torch import Tensor, nn

from swag_models.models.arguments import check_rate


class DropPath(nn.Module):
    """Stochastic depth: in training, drop a residual branch for whole samples.

    Args:
        rate: probability of dropping the branch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:  # (N, ...) -> (N, ...)
        return drop_samples(x, self.rate) if self.training and self.rate > 0 else x

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


torch.fx.wrap("drop_samples")  # one node of a traced graph, because it depends on ndim


def drop_samples(x: Tensor, rate: float) -> Tensor:
    """Set random samples of (N, ...) to zero; scale the others so that the expectation is kept.

    Args:
        x: the output of a residual branch.
        rate: probability of dropping a sample.
    """
    keep = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(1 - rate)  # (N, 1, ..., 1)
    return x * keep / (1 - rate)


def spread_rates(rate: float, depth: int) -> list[float]:
    """Return stochastic-depth rates that grow linearly from 0 at the first block to `rate`.

    Args:
        rate: rate of the last block.
        depth: number of blocks.
    """
    rate = check_rate("drop_path_rate", rate)
    return [rate * layer / max(depth - 1, 1) for layer in range(depth)]
