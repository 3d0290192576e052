"""Means over cells by hand, and the grids that are refused."""

import pytest
import torch

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors.cells import cell_grid, cell_means, from_map, option_grid, to_map


@pytest.mark.parametrize(("fine", "coarse"), parity.GRIDS, ids=str)
def test_a_cell_is_the_mean_of_its_valid_patches(fine, coarse):
    x = parity.see((0,), fine, 3).level(0)
    valid = torch.rand(2, fine.num_cells, generator=torch.Generator().manual_seed(2)) < 0.5
    valid[0, : fine.width] = False
    means = cell_means(x, valid, fine, coarse)
    for token, patches in enumerate(parity.bins(fine, coarse)):
        for image in range(2):
            real = [patch for patch in patches if valid[image, patch]]
            expected = x[image, real].mean(0) if real else torch.zeros(3, dtype=x.dtype)
            torch.testing.assert_close(means[image, token], expected)


def test_without_a_mask_every_patch_counts():
    x = parity.see((0,), Grid(5, 7), 3).level(0)
    everything = torch.ones(2, 35, dtype=torch.bool)
    torch.testing.assert_close(
        cell_means(x, None, Grid(5, 7), Grid(3, 3)), cell_means(x, everything, Grid(5, 7), Grid(3, 3))
    )


def test_rows_and_maps_are_inverse():
    x = parity.see((0,), Grid(2, 3), 4).level(0)
    assert to_map(x, Grid(2, 3)).shape == (2, 4, 2, 3) and torch.equal(from_map(to_map(x, Grid(2, 3))), x)
    assert torch.equal(to_map(x, Grid(2, 3))[:, :, 1, 2], x[:, 5])


def test_more_tokens_than_patches_along_a_side_are_refused():
    assert cell_grid(Grid(4, 6), Grid(4, 5)) == Grid(4, 5)
    with pytest.raises(ValueError, match="5x5 tokens of a 4x6 grid"):
        cell_grid(Grid(4, 6), Grid(5, 5))


@pytest.mark.parametrize("sides", [(3,), (1, 2, 3), (0, 4), (4, -1)])
def test_an_option_that_is_no_grid_is_refused(sides):
    with pytest.raises(ValueError, match=r"grid is \[rows, columns\], got \["):
        option_grid(sides, "grid")
