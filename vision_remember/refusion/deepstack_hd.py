"""DeepStack's high-resolution stacks: early decoder layers add the tokens of an enlarged page to those of the page.

    the page at twice the size, 2 x 2 canvases -- encoder, projector --> a mosaic of 2 g_h x 2 g_w tokens
        stack (i, j) = mosaic[i::2, j::2], one g_h x g_w grid that lies on the page's own -- added after layer 2 i + j

It sees four times the pixels that other methods see and encodes five canvases where they encode one, so it is compared
apart from them. Encoder and projector are the model's own; page and enlarged page are fitted alike, so the stacks lie
where the tokens do.

Source: MengLcool/DeepStack-VL ``llava/model/deepstack_arch.py`` and ``llava/model/language_model/custom_llama.py`` (mode
``2d``), arXiv 2406.04334. The original stretches a page over the crops that suit its shape and leaves stacks out; one
square of crops for pages that are fitted whole, and the gate, are our choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vision_remember.geometry import Grid
from vision_remember.plugins import Origin, settle
from vision_remember.refusion import Backbones, Memory, Method, RefusionState
from vision_remember.refusion.deepstack import StackInsertion, stacked

ORIGIN = Origin(paper="arXiv 2406.04334", code="MengLcool/DeepStack-VL", licence="Apache-2.0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``deepstack_hd``; ``Config(zero_init=False)`` is the original.

    Attributes:
        side: How many times longer the sides of the enlarged page are; makes ``side**2`` crops and as many stacks.
        layers: Decoder layers after which the stacks are added, row by row; None: the first ones.
        zero_init: Whether every stack passes a learned gate that starts at zero; without, it is added as it is, and the
            method has no parameters.
    """

    side: int = 2
    layers: tuple[int, ...] | None = None
    zero_init: bool = True

    def __post_init__(self) -> None:
        if self.side < 2:
            raise ValueError(
                f"deepstack_hd: side is at least 2, got {self.side}; for the page alone use type: deepstack"
            )
        if self.layers is not None and len(self.layers) != self.side**2:
            raise ValueError(
                f"deepstack_hd: {self.side}x{self.side} crops make {self.side**2} stacks, got {len(self.layers)} layers "
                f"{self.layers}; name one layer per stack"
            )


class DeepStackHD(Method):
    """Asks for the enlarged page and makes its stacks."""

    def __init__(self, config: Config, backbones: Backbones) -> None:
        super().__init__(settle(config, layers=tuple(range(config.side**2))), backbones)
        self.layers = self.config.layers
        self.views = (Grid(config.side, config.side),)

    def memory_of_views(self, tokens: Tensor, token_grid: Grid) -> Memory:
        """Stacks from the tokens of the crops ``float[B, side**2, V, D]``: rows ``float[B, V, side**2 * D]``, no windows.

        Raises:
            ValueError: If there are other crops than asked for, or they are not on the grid of the page's tokens.
        """
        side = self.config.side
        if tokens.shape[1:3] != (side**2, token_grid.num_cells):
            raise ValueError(
                f"deepstack_hd: {tokens.shape[1]} crops of {tokens.shape[2]} tokens do not lie on {side**2} grids of "
                f"{token_grid}; crops and page pass the same projector"
            )
        tiles = tokens.unflatten(2, (token_grid.height, token_grid.width)).unflatten(1, (side, side))
        mosaic = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, side * g_h, side * g_w, D]
        stacks = [mosaic[:, i::side, j::side].flatten(1, 2) for i in range(side) for j in range(side)]
        return stacked(torch.cat(stacks, dim=-1))

    def insertion(self, layer: int) -> StackInsertion:
        """The child of decoder layer ``layer``, with a gate of its own if there are gates."""
        kind = GatedStackInsertion if self.config.zero_init else StackInsertion
        return kind(self.layers.index(layer), len(self.layers))


class GatedStackInsertion(StackInsertion):
    """Adds its stack times one learned number, zero at the start."""

    def __init__(self, number: int, num_stacks: int) -> None:
        super().__init__(number, num_stacks)
        self.gate = nn.Parameter(torch.zeros(1))

    def stack(self, state: RefusionState) -> Tensor:
        """``float[N, D]``, what is added."""
        return self.gate * super().stack(state)


Refusion = DeepStackHD
