"""Linear interpolation of tables."""

import torch
from torch import Tensor


def interpolate(at: Tensor, grid: Tensor, table: Tensor) -> Tensor:
    """Interpolate `table` [..., level], given on the rising `grid` [level], linearly at `at` [batch]: [..., batch].

    Beyond the ends of the grid the table is constant.
    """
    if len(grid) == 1:
        return table[..., :1].expand(*table.shape[:-1], len(at))
    upper = torch.searchsorted(grid, at.contiguous()).clamp(1, len(grid) - 1)
    share = ((at - grid[upper - 1]) / (grid[upper] - grid[upper - 1])).clamp(0, 1)
    return table[..., upper - 1] * (1 - share) + table[..., upper] * share
