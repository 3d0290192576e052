"""The picture of `ask --explain`: where on the page the vision tokens looked when they remembered.

A vision token attends to the patches of its own window, so its weights sum to 1 there. Drawn is their ratio to an even look,
averaged over heads and over the tokens whose windows share the patch: 1 is indifference, above 1 the token came for this patch.
The measure is our choice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vision_remember.geometry import Grid, Windows, windows

PANEL_INCHES = 4.0
STRONGEST = 4.0  # ratio at which the colour saturates


def looked(attention: Tensor, seen: Windows, fine: Grid) -> Tensor:
    """Turns the attention of all tokens into a map over the patches.

    Args:
        attention: `float[V, H, W]`, the weights of one insertion for one image; a token's weights sum to 1 over its window.
        seen: The windows of the V tokens.
        fine: Grid of the P patches.

    Returns:
        `float[h, w]`, the mean ratio to an even look; 1 where all tokens were indifferent, 0 where no window reaches.

    Raises:
        ValueError: If attention and windows differ in their number of tokens or slots.
    """
    per_slot = attention.float().mean(dim=1)
    if per_slot.shape != seen.index.shape:
        raise ValueError(
            f"attention is given for {tuple(per_slot.shape)} tokens and slots, the windows have {tuple(seen.index.shape)}"
        )
    ratio = (per_slot * seen.valid.sum(dim=1, keepdim=True))[seen.valid]
    place = seen.index[seen.valid]
    total = torch.zeros(fine.num_cells).index_add_(0, place, ratio)
    covered = torch.zeros(fine.num_cells).index_add_(0, place, torch.ones_like(ratio))
    return (total / covered.clamp(min=1)).reshape(fine.height, fine.width)


def draw_looks(
    image: Image.Image, attention: Mapping[int, Tensor], fine: Grid, coarse: Grid, *, margin: int = 0, title: str = ""
) -> Figure:
    """Draws the page once plain, with the cells of its tokens, and once per insertion under its heat map.

    Args:
        image: The page as the model saw it.
        attention: `float[V, H, W]` per insertion, keyed by the decoder layer it follows (-1: before layer 0).
        fine: Grid of the patches.
        coarse: Grid of the V tokens.
        margin: Patches by which a window exceeds its cell.
        title: One line above the picture.
    """
    seen = windows(fine, coarse, margin)
    figure = Figure(figsize=(PANEL_INCHES * (1 + len(attention)), PANEL_INCHES + 0.6), layout="constrained")
    panels = figure.subplots(1, 1 + len(attention), squeeze=False)[0]
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    place: dict[str, Any] = {
        "extent": (0, fine.width, fine.height, 0),
        "aspect": image.height * fine.width / (image.width * fine.height),
    }
    for panel in panels:
        panel.imshow(image, **place)
        panel.set(xticks=[], yticks=[])
    for row in range(1, coarse.height):
        panels[0].axhline(row * fine.height / coarse.height, color="tab:blue", linewidth=0.6)
    for column in range(1, coarse.width):
        panels[0].axvline(column * fine.width / coarse.width, color="tab:blue", linewidth=0.6)
    panels[0].set_title(f"{coarse.num_cells} vision tokens", fontsize=9)
    shades = ScalarMappable(Normalize(vmin=1, vmax=STRONGEST), cmap="YlOrRd")
    for panel, (layer, weights) in zip(panels[1:], sorted(attention.items()), strict=True):
        ratio = looked(weights.cpu(), seen, fine)
        # Patches that drew no more than their share stay as they are on the page.
        opacity = ((ratio - 1) / (STRONGEST - 1)).clamp(0, 1).sqrt() * 0.6
        panel.imshow(ratio, **place, cmap=shades.cmap, norm=shades.norm, alpha=opacity.numpy())
        panel.set_title(f"after layer {layer}" if layer >= 0 else "before layer 0", fontsize=9)
    if attention:
        figure.colorbar(shades, ax=panels, fraction=0.02, label="attention / even attention")
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        FigureCanvasAgg(figure).print_png(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
