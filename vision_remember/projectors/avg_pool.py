"""DeCo: average the patches of every cell, then project the means. The simplest compression, and a strong one.

Source: yaolinli/DeCo ``README.md``, ``AvgPoolProjector`` (pool first, then the MLP), arXiv 2405.20985.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid
from vision_remember.original import LLAVA_PREFIXES, load_original
from vision_remember.plugins import Origin
from vision_remember.projectors.cells import cell_grid, cell_means
from vision_remember.projectors.mlp import linears

ORIGIN = Origin(paper="arXiv 2405.20985", code="yaolinli/DeCo", licence="BSD-3-Clause")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``avg_pool``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
        scale: Patches per token along each side; a last incomplete cell counts, so 14 patches at scale 3 give 5 tokens.
        depth: Number of linears, a GELU between any two.
    """

    level: int = -2
    scale: int = 2
    depth: int = 2

    def __post_init__(self) -> None:
        for name in ("scale", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"avg_pool: {name} is at least 1, got {getattr(self, name)}")


class AvgPool(nn.Module):
    """Adaptive average pooling to the token grid, then ``Linear -> GELU -> Linear``."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.levels = (config.level,)
        self.mlp = nn.Sequential(*linears(feature_width, text_width, config.depth))

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """``grid`` reduced by the scale, or the grid of ``num_tokens`` cells whose shape is closest to it.

        Raises:
            ValueError: If more tokens are asked for along a side than there are patches.
        """
        tokens = grid.reduced(self.config.scale) if num_tokens is None else closest_grid(num_tokens, like=grid)
        return cell_grid(grid, tokens)

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``; patches marked invalid do not count in a mean."""
        tokens = self.tokens_out(features.grid, num_tokens)
        return self.mlp(cell_means(features.level(self.config.level), features.valid, features.grid, tokens))

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes DeCo's names (``mlp_projector.0.weight``) or those of LLaVA's own MLP (``mm_projector.0.weight``)."""
        renames = {
            r"mlp_projector\.(\d+)\.(weight|bias)": r"mlp.\1.\2",
            r"(\d+)\.(weight|bias)": r"mlp.\1.\2",
        }
        load_original(self, state_dict, renames, prefixes=LLAVA_PREFIXES)


Projector = AvgPool
