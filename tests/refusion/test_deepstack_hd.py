"""The stacks of the enlarged page against the mosaic, token by token."""

import pytest
import torch

from tests.refusion.scene import BACKBONES, Inserted, build, rows_of_images
from vision_remember.geometry import Grid

D = BACKBONES.text_width


@pytest.mark.parametrize(
    ("side", "grid"),
    [(2, Grid(2, 2)), (2, Grid(3, 1)), (2, Grid(2, 5)), (3, Grid(1, 1)), (3, Grid(2, 3))],
    ids=str,
)
def test_stacks_are_what_the_mosaic_says_with_gradients(side, grid):
    refusion = build("deepstack_hd", side=side, zero_init=False)
    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(2, side**2, grid.num_cells, D, generator=generator, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(2, grid.num_cells + 2, D, generator=generator, dtype=torch.float64, requires_grad=True)
    state = rows_of_images(refusion.memory_of_views(crops, grid))
    expected = [hidden]
    for k in range(side**2):
        i, j = divmod(k, side)
        out = expected[-1].clone()
        for row in range(grid.height):
            for column in range(grid.width):
                y, x = row * side + i, column * side + j  # in the mosaic
                crop = y // grid.height * side + x // grid.width
                token = y % grid.height * grid.width + x % grid.width
                out[:, 1 + row * grid.width + column] += crops[:, crop, token]
        expected.append(out)
    x = hidden
    for k, layer in enumerate(refusion.layers):
        x, _ = refusion.insertion(layer)(x, state, layer)
        torch.testing.assert_close(x, expected[k + 1], rtol=1e-12, atol=1e-12)
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    got = torch.autograd.grad((x * weight).sum(), [hidden, crops])
    for gradient, other in zip(got, torch.autograd.grad((expected[-1] * weight).sum(), [hidden, crops]), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


def test_a_token_gets_the_crops_of_its_own_place():
    """A mosaic whose numbers are places: every stack of a token lies inside the token's own cell."""
    side, grid = 2, Grid(2, 3)
    refusion = build("deepstack_hd", side=side)
    y = torch.arange(side * grid.height)[:, None].expand(-1, side * grid.width)
    x = torch.arange(side * grid.width).expand(side * grid.height, -1)
    places = torch.stack([y, x], dim=-1).float()  # the mosaic
    tiles = places.view(side, grid.height, side, grid.width, 2).transpose(1, 2).reshape(1, side**2, -1, 2)
    rows = refusion.memory_of_views(tiles, grid).rows.view(grid.height, grid.width, side**2, 2)
    cell = rows // side
    assert (cell[..., 0] == torch.arange(grid.height)[:, None, None]).all()
    assert (cell[..., 1] == torch.arange(grid.width)[None, :, None]).all()


def test_the_original_has_no_parameters_and_the_gates_start_at_zero():
    assert not list(Inserted(build("deepstack_hd", zero_init=False)).parameters())
    gates = list(Inserted(build("deepstack_hd")).parameters())
    assert len(gates) == 4 and not any(gate.any() for gate in gates)


@pytest.mark.parametrize("shape", [(1, 3, 4, D), (1, 4, 5, D)])
def test_other_crops_than_asked_for_are_refused_with_both_numbers(shape):
    with pytest.raises(ValueError, match=f"{shape[1]} crops of {shape[2]} tokens do not lie on 4 grids of 2x2"):
        build("deepstack_hd").memory_of_views(torch.zeros(shape), Grid(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"side": 1}, "side is at least 2, got 1"), ({"layers": (0, 1)}, "4 stacks, got 2 layers"), ({"layers": ()}, "0")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("deepstack_hd", **options)
