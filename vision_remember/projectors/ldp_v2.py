"""MobileVLM's second lightweight downsample projector: an MLP on every patch, a mean per cell, a convolution for position.

Nothing but the zero padding of that convolution tells a token where it is.

Source: Meituan-AutoML/MobileVLM ``mobilevlm/model/vision_projector.py``, ``LDPNetV2Projector``, arXiv 2402.03766. The
original pools a square of patches to 12x12; here both grids may have any shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid
from vision_remember.original import LLAVA_PREFIXES, load_original
from vision_remember.plugins import Origin
from vision_remember.projectors.cells import cell_grid, cell_means, from_map, option_grid, to_map

ORIGIN = Origin(paper="arXiv 2402.03766", code="Meituan-AutoML/MobileVLM", licence="Apache-2.0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``ldp_v2``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
        token_grid: Rows and columns of its tokens, whatever the grid of the patches.
    """

    level: int = -2
    token_grid: tuple[int, int] = (12, 12)

    def __post_init__(self) -> None:
        option_grid(self.token_grid, "ldp_v2: token_grid")


class LdpV2(nn.Module):
    """``Linear -> GELU -> mean per cell -> Linear``, then ``x + depthwise_convolution(x)`` on the token grid."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.levels = (config.level,)
        self.up = nn.Linear(feature_width, text_width)
        self.activation = nn.GELU()
        self.out = nn.Linear(text_width, text_width)
        self.position = nn.Conv2d(text_width, text_width, kernel_size=3, padding=1, groups=text_width)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """The token grid of the config, or the grid of ``num_tokens`` cells whose shape is closest to ``grid``.

        Raises:
            ValueError: If there are more tokens along a side than patches.
        """
        tokens = Grid(*self.config.token_grid) if num_tokens is None else closest_grid(num_tokens, like=grid)
        return cell_grid(grid, tokens)

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``; patches marked invalid do not count in a mean."""
        tokens = self.tokens_out(features.grid, num_tokens)
        x = self.activation(self.up(features.level(self.config.level)))
        # The original pools behind the second linear: the same, because both are linear, at P / V times the work.
        x = self.out(cell_means(x, features.valid, features.grid, tokens))
        return x + from_map(self.position(to_map(x, tokens)))

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes MobileVLM's names: ``mm_projector.mlp.mlp.0.weight``, ``mm_projector.peg.peg.0.weight``."""
        renames = {
            r"mlp\.mlp\.0\.(weight|bias)": r"up.\1",
            r"mlp\.mlp\.2\.(weight|bias)": r"out.\1",
            r"peg\.peg\.0\.(weight|bias)": r"position.\1",
        }
        load_original(self, state_dict, renames, prefixes=LLAVA_PREFIXES)


Projector = LdpV2
