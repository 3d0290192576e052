"""The two-layer projector of LLaVA: every patch becomes one token. Nothing is compressed; the reference of all others.

Source: haotian-liu/LLaVA ``llava/model/multimodal_projector/builder.py``, ``mlp2x_gelu``.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``mlp``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
    """

    level: int = -2


class Mlp(nn.Sequential):
    """``Linear(C, D) -> GELU -> Linear(D, D)`` on every patch."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__(nn.Linear(feature_width, text_width), nn.GELU(), nn.Linear(text_width, text_width))
        self.config = config
        self.levels = (config.level,)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """The patch grid itself.

        Raises:
            ValueError: If another number of tokens is asked for.
        """
        if num_tokens not in (None, grid.num_cells):
            raise ValueError(
                f"mlp makes {grid.num_cells} tokens of a {grid} grid, not {num_tokens}; use another projector"
            )
        return grid

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to as many tokens, ``float[B, P, D]``."""
        self.tokens_out(features.grid, num_tokens)
        return super().forward(features.level(self.config.level))


Projector = Mlp
