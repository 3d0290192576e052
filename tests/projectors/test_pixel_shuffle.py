"""Space to depth by hand: channels ordered by row in the cell, column in the cell, channel."""

import pytest
import torch

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector


@pytest.mark.parametrize("head", ["internvl", "idefics3"])
@pytest.mark.parametrize(
    ("grid", "scale"), [(Grid(4, 4), 2), (Grid(2, 6), 2), (Grid(6, 3), 3), (Grid(3, 5), 1)], ids=str
)
def test_a_token_is_its_cell_laid_end_to_end(grid, scale, head):
    torch.manual_seed(0)
    projector = build_projector("pixel_shuffle", feature_width=3, text_width=5, scale=scale, head=head)
    x = torch.randn(2, grid.num_cells, 3)
    cells = []
    for row in range(grid.height // scale):
        for column in range(grid.width // scale):
            patches = [
                (row * scale + dh) * grid.width + column * scale + dw for dh in range(scale) for dw in range(scale)
            ]
            cells.append(torch.cat([x[:, patch] for patch in patches], dim=1))
    tokens = projector(VisionFeatures(levels={-2: x}, grid=grid))
    torch.testing.assert_close(tokens, projector.head(torch.stack(cells, 1)))


def test_a_grid_that_does_not_divide_is_refused():
    projector = build_projector("pixel_shuffle", feature_width=3, text_width=5, scale=2)
    with pytest.raises(ValueError, match="grid 5x4 is not divisible by scale 2"):
        projector.tokens_out(Grid(5, 4))


def test_the_head_of_idefics3_is_one_linear_without_bias():
    projector = build_projector("pixel_shuffle", feature_width=3, text_width=5, scale=3, head="idefics3")
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {"head.weight": (5, 27)}
