"""Efficient projectors: from P patches to V vision tokens of the LLM's width. One file per projector, usable alone.

A projector is a plain ``nn.Module`` with

- ``levels: tuple[int, ...]``: the encoder's ``hidden_states`` it reads;
- ``tokens_out(grid, num_tokens=None) -> Grid``: the grid of its tokens, pure arithmetic;
- ``forward(features, num_tokens=None) -> float[B, V, D]``, tokens in the row-major order of that grid;
- ``load_original(state_dict)``, where weights were published: takes the parameter names of the original implementation.

Where a default follows from the widths, the attribute ``config`` holds the options with its value (``plugins.settle``), for
``config.json``. A file may also say where its method comes from, in the constant ``ORIGIN``.

Where a projector's tokens are a set (queries that look at the whole image), ``tokens_out`` gives as many cells in the shape
closest to the patch grid, and the class says ``tokens_are_a_set = True``, so that nobody lays the tokens of several tiles
together as a map. Of a set that may have any number, ``anchored_counts`` are the numbers that a method with local windows
accepts: those whose cells are like the patch grid's.
"""

from typing import Any

from torch import nn

from vision_remember import plugins
from vision_remember.geometry import Grid


def tokens_are_a_set(projector: nn.Module) -> bool:
    """Whether the tokens of a projector have no places of their own."""
    return bool(getattr(projector, "tokens_are_a_set", False))


def check_windows(projector: nn.Module, tokens: Grid, patches: Grid) -> None:
    """Refuses numbers of tokens for which a cell of the patch grid is no window of a token.

    Args:
        projector: Whose tokens a method with local windows will read.
        tokens: Their grid.
        patches: Grid of the patches.

    Raises:
        ValueError: With the number, and those that work.
    """
    counts = getattr(projector, "anchored_counts", None)
    if counts is None:
        return
    fitting = [count for count in counts if count <= patches.num_cells]
    if tokens.num_cells not in fitting:
        raise ValueError(
            f"{tokens.num_cells} vision tokens without places of their own cannot each look into a window of {patches} patches; "
            f"make {', '.join(map(str, fitting))} of them"
        )


def build_projector(type: str, *, feature_width: int, text_width: int, **options: Any) -> nn.Module:
    """A projector by its file name.

    Args:
        type: Name of a file in this room: ``"avg_pool"``.
        feature_width: Encoder width C.
        text_width: LLM width D.
        **options: Fields of the projector's ``Config``; an unknown one is refused with the nearest valid one.
    """
    config = plugins.build_config("projectors", {"type": type, **options})
    return plugins.load("projectors", type).Projector(config, feature_width, text_width)
