"""Pixel shuffle: the patches of every cell become one long token, then project it. Lossless until the projection.

Source: transformers ``models/idefics3`` (arXiv 2408.12637) and ``models/internvl`` (OpenGVLab/InternVL, arXiv 2404.16821,
``ps_version`` v2: v1 returns a transposed grid); both order the channels of a token by (row in the cell, column in the
cell, channel).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.original import load_original
from vision_remember.plugins import Origin
from vision_remember.projectors.mlp import linears

ORIGIN = Origin(
    paper="arXiv 2404.16821, 2408.12637",
    code="OpenGVLab/InternVL; huggingface/transformers models/idefics3",
    licence="MIT; Apache-2.0",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``pixel_shuffle``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads. In Idefics3 and SmolVLM that is the last one behind the encoder's
            final norm, which no hidden state has passed.
        scale: Patches per token along each side; must divide the grid.
        head: ``"internvl"`` is ``LayerNorm -> Linear -> GELU -> Linear``, ``"idefics3"`` one linear without bias.
    """

    level: int = -1
    scale: int = 2
    head: Literal["internvl", "idefics3"] = "internvl"

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"pixel_shuffle: scale is at least 1, got {self.scale}")


class PixelShuffle(nn.Module):
    """Space to depth, then a head."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.levels = (config.level,)
        width = feature_width * config.scale**2
        if config.head == "internvl":
            self.head: nn.Module = nn.Sequential(nn.LayerNorm(width), *linears(width, text_width))
        else:
            self.head = nn.Linear(width, text_width, bias=False)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """``grid`` divided by the scale.

        Raises:
            ValueError: If the scale does not divide the grid, or gives another number of tokens than asked for.
        """
        scale = self.config.scale
        if grid.height % scale or grid.width % scale:
            raise ValueError(f"pixel_shuffle: grid {grid} is not divisible by scale {scale}; choose another scale")
        tokens = grid.reduced(scale)
        if num_tokens not in (None, tokens.num_cells):
            raise ValueError(
                f"pixel_shuffle makes {tokens.num_cells} tokens of a {grid} grid at scale {scale}, not {num_tokens}; "
                "change the scale"
            )
        return tokens

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``."""
        tokens, scale = self.tokens_out(features.grid, num_tokens), self.config.scale
        x = features.level(self.config.level).unflatten(1, (tokens.height, scale, tokens.width, scale))
        return self.head(
            x.transpose(2, 3).flatten(3).flatten(1, 2)
        )  # [B, h, w, scale, scale, C] -> [B, V, scale^2 * C]

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes the names of the head's origin: InternVL's ``mlp1.0.weight``, transformers' ``layer_norm.weight``, or
        Idefics3's ``connector.modality_projection.proj.weight``.
        """
        renames = {
            r"mlp1\.([013])\.(weight|bias)": r"head.\1.\2",
            r"layer_norm\.(weight|bias)": r"head.0.\1",
            r"linear_1\.(weight|bias)": r"head.1.\1",
            r"linear_2\.(weight|bias)": r"head.3.\1",
            r"modality_projection\.proj\.(weight)": r"head.\1",
        }
        prefixes = ("multi_modal_projector.", "model.multi_modal_projector.", "connector.", "model.connector.")
        load_original(self, state_dict, renames, prefixes=prefixes)


Projector = PixelShuffle
