"""LLaVA's projector by hand."""

import pytest
import torch

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector


def test_every_patch_is_projected_by_itself():
    torch.manual_seed(0)
    projector = build_projector("mlp", feature_width=3, text_width=5)
    x = torch.randn(1, 6, 3)
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (projector[0], projector[2]))
    tokens = projector(VisionFeatures(levels={-2: x}, grid=Grid(2, 3)))
    for patch in range(6):
        inner = w1 @ x[0, patch] + b1
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        torch.testing.assert_close(tokens[0, patch], w2 @ inner + b2)


def test_compression_is_refused_with_both_numbers():
    projector = build_projector("mlp", feature_width=3, text_width=5)
    with pytest.raises(ValueError, match="makes 6 tokens of a 2x3 grid, not 4"):
        projector.tokens_out(Grid(2, 3), num_tokens=4)
