"""Similarity of vision tokens to the encoder features of their windows, layer by layer: centred kernel alignment (CKA).

The features of a window are split in two. Its *mean* is what average pooling keeps. The *detail*, every patch minus that mean, is what
it drops: where a projector has pooled, detail can enter a token only by looking again.

Source: Kornblith et al., arXiv 1905.00414 (linear CKA); Song et al., JMLR 13 (2012), equation 5 (the unbiased HSIC, with which
unrelated features score 0 in expectation whatever their widths). The split into mean and detail is our choice.
"""

import torch
from torch import Tensor

from vision_remember.geometry import Grid, gather_windows, windows

MOST_TOKENS = 2000  # tokens compared; the kernels are squares of this side


def mean_and_detail(features: Tensor, fine: Grid, coarse: Grid) -> tuple[Tensor, Tensor]:
    """Splits the patches under every token.

    Args:
        features: `float[B, P, C]`, one encoder level.
        fine: Grid of the patches.
        coarse: Grid of the V tokens.

    Returns:
        `float[B, V, C]`, and `float[B, V, W * C]` with zeros in empty slots; the detail is 0 where a token owns one patch.
    """
    own = windows(fine, coarse, device=features.device)
    valid = own.valid[..., None]
    patches = gather_windows(features, own) * valid  # [B, V, W, C]
    mean = patches.sum(2) / valid.sum(1)
    return mean, ((patches - mean[:, :, None]) * valid).flatten(2)


def linear_kernel(x: Tensor) -> Tensor:
    """The kernel of n things that `cka` compares, `float64[n, n]` with an empty diagonal, from their features `float[n, F]`."""
    # CKA sees neither centre nor scale of the features; rounding does.
    x = x.double()
    x = x - x.mean(0)
    kernel = x @ x.mT
    size = kernel.diagonal().mean()
    # What is left of equal rows is rounding, which must not be scaled up into a similarity.
    kernel = kernel / size if size > 1e-20 else torch.zeros_like(kernel)
    return kernel.fill_diagonal_(0)


def cka(k: Tensor, m: Tensor) -> float | None:
    """Linear CKA with unbiased HSIC.

    Args:
        k: `linear_kernel` of n things, n >= 4.
        m: That of the same n things, seen otherwise.

    Returns:
        1 for features that agree up to rotation and scale, about 0 for unrelated ones (it may fall below); None where one of them
        is the same for all n.

    Raises:
        ValueError: If they describe different numbers of things, or fewer than 4.
    """
    if len(k) != len(m) or len(k) < 4:
        raise ValueError(f"CKA compares the same things twice, at least 4 of them; got {len(k)} and {len(m)}")
    own = _hsic(k, k) * _hsic(m, m)
    return float(_hsic(k, m) / own.sqrt()) if own > 0 else None


def evenly_chosen(total: int, most: int = MOST_TOKENS) -> Tensor:
    """At most `most` of `total` places, evenly spread, `long[n]`."""
    return torch.linspace(0, total - 1, min(total, most), dtype=torch.float64).round().long()


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of two kernels with empty diagonals, up to a factor that CKA cancels."""
    n = len(k)
    return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
