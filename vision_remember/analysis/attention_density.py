"""How much the text looks at the image: the share of its attention that vision tokens get, and the density of that share.

An efficient model has few vision tokens, so a small share may still be a close look. The density therefore compares the share with
what an even look over all visible positions would give the vision tokens: 1 is indifference, 2 twice an even look.

Source: the motivating figure of arXiv 2506.03928 plots "attention density" per layer and compression ratio and its definition could
not be read; both measures here are our choice.
"""

import torch
from torch import Tensor


def text_to_vision(attention: Tensor, is_vision: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of the text after the image to the vision tokens, the mean over heads and over that text.

    Args:
        attention: `float[B, H, T, T]` of one decoder layer, causal; a row sums to 1.
        is_vision: `bool[B, T]`, one image a row.
        is_token: `bool[B, T]`, False on padding.

    Returns:
        `share float[B]` in 0..1, and `density float[B]`: share over V / (positions that the text token sees). With 16 vision tokens
        and 8 text tokens before the one that looks, itself included, an even look has the share 16 / 24.

    Raises:
        ValueError: If a row has no text after its image.
    """
    is_asking = is_token & (is_vision.cumsum(1) == is_vision.sum(1, keepdim=True)) & ~is_vision
    is_asking &= is_vision.any(1, keepdim=True)
    if not is_asking.any(1).all():
        raise ValueError(
            f"row {int((~is_asking.any(1)).nonzero()[0])} has no text after an image; the density needs a question"
        )
    on_vision = (attention.float().mean(1) * is_vision[:, None]).sum(-1)  # [B, T]
    even = is_vision.sum(1, keepdim=True) / is_token.cumsum(1).clamp(min=1)
    weight = is_asking / is_asking.sum(1, keepdim=True)
    return (on_vision * weight).sum(1), (torch.where(is_asking, on_vision / even, 0) * weight).sum(1)
