"""Fit the position embedding of a weight file to a model: which grid was it learned on?

A state dict does not say whether 36 positions are 6x6 or 4x9. But trained embeddings change slowly
along rows and columns, which shows where rows end.

Axes: D width, h w grid of patches.
"""

import logging
import math

import torch
from torch import Tensor

from swag_models.errors import CheckpointError
from swag_models.layouts import resize_position_embedding

Grid = tuple[int, int]  # rows, columns
WAVES = 3  # number of waves along each axis
MIN_FREEDOM = 6  # positions more than waves, so that chance explains few of them
MAX_RATIO = 0.6  # of unexplained power, below which a grid is clearly better than another

logger = logging.getLogger("swag_models")


def move_position(position: Tensor, grid: Grid, learned: Grid | None) -> Tensor:
    """Resize a position embedding (1, 1 + h w, D), learned on one grid, to another.

    An embedding that does not fit `learned` is returned unchanged, for the caller to report.
    """
    if learned in (None, grid) or _count_positions(position) != math.prod(learned):
        return position
    return resize_position_embedding(position, learned, grid)


def choose_grid(
    position: Tensor, grid: Grid, *, patch_size: int, keeps_grid: bool, asked: bool, origin: str
) -> Grid | None:
    """Return the grid on which the position embedding in a user's file was learned.

    Args:
        position: (1, 1 + h w, D).
        grid: the model's.
        patch_size: the model's, in pixels.
        keeps_grid: whether an embedding with as many positions as `grid` is one of this grid;
            otherwise it is square.
        asked: whether the user chose the model's image size.
        origin: what messages call the file.

    Returns:
        None if the number of positions fits neither.

    Raises:
        CheckpointError: the embedding looks like another grid; says which image size to pass.
    """
    count = _count_positions(position)
    if not count:
        return None
    side = math.isqrt(count)
    assumed = (side, side) if side * side == count else None
    if keeps_grid and count == math.prod(grid):
        assumed = grid
    seen = _recognise_grid(position, assumed)
    if seen in (None, assumed, grid):
        return seen or assumed
    text = f"{origin}: its {count} positions look like {seen[0]}x{seen[1]} patches"
    way = f"pass image_size={_scale(seen, patch_size)}"
    if assumed is None:
        raise CheckpointError(f"{text}; {way}")
    text += f", not {assumed[0]}x{assumed[1]}"
    if asked and assumed == grid:  # the user knows
        logger.warning("%s; if so, %s", text, way)
        return assumed
    other = f"image_size={_scale(assumed, patch_size)}"
    raise CheckpointError(f"{text}; {way}, or {other} if they are {assumed[0]}x{assumed[1]}")


def _recognise_grid(position: Tensor, assumed: Grid | None) -> Grid | None:
    """Return the grid that a position embedding looks like; None if that is unclear.

    On the right grid most of it is a smooth function of row and column.
    """
    count = _count_positions(position)
    widths = [n for n in range(WAVES, count // WAVES + 1) if count % n == 0]
    if count - WAVES**2 < MIN_FREEDOM or not widths:
        return None
    patches = position[0, 1:].double()
    patches = patches - patches.mean(0)
    if not (power := float(patches.square().sum())) or not math.isfinite(power):
        return None
    rest = {}  # grid -> power that the slowest waves do not explain
    for width in widths:
        rows, columns = _make_waves(count // width), _make_waves(width)
        field = patches.reshape(count // width, width, -1)
        waves = torch.einsum("ur,rcd,vc->uvd", rows, field, columns)
        rest[count // width, width] = max(1 - float(waves.square().sum()) / power, 0)
    seen, *others = sorted(rest, key=rest.__getitem__)
    other = assumed if assumed in rest else next(iter(others), None)
    clear = other is None or rest[seen] < MAX_RATIO * rest[other]
    return seen if clear else None


def _make_waves(length: int) -> Tensor:
    """Return the slowest cosine waves over a number of positions, of norm 1: (WAVES, length)."""
    position = (torch.arange(length, dtype=torch.float64) + 0.5) * (math.pi / length)
    waves = torch.cos(torch.arange(WAVES)[:, None] * position)
    return waves / waves.norm(dim=1, keepdim=True)


def _count_positions(position: Tensor) -> int:
    """Return h w of a position embedding (1, 1 + h w, D); 0 for another shape."""
    return max(position.shape[1] - 1, 0) if position.ndim == 3 and len(position) == 1 else 0


def _scale(grid: Grid, patch_size: int) -> Grid:
    """Return the size in pixels of a grid."""
    return grid[0] * patch_size, grid[1] * patch_size
