"""DeepStack as Qwen3-VL has it: early decoder layers add to every vision token what a merger makes of one encoder level.

    level k [B, P, C] -- the cell of every token, in the order (row, column, channel) --> [B, V, W * C]
        merger k: LayerNorm -> Linear -> GELU -> Linear --> [B, V, D] -- added after the k-th of the layers

It sees the same pixels as every other method; ``deepstack_hd`` sees more. The mergers run once per image, beside the
projector, so a memory row is the D numbers of every level side by side and an insertion is one addition.

Source: transformers ``models/qwen3_vl/modeling_qwen3_vl.py``, ``Qwen3VLVisionPatchMerger`` with ``use_postshuffle_norm`` and
``_deepstack_process``; the idea is arXiv 2406.04334. The zero start and cells of another size than 2x2 are our choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.original import load_original
from vision_remember.plugins import Origin, settle
from vision_remember.refusion import Backbones, Insertion, Memory, Method, RefusionState

ORIGIN = Origin(paper="arXiv 2406.04334", code="huggingface/transformers models/qwen3_vl", licence="Apache-2.0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``deepstack``; ``Config(zero_init=False)`` is the original.

    Attributes:
        levels: Encoder ``hidden_states`` with a merger each; None: at 9/27, 17/27 and 25/27 of the encoder.
        layers: Decoder layers after which they are added, as many as levels; None: the first ones.
        cell: Rows and columns of patches that one token owns; fixes the mergers' width, so the grids must agree with it.
        zero_init: Whether the last linear of every merger starts at zero, so that the module starts as the identity.
    """

    levels: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    cell: tuple[int, ...] = (2, 2)
    zero_init: bool = True

    def __post_init__(self) -> None:
        if self.levels == () or self.layers == ():
            raise ValueError("deepstack: needs at least one level and one layer; for no re-fusion use type: none")
        if len(self.cell) != 2 or min(self.cell) < 1:
            raise ValueError(f"deepstack: cell is a number of rows and one of columns, got {self.cell}; 2x2 is [2, 2]")


class DeepStack(Method):
    """Holds the mergers, and makes a :class:`StackInsertion` for every layer."""

    def __init__(self, config: Config, backbones: Backbones) -> None:
        levels = config.levels or backbones.levels_at(9, 17, 25, of=27)
        super().__init__(settle(config, levels=levels, layers=tuple(range(len(levels)))), backbones)
        self.layers, self.levels = self.config.layers, self.config.levels
        if len(self.layers) != len(self.levels):
            raise ValueError(
                f"deepstack: {len(self.levels)} levels {self.levels} cannot enter after {len(self.layers)} layers "
                f"{self.layers}; name as many layers as levels"
            )
        width = config.cell[0] * config.cell[1] * backbones.feature_width
        mergers = [Merger(width, backbones.text_width) for _ in self.levels]
        if config.zero_init:
            for merger in mergers:
                nn.init.zeros_(merger.linear_fc2.weight)
                nn.init.zeros_(merger.linear_fc2.bias)
        self.mergers = nn.ModuleList(mergers)

    def memory(self, features: VisionFeatures, token_grid: Grid) -> Memory:
        """What the mergers make of every token's cell, level after level: rows ``float[B, V, L * D]``, no windows.

        Raises:
            ValueError: If a token does not own exactly one cell of patches.
        """
        rows, columns = self.config.cell
        grid = features.grid
        if (grid.height, grid.width) != (rows * token_grid.height, columns * token_grid.width):
            raise ValueError(
                f"deepstack: mergers of {rows}x{columns} patches cannot cover a {grid} patch grid with {token_grid} tokens; "
                f"set cell to the patches of one token, or choose a projector whose tokens divide the grid"
            )

        def cells(x: Tensor) -> Tensor:  # [B, P, C] -> [B, V, W * C]
            x = x.unflatten(1, (token_grid.height, rows, token_grid.width, columns))
            return x.transpose(2, 3).flatten(3).flatten(1, 2)

        stacks = [merger(cells(features.level(i))) for merger, i in zip(self.mergers, self.levels, strict=True)]
        return stacked(torch.cat(stacks, dim=-1))

    def insertion(self, layer: int) -> "StackInsertion":
        """The child of decoder layer ``layer``; it has no parameters of its own."""
        return StackInsertion(self.layers.index(layer), len(self.layers))

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads the mergers of a Qwen3-VL: exactly its ``[model.][visual.]deepstack_merger_list.{k}.*``."""
        parts = r"deepstack_merger_list\.(\d+)\.(norm|linear_fc1|linear_fc2)\.(weight|bias)"
        load_original(self, state_dict, {parts: r"mergers.\1.\2.\3"}, prefixes=("visual.", "model.visual."))


class Merger(nn.Module):
    """``LayerNorm -> Linear -> GELU -> Linear`` on the patches of a cell, from ``float[..., W * C]`` to ``float[..., D]``."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear_fc1 = nn.Linear(width, width)
        self.linear_fc2 = nn.Linear(width, text_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(nn.functional.gelu(self.linear_fc1(self.norm(x))))


class StackInsertion(Insertion):
    """Adds one of the stacks that a memory row holds side by side to the vision tokens."""

    def __init__(self, number: int, num_stacks: int) -> None:
        super().__init__()
        self.number, self.num_stacks = number, num_stacks

    def forward(self, hidden: Tensor, state: RefusionState, layer: int) -> tuple[Tensor, RefusionState]:
        stack = self.stack(state).to(hidden.dtype)
        return hidden.flatten(0, 1).index_add(0, state.position, stack).view_as(hidden), state

    def stack(self, state: RefusionState) -> Tensor:
        """``float[N, D]``, what is added."""
        return state.rows.unflatten(1, (self.num_stacks, -1))[:, self.number]


def stacked(rows: Tensor) -> Memory:
    """Rows ``float[B, V, M]`` that are read whole, without windows."""
    windows = rows.new_zeros(*rows.shape[:2], 0, dtype=torch.long)
    return Memory(rows=rows, valid=windows.bool(), place=windows)


Refusion = DeepStack
