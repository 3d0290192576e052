"""The two-layer projector of LLaVA: every patch becomes one token. Nothing is compressed; the reference of all others.

Source: haotian-liu/LLaVA ``llava/model/multimodal_projector/builder.py``, ``mlp2x_gelu``, arXiv 2310.03744.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.original import LLAVA_PREFIXES, load_original
from vision_remember.plugins import Origin

ORIGIN = Origin(paper="arXiv 2310.03744", code="haotian-liu/LLaVA", licence="Apache-2.0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``mlp``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
        depth: Number of linears, a GELU between any two: the N of LLaVA's ``mlpNx_gelu``.
    """

    level: int = -2
    depth: int = 2

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"mlp: depth is at least 1, got {self.depth}")


class Mlp(nn.Sequential):
    """``Linear(C, D) -> GELU -> Linear(D, D)`` on every patch."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__(*linears(feature_width, text_width, config.depth))
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

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes LLaVA's names (``model.mm_projector.0.weight``) or those of transformers (``linear_1.weight``)."""
        renames = {
            r"(\d+)\.(weight|bias)": r"\1.\2",
            r"linear_1\.(weight|bias)": r"0.\1",
            r"linear_2\.(weight|bias)": r"2.\1",
        }
        prefixes = (*LLAVA_PREFIXES, "multi_modal_projector.", "model.multi_modal_projector.")
        load_original(self, state_dict, renames, prefixes=prefixes)


def linears(width: int, out_width: int, depth: int = 2, activation: type[nn.Module] = nn.GELU) -> list[nn.Module]:
    """``depth`` linears from ``width`` to ``out_width``, an activation between any two."""
    layers: list[nn.Module] = [nn.Linear(width, out_width)]
    for _ in range(1, depth):
        layers += [activation(), nn.Linear(out_width, out_width)]
    return layers


Projector = Mlp
