"""DeCo by hand: pool first, then the MLP."""

import pytest
import torch

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector


@pytest.mark.parametrize(
    ("fine", "scale", "coarse"),
    [
        (Grid(6, 6), 3, Grid(2, 2)),
        (Grid(4, 6), 2, Grid(2, 3)),
        (Grid(5, 7), 2, Grid(3, 4)),
        (Grid(7, 3), 3, Grid(3, 1)),
        (Grid(1, 5), 4, Grid(1, 2)),
    ],
    ids=str,
)
def test_tokens_are_the_projected_means_of_their_bins(fine, scale, coarse):
    torch.manual_seed(0)
    projector = build_projector("avg_pool", feature_width=3, text_width=4, scale=scale).double()
    x = torch.randn(2, fine.num_cells, 3, dtype=torch.float64)
    means = []
    for row in range(coarse.height):
        for column in range(coarse.width):
            top, bottom = row * fine.height // coarse.height, -(-(row + 1) * fine.height // coarse.height)
            left, right = column * fine.width // coarse.width, -(-(column + 1) * fine.width // coarse.width)
            means.append(x.view(2, fine.height, fine.width, 3)[:, top:bottom, left:right].mean((1, 2)))
    assert projector.tokens_out(fine) == coarse
    tokens = projector(VisionFeatures(levels={-2: x}, grid=fine))
    torch.testing.assert_close(tokens, projector.mlp(torch.stack(means, 1)))


def test_any_number_of_tokens_can_be_asked_for_and_keeps_the_shape_of_the_grid():
    projector = build_projector("avg_pool", feature_width=3, text_width=4)
    assert projector.tokens_out(Grid(24, 24), num_tokens=36) == Grid(6, 6)
    assert projector.tokens_out(Grid(12, 24), num_tokens=32) == Grid(4, 8)
    with pytest.raises(ValueError, match="4x6 grid into 5x5 tokens"):
        projector(VisionFeatures(levels={-2: torch.zeros(1, 24, 3)}, grid=Grid(4, 6)), num_tokens=25)


def test_padding_patches_do_not_count():
    torch.manual_seed(0)
    projector = build_projector("avg_pool", feature_width=3, text_width=4, scale=2).double()
    x = torch.randn(1, 16, 3, dtype=torch.float64)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, 3:] = False
    valid[:, :, 2:] = False
    tokens = projector(VisionFeatures(levels={-2: x}, grid=Grid(4, 4), valid=valid.flatten(1)))
    cells = x.view(4, 4, 3)
    nothing = torch.zeros(3, dtype=torch.float64)
    means = torch.stack([cells[:2, :2].mean((0, 1)), nothing, cells[2, :2].mean(0), nothing])
    torch.testing.assert_close(tokens[0], projector.mlp(means))


def test_a_scale_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build_projector("avg_pool", feature_width=3, text_width=4, scale=0)
