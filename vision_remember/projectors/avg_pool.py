"""DeCo: average the patches of every cell, then project the means. The simplest compression, and a strong one.

Source: yaolinli/DeCo ``README.md``, ``AvgPoolProjector`` (pool first, then the MLP), arXiv 2405.20985.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``avg_pool``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
        scale: Patches per token along each side; a last incomplete cell counts, so 14 patches at scale 3 give 5 tokens.
    """

    level: int = -2
    scale: int = 3

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"avg_pool: scale is at least 1, got {self.scale}")


class AvgPool(nn.Module):
    """Adaptive average pooling to the token grid, then ``Linear -> GELU -> Linear``."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.levels = (config.level,)
        self.mlp = nn.Sequential(nn.Linear(feature_width, text_width), nn.GELU(), nn.Linear(text_width, text_width))

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """``grid`` reduced by the scale, or the grid of ``num_tokens`` cells whose shape is closest to it."""
        return grid.reduced(self.config.scale) if num_tokens is None else closest_grid(num_tokens, like=grid)

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``; patches marked invalid do not count in a mean.

        Raises:
            ValueError: If more tokens are asked for along a side than there are patches.
        """
        grid, tokens = features.grid, self.tokens_out(features.grid, num_tokens)
        if tokens.height > grid.height or tokens.width > grid.width:
            raise ValueError(f"avg_pool cannot pool a {grid} grid into {tokens} tokens; ask for fewer tokens")
        return self.mlp(_pool(features.level(self.config.level), features.valid, grid, tokens))


def _pool(x: Tensor, valid: Tensor | None, grid: Grid, tokens: Grid) -> Tensor:
    """Means over the cells of ``tokens``, ``float[B, V, C]``; zero where no patch of a cell is valid."""

    def mean(x: Tensor) -> Tensor:
        cells = x.transpose(1, 2).unflatten(2, (grid.height, grid.width))
        return F.adaptive_avg_pool2d(cells, (tokens.height, tokens.width)).flatten(2).transpose(1, 2)

    if valid is None:
        return mean(x)
    share = mean(valid[:, :, None].to(x.dtype))  # of each cell that is real
    return mean(x * valid[:, :, None]) / share.where(share > 0, 1.0)


Projector = AvgPool
