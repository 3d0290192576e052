"""Grids, windows and token counts: the only place where such arithmetic exists.

An image is a grid of patches, its vision tokens are a coarser grid, and every token owns a window of patches. The
processor's placeholder count, the projectors, the windows of re-fusion and the plots all ask this file, so they cannot
disagree.

Shape legend of the whole package:

    B  batch (images or rows)        L  encoder feature levels          H  attention heads
    T  LLM sequence length           W  window patches of one token     K  width of one head
    V  vision tokens of one image    D  LLM width                       N  vision tokens of a whole call, all images
    P  patches of one image (h * w)  C  encoder width                   M  channels of one memory row (W * L * C)

Grids are row-major: patch (row, column) is number ``row * width + column``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A grid of ``height`` rows and ``width`` columns."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"a grid needs at least one row and one column, got {self}; check the image and patch size"
            )

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def num_cells(self) -> int:
        return self.height * self.width

    def reduced(self, scale: int) -> "Grid":
        """The grid with ``scale`` times fewer rows and columns, rounded up."""
        if scale < 1:
            raise ValueError(f"cannot reduce grid {self} by scale {scale}; a scale is at least 1")
        return Grid(-(-self.height // scale), -(-self.width // scale))


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """What an encoder saw: one feature map per asked level, all on one grid.

    Args:
        levels: ``float[B, P, C]`` per level, keyed by the index into the encoder's ``hidden_states`` exactly as the
            plug-in named it (13, or -2).
        grid: Grid of the P patches.
        valid: ``bool[B, P]``, False where a patch is padding; None when all are real.

    Raises:
        ValueError: If a level has another number of patches than the grid has cells.
    """

    levels: dict[int, Tensor]
    grid: Grid
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        for index, level in self.levels.items():
            if level.ndim != 3 or level.shape[1] != self.grid.num_cells:
                raise ValueError(
                    f"level {index} has shape {tuple(level.shape)}, but grid {self.grid} has {self.grid.num_cells} "
                    "patches; give float[B, P, C] without the class token"
                )

    def level(self, index: int) -> Tensor:
        """One level, ``float[B, P, C]``."""
        if index not in self.levels:
            raise ValueError(f"level {index} was asked for, but the features hold {sorted(self.levels)}")
        return self.levels[index]

    def stack(self, levels: Sequence[int]) -> Tensor:
        """Several levels side by side, ``float[B, P, L, C]``."""
        return torch.stack([self.level(index) for index in levels], dim=2)


@dataclass(frozen=True, eq=False)
class Windows:
    """The patches that each of V tokens owns, as W slots of which some may be empty.

    Attributes:
        index: ``long[V, W]``, the patch in each slot (any patch of the grid where the slot is empty).
        valid: ``bool[V, W]``, False where a slot is empty.
        offset: ``long[V, W, 2]``, row and column of the slot inside its window.
        side: ``long[V, 2]``, height and width of each window.
    """

    index: Tensor
    valid: Tensor
    offset: Tensor
    side: Tensor

    def table_index(self, table_side: int) -> Tensor:
        """Place of every slot on a ``table_side x table_side`` position table, whatever the size of its window.

        A slot at offset d of a window of that side takes row ``floor((d + 1/2) * table_side / side)`` of the table, and
        the column likewise: with a table of side 5, the two rows of a 2x2 window take rows 1 and 3 of it.

        Returns:
            ``long[V, W]`` in ``0 .. table_side**2 - 1``.
        """
        cell = (2 * self.offset + 1) * table_side // (2 * self.side[:, None, :])
        row, column = cell.clamp(max=table_side - 1).unbind(-1)  # an empty slot may lie past the end of its window
        return row * table_side + column


def lattice_distances(table_side: int, num_places: int) -> Tensor:
    """How far every cell of a position table lies from places spread evenly over it.

    The first ``p * p`` places, ``p = floor(sqrt(num_places))``, are the centres of a ``p x p`` lattice, row by row; further ones
    begin again. A window of 3x3 patches has each patch at a place of its own from nine places on.

    Returns:
        ``float[table_side**2, num_places]``, the squared distance in steps of the lattice.
    """
    lattice, place = math.isqrt(num_places), torch.arange(num_places)
    cell = (torch.arange(table_side) + 0.5)[:, None] / table_side * lattice - 0.5
    row, column = (cell - place // lattice % lattice) ** 2, (cell - place % lattice) ** 2
    return (row[:, None] + column).flatten(0, 1)


def windows(fine: Grid, coarse: Grid, margin: int = 0, device: torch.device | None = None) -> Windows:
    """Gives every cell of ``coarse`` its window of ``fine``.

    The edges are those of adaptive average pooling: cell i of n cells over h patches spans ``floor(i * h / n)`` to
    ``ceil((i + 1) * h / n)``. Windows overlap where the grids do not divide and are exact cells where they do.
    Six patches over four cells: ``[0, 2) [1, 3) [3, 5) [4, 6)``.

    Args:
        fine: Grid of the patches.
        coarse: Grid of the tokens; no side longer than that of ``fine``.
        margin: Whole patches by which a window grows on every side; those outside the image are empty slots.
        device: Where the tensors are made.

    Raises:
        ValueError: If ``coarse`` is finer than ``fine`` or ``margin`` is negative.

    Source: ``AdaptiveAvgPool2d`` for the edges; the margin is our choice.
    """
    if coarse.height > fine.height or coarse.width > fine.width:
        raise ValueError(f"{coarse} tokens cannot own windows of a {fine} patch grid; ask for fewer tokens")
    if margin < 0:
        raise ValueError(f"a window margin is 0 or more patches, got {margin}")
    # Not cached: a tensor first made under inference mode or on the meta device would poison every later call.
    row, row_valid, row_offset, row_side = _spans(fine.height, coarse.height, margin, device)
    column, column_valid, column_offset, column_side = _spans(fine.width, coarse.width, margin, device)
    shape = (coarse.height, coarse.width, row.shape[1], column.shape[1])

    def pair(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = rows[:, None, :, None].expand(shape), columns[None, :, None, :].expand(shape)
        return rows.reshape(coarse.num_cells, -1), columns.reshape(coarse.num_cells, -1)

    rows, columns = pair(row, column)
    row_filled, column_filled = pair(row_valid, column_valid)
    return Windows(
        index=rows * fine.width + columns,
        valid=row_filled & column_filled,
        offset=torch.stack(pair(row_offset, column_offset), dim=-1),
        side=torch.stack(
            (row_side.repeat_interleave(coarse.width), column_side.repeat(coarse.height)),
            dim=-1,
        ),
    )


def gather_windows(x: Tensor, windows: Windows) -> Tensor:
    """Collects the patches of every window.

    Args:
        x: ``[B, P, ...]``, one entry per patch.

    Returns:
        ``[B, V, W, ...]``; the content of empty slots (``windows.valid``) is arbitrary.
    """
    return x.index_select(1, windows.index.flatten()).unflatten(1, windows.index.shape)


def encoder_grid(image_height: int, image_width: int, patch: int) -> Grid:
    """The patch grid of an encoder that drops an incomplete last row or column of pixels."""
    if patch < 1 or image_height < patch or image_width < patch:
        raise ValueError(f"an image of {image_height}x{image_width} pixels holds no patch of {patch}x{patch}")
    return Grid(image_height // patch, image_width // patch)


def square_grid(num_cells: int) -> Grid:
    """The most square grid with exactly this many cells: 64 gives 8x8, 12 gives 3x4."""
    return closest_grid(num_cells, like=Grid(1, 1))


def closest_grid(num_cells: int, like: Grid) -> Grid:
    """The grid with exactly this many cells whose aspect is closest to ``like``; of two, the wider."""
    if num_cells < 1:
        raise ValueError(f"no grid has {num_cells} cells; ask for at least 1")
    grids = [Grid(height, num_cells // height) for height in range(1, num_cells + 1) if num_cells % height == 0]

    def distortion(grid: Grid) -> float:
        ratio = (grid.width * like.height) / (grid.height * like.width)
        return max(ratio, 1 / ratio)

    return min(grids, key=distortion)


def _spans(fine: int, coarse: int, margin: int, device: torch.device | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One axis of :func:`windows`: position, validity and offset ``[coarse, slots]`` and side ``[coarse]``."""
    starts = [cell * fine // coarse - margin for cell in range(coarse)]
    sides = [-(-(cell + 1) * fine // coarse) + margin - start for cell, start in enumerate(starts)]
    side = torch.tensor(sides, device=device)
    offset = torch.arange(max(sides), device=device).expand(coarse, -1)
    position = torch.tensor(starts, device=device)[:, None] + offset
    valid = (offset < side[:, None]) & (position >= 0) & (position < fine)
    return position.clamp(0, fine - 1), valid, offset, side
