"""Linear probes: can the characters that stand under a vision token be read off its state?

A token covers several cells of the page. For every one of them a linear map is fitted by ridge regression, in closed form, from the
state of the token to the character in that cell, on some of the pages; it is scored on the others. What a linear map can read, the
layers above can use; what it cannot read may still be there, so a probe bounds the information from below.

Source: Alain and Bengio, arXiv 1610.01644 (linear probes of hidden layers). The one-against-all ridge regression, its strengths and the
split are our choice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vision_remember.data.synthetic.canvas import CELL_CLASSES, CHARACTERS, SIDE
from vision_remember.geometry import Grid, gather_windows, windows

NO_CHARACTER = -1
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the ridge, relative to a state's mean variance
HELD_OUT = 0.25  # share of pages that no probe is fitted on
CHOOSING = 0.2  # share of the other pages on which the strength is chosen


@dataclass(frozen=True, kw_only=True)
class Split:
    """Pages by what they are used for; the strength is chosen by a fit on `fitting`, the last fit sees `choosing` too.

    Attributes:
        fitting, choosing, held_out: `long[...]`, numbers of pages; every page is in exactly one.
    """

    fitting: Tensor
    choosing: Tensor
    held_out: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeScore:
    """What a probe read on the held-out pages.

    Attributes:
        right: `float[U]`, characters read of each held-out page.
        written: `float[U]`, characters it carries; one that stands under several tokens counts for each.
    """

    right: Tensor
    written: Tensor

    @property
    def accuracy(self) -> float:
        return float(self.right.sum() / self.written.sum())


def split_pages(count: int, seed: int = 0) -> Split:
    """Shuffles pages into those to fit on and those to score on.

    Raises:
        ValueError: There are too few pages for three parts.
    """
    held_out = round(HELD_OUT * count)
    choosing = round(CHOOSING * (count - held_out))
    if min(held_out, choosing) < 1:
        raise ValueError(f"{count} pages cannot be split into three parts for the probes; render at least 4")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    fitting, choosing_pages, held_out_pages = order.split([count - held_out - choosing, choosing, held_out])
    return Split(fitting=fitting, choosing=choosing_pages, held_out=held_out_pages)


def characters_under(cells: Tensor, grid: Grid) -> Tensor:
    """Which characters stand under each token.

    Args:
        cells: `long[B, 12, 12]`, what stands in each cell of the page, as rendered.
        grid: Grid of the V tokens over the page. Where it is finer than the cells, a token reads the cell that holds its centre.

    Returns:
        `long[B, V, W]`, an index into `CHARACTERS`, or -1 where no character stands.
    """
    coarse = Grid(min(grid.height, SIDE), min(grid.width, SIDE))
    own = windows(Grid(SIDE, SIDE), coarse)
    first = CELL_CLASSES.index(CHARACTERS[0])
    characters = cells.flatten(1) - first
    is_character = (characters >= 0) & (characters < len(CHARACTERS))
    under = gather_windows(characters.where(is_character, NO_CHARACTER), own).where(own.valid, NO_CHARACTER)
    row = (2 * torch.arange(grid.height) + 1) * coarse.height // (2 * grid.height)
    column = (2 * torch.arange(grid.width) + 1) * coarse.width // (2 * grid.width)
    return under[:, (row[:, None] * coarse.width + column).flatten()]


def features_of_cells(features: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    """The encoder's own view of every cell, as states that a probe can read: what there is to lose.

    Args:
        features: `float[B, P, C]`, one encoder level.
        grid: Grid of the patches.

    Returns:
        The patches of each cell side by side, `float[B, G, W * C]`, and the grid of the G cells; patches larger than cells stay alone.
    """
    cells = Grid(min(grid.height, SIDE), min(grid.width, SIDE))
    own = windows(grid, cells, device=features.device)
    return (gather_windows(features, own) * own.valid[..., None]).flatten(2), cells


def probe(states: Tensor, characters: Tensor, split: Split) -> ProbeScore:
    """Fits and scores the probes of one layer.

    Args:
        states: `float[B, V, D]` of B pages.
        characters: `long[B, V, W]` from `characters_under`.
        split: Of the B pages.

    Raises:
        ValueError: If no character stands on the held-out pages.
    """

    def part(pages: Tensor) -> tuple[Tensor, Tensor]:
        return states[pages].flatten(0, 1).double(), characters[pages].flatten(0, 1)

    fitting, choosing, held_out = (part(pages) for pages in (split.fitting, split.choosing, split.held_out))
    is_counted = choosing[1] != NO_CHARACTER
    hits = [int(((_read(*fitting, choosing[0], x) == choosing[1]) & is_counted).sum()) for x in STRENGTHS]
    strength = STRENGTHS[hits.index(max(hits))]
    known = part(torch.cat([split.fitting, split.choosing]))
    is_right = _read(*known, held_out[0], strength) == held_out[1]
    pages = (len(split.held_out), -1)
    is_written = (held_out[1] != NO_CHARACTER).view(pages)
    if not is_written.any():
        raise ValueError(
            f"no character stands on the {len(split.held_out)} held-out pages; render more pages, of families with text"
        )
    return ProbeScore(right=(is_right.view(pages) & is_written).sum(1).double(), written=is_written.sum(1).double())


def chance(characters: Tensor, split: Split) -> ProbeScore:
    """What is read without looking: always the character that is most frequent on the pages the probes are fitted on."""
    seen = characters[torch.cat([split.fitting, split.choosing])]
    guess = seen[seen != NO_CHARACTER].mode().values
    held_out = characters[split.held_out].flatten(1)
    return ProbeScore(right=(held_out == guess).sum(1).double(), written=(held_out != NO_CHARACTER).sum(1).double())


def _read(states: Tensor, characters: Tensor, others: Tensor, strength: float) -> Tensor:
    """Fits one linear map a slot on `states [n, D]` and `characters [n, W]`, and reads `others [m, D]`: `long[m, W]`."""
    spread, mean = torch.std_mean(states, dim=0, correction=0)
    spread = spread.where(spread > 0, 1)
    states, others = (states - mean) / spread, (others - mean) / spread
    read = []
    for slot in characters.unbind(1):
        is_written = slot != NO_CHARACTER
        if not is_written.any():
            read.append(torch.full((len(others),), len(CHARACTERS)))  # nothing was learned about this slot
            continue
        x = states[is_written]
        y = torch.nn.functional.one_hot(slot[is_written], len(CHARACTERS)).double()
        centre, base = x.mean(0), y.mean(0)
        x = x - centre
        gram = x.mT @ x
        gram.diagonal().add_(strength * len(x))
        weights = torch.linalg.solve(gram, x.mT @ (y - base))
        read.append(((others - centre) @ weights + base).argmax(1))
    return torch.stack(read, dim=1)
