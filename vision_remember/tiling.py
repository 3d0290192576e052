"""Any resolution: which views of an image an encoder sees, and where each of its vision tokens comes from.

A page larger than the encoder's canvas is enlarged onto one of a few sizes, cut into tiles of one canvas each, and its tokens are laid
back together as one map, without those of the black border and with a newline after each row:

    base view: V tokens  |  map of all tiles: row 0, newline, row 1, newline, ...

All of it is a :class:`Layout`, a list with one entry per token, so the processor's placeholder count and the packed features cannot
disagree. The map is as coarse as the projector makes it: a grid of 12 x 12 tokens per tile is unpadded in rows of 28 pixels.

Source: LLaVA-VL/LLaVA-NeXT ``llava/mm_utils.py`` and ``llava/model/llava_arch.py`` (``spatial_unpad``); transformers
``models/llava_next``. Their two differences are the option ``rule``. Coarse maps, sets of tokens and the mask of padding are our choice.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_remember.geometry import Grid

Size = tuple[int, int]  # height and width in pixels
NEWLINE = -1  # the source of a token that belongs to no view
DEFAULT_TILES = (Grid(1, 2), Grid(2, 1), Grid(2, 2), Grid(3, 1), Grid(1, 3))  # LLaVA-NeXT's


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """How an image of any size reaches an encoder with one canvas.

    Attributes:
        mode: ``pad`` fits the image whole onto the canvas and fills the rest with the mean colour, ``resize`` stretches it, ``crop`` fills
            the canvas and cuts off what hangs over, ``anyres`` adds tiles of an enlarged image to the stretched one.
        pinpoints: Of ``anyres``: the sizes in pixels to choose from; none: 1x2, 2x1, 2x2, 3x1 and 1x3 canvases.
        rule: Of ``anyres``: ``transformers`` reads pinpoints as (height, width) and rounds 13.9999999999 up to 14 rows, ``llava_next``
            reads (width, height) and rounds down, as the original does. They differ in ties and in the last row or column.
    """

    mode: Literal["pad", "resize", "crop", "anyres"] = "pad"
    pinpoints: tuple[tuple[int, ...], ...] = ()
    rule: Literal["transformers", "llava_next"] = "transformers"

    def __post_init__(self) -> None:
        if self.mode != "anyres" and (self.pinpoints or self.rule != "transformers"):
            raise ValueError(f"resolution: mode {self.mode!r} has no pinpoints and no rule; set mode: anyres")
        for pinpoint in self.pinpoints:
            if len(pinpoint) != 2 or min(pinpoint) < 1:
                raise ValueError(f"resolution: a pinpoint is two sides in pixels, got {list(pinpoint)}")


@dataclass(frozen=True, eq=False)
class Layout:
    """The views of one image and its vision tokens, n of them.

    Attributes:
        canvas: Size of the enlarged image that the tiles are cut from; that of one canvas where there are no tiles.
        tiles: Its tiles; None where the image is one view.
        source: ``long[n]``, for every token its number among the tokens of all views, ``view * V + cell``, or ``NEWLINE``.
        view: ``long[n]``, the view that a token belongs to, 0 being the base; arbitrary for a newline.
        index: ``long[n]``, number of the token among the tokens that are kept of its view.
        count: ``long[n]``, how many tokens are kept of its view; 0 marks a newline.
    """

    canvas: Size
    tiles: Grid | None
    source: Tensor
    view: Tensor
    index: Tensor
    count: Tensor

    @property
    def num_views(self) -> int:
        return 1 if self.tiles is None else 1 + self.tiles.num_cells

    @property
    def num_tokens(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Everything that decides where the tokens of an image come from, except its size.

    Attributes:
        resolution: How images reach the canvas.
        canvas: Height and width of the encoder's canvas in pixels.
        token_grid: Grid of the V vision tokens of one view.
        is_set: Whether the tokens of a view are a set without places: no map, no unpadding; one newline ends each view.

    Raises:
        ValueError: A pinpoint that whole canvases cannot tile.
    """

    resolution: Resolution
    canvas: Size
    token_grid: Grid
    is_set: bool = False

    def __post_init__(self) -> None:
        for height, width in self.candidates:
            if height % self.canvas[0] or width % self.canvas[1]:
                raise ValueError(
                    f"resolution: {height}x{width} pixels (height x width) are no whole number of {self.canvas[0]}x{self.canvas[1]} "
                    "canvases; give pinpoints that the encoder's canvas divides"
                )

    @property
    def is_anyres(self) -> bool:
        return self.resolution.mode == "anyres"

    @property
    def candidates(self) -> tuple[Size, ...]:
        """The sizes that an image may be enlarged to, in the order of the pinpoints."""
        if not self.is_anyres:
            return ()
        if not self.resolution.pinpoints:
            return tuple((grid.height * self.canvas[0], grid.width * self.canvas[1]) for grid in DEFAULT_TILES)
        step = 1 if self.resolution.rule == "transformers" else -1
        return tuple((pinpoint[::step][0], pinpoint[::step][1]) for pinpoint in self.resolution.pinpoints)

    @property
    def largest(self) -> Size:
        """The size of an image that has the most views and fills them; of those the tallest, with the most rows to end in a newline."""
        return max(self.candidates, key=lambda size: (math.prod(size), *size), default=self.canvas)

    @property
    def max_views(self) -> int:
        """The most views that an image can have."""
        return 1 + math.prod(self.largest) // math.prod(self.canvas) if self.is_anyres else 1

    def layout(self, size: Size) -> Layout:
        """The views and tokens of an image; the one function that counts placeholders and packs features.

        Args:
            size: Height and width of the image in pixels.
        """
        if min(size) < 1:
            raise ValueError(f"an image has at least one pixel, got {size[0]}x{size[1]} (height x width)")
        return _layout(self, (int(size[0]), int(size[1])))


def best_resolution(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate that keeps the most pixels of an image, of those the one that wastes the fewest, of those the first.

    Args:
        size: Height and width of the image in pixels.
        candidates: The same of the sizes to choose from.
    """

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[1] / size[1], candidate[0] / size[0])
        kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        return kept, kept - candidate[0] * candidate[1]

    return max(candidates, key=merit)


def content(size: Size, canvas: Size) -> tuple[int, int, int, int]:
    """Where an image lies on a canvas that it fills along one side: ``(top, left, height, width)`` in pixels, rounded up, centred."""
    across, down = canvas[1] / size[1], canvas[0] / size[0]
    if across < down:
        height, width = min(math.ceil(size[0] * across), canvas[0]), canvas[1]
    else:
        height, width = canvas[0], min(math.ceil(size[1] * down), canvas[1])
    return (canvas[0] - height) // 2, (canvas[1] - width) // 2, height, width


def seen_patches(size: Size, layout: Layout, canvas: Size, grid: Grid, patch: int) -> Tensor:
    """Which patches of each view show any of the image: ``bool[views, P]``; the base view is all image, tiles may be padding.

    Args:
        size: Height and width of the image in pixels.
        layout: Of an image of this size.
        canvas: Height and width of one view in pixels.
        grid: Grid of the P patches of one view.
        patch: Side of a patch in pixels.
    """
    base = torch.ones(1, grid.num_cells, dtype=torch.bool)
    if layout.tiles is None:
        return base
    top, left, height, width = content(size, layout.canvas)

    def overlaps(tiles: int, side: int, patches: int, start: int, length: int) -> Tensor:  # bool[tiles, patches]
        pixel = torch.arange(tiles)[:, None] * side + torch.arange(patches) * patch
        return (pixel < start + length) & (pixel + patch > start)

    rows = overlaps(layout.tiles.height, canvas[0], grid.height, top, height)
    columns = overlaps(layout.tiles.width, canvas[1], grid.width, left, width)
    tiles = rows[:, None, :, None] & columns[None, :, None, :]  # [tile rows, tile columns, rows, columns]
    return torch.cat([base, tiles.flatten(2).flatten(0, 1)])


# Batches hold few sizes, and a layout is small; on the CPU and outside inference mode, so that any later call may use it.
@functools.lru_cache(maxsize=1024)
@torch.inference_mode(False)
def _layout(tiling: Tiling, size: Size) -> Layout:
    grid = tiling.token_grid
    with torch.device("cpu"):
        if not tiling.is_anyres:
            return _filled(tiling.canvas, None, torch.arange(grid.num_cells), grid.num_cells)
        canvas = best_resolution(size, tiling.candidates)
        tiles = Grid(canvas[0] // tiling.canvas[0], canvas[1] // tiling.canvas[1])
        numbers = torch.arange((1 + tiles.num_cells) * grid.num_cells)
        if tiling.is_set:
            source = F.pad(numbers.unflatten(0, (-1, grid.num_cells)), (0, 1), value=NEWLINE).flatten()
        else:
            base, rest = numbers.tensor_split([grid.num_cells])
            mosaic = (
                rest.view(tiles.height, tiles.width, grid.height, grid.width).transpose(1, 2).flatten(2).flatten(0, 1)
            )
            kept = mosaic[unpadded(size, canvas, Grid(*mosaic.shape), tiling.resolution.rule)]
            source = torch.cat([base, F.pad(kept, (0, 1), value=NEWLINE).flatten()])
        return _filled(canvas, tiles, source, grid.num_cells)


def unpadded(size: Size, canvas: Size, mosaic: Grid, rule: str) -> tuple[slice, slice]:
    """Rows and columns of a map that are kept when the black border of its image is cut off.

    Args:
        size: Height and width of the image in pixels.
        canvas: The same of the canvas that it was fitted onto.
        mosaic: Grid of the map over the whole canvas.
        rule: ``transformers`` or ``llava_next``, as in :class:`Resolution`.
    """
    height, width = size
    # The map's width in units of its rows and its height in units of its columns: the map's own sides where cells are square.
    across, down = mosaic.height * canvas[1] / canvas[0], mosaic.width * canvas[0] / canvas[1]

    def whole(cells: float) -> int:
        return int(round(cells, 7)) if rule == "transformers" else int(cells)

    if width / height > across / mosaic.height:
        border = (mosaic.height - whole(height * (across / width))) // 2
        return slice(border, mosaic.height - border), slice(None)
    border = (mosaic.width - whole(width * (down / height))) // 2
    return slice(None), slice(border, mosaic.width - border)


def _filled(canvas: Size, tiles: Grid | None, source: Tensor, num_tokens: int) -> Layout:
    """A layout from the sources of its tokens."""
    view = source.clamp(min=0) // num_tokens
    owns = F.one_hot(view) * (source >= 0)[:, None]  # [n, views]
    index = (owns.cumsum(0) - 1).gather(1, view[:, None]).squeeze(1)
    count = owns.sum(0)[view] * (source >= 0)
    return Layout(canvas, tiles, source, view, index.clamp(min=0), count)
