"""What the projectors share that give every token its own cell of the patch grid."""

import torch.nn.functional as F
from torch import Tensor

from vision_remember.geometry import Grid


def option_grid(sides: tuple[int, ...], option: str) -> Grid:
    """The grid that an option gives as rows and columns.

    Raises:
        ValueError: If it is not two positive numbers.
    """
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"{option} is [rows, columns], got {list(sides)}")
    return Grid(*sides)


def cell_grid(grid: Grid, tokens: Grid) -> Grid:
    """``tokens``, once it is certain that each has a cell of ``grid``.

    Raises:
        ValueError: If there are more tokens along a side than patches.
    """
    if tokens.height > grid.height or tokens.width > grid.width:
        raise ValueError(f"cannot make {tokens} tokens of a {grid} grid of patches; ask for fewer tokens")
    return tokens


def cell_means(x: Tensor, valid: Tensor | None, grid: Grid, tokens: Grid) -> Tensor:
    """Means over the cells of ``tokens``, the bins of adaptive average pooling.

    Args:
        x: ``float[B, P, C]`` on ``grid``.
        valid: ``bool[B, P]``, False where a patch does not count; None when all do.

    Returns:
        ``float[B, V, C]``; zero where no patch of a cell is valid.
    """
    if valid is None:
        return from_map(F.adaptive_avg_pool2d(to_map(x, grid), (tokens.height, tokens.width)))
    share = cell_means(valid[:, :, None].to(x.dtype), None, grid, tokens)  # of each cell that is real
    return cell_means(x * valid[:, :, None], None, grid, tokens) / share.where(share > 0, 1.0)


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """From rows ``[B, P, C]`` to a feature map ``[B, C, height, width]``."""
    return x.transpose(1, 2).unflatten(2, (grid.height, grid.width))


def from_map(x: Tensor) -> Tensor:
    """From a feature map ``[B, C, height, width]`` to rows ``[B, height * width, C]``."""
    return x.flatten(2).transpose(1, 2)
