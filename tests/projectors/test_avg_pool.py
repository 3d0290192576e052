"""DeCo by hand: pool first, then the MLP."""

import pytest
import torch

from tests.projectors import parity
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector

OPTIONS = {"type": "avg_pool"}
SHAPES = {
    "mlp_projector.0.weight": (4, 3),
    "mlp_projector.0.bias": (4,),
    "mlp_projector.2.weight": (4, 4),
    "mlp_projector.2.bias": (4,),
}


def pooled_to(coarse):
    def plain(weights, features):
        x = features.level(-2)
        tokens = [x[:, patches].mean(1) for patches in parity.bins(features.grid, coarse)]
        return parity.mlp(torch.stack(tokens, 1), weights, "mlp_projector.0", "mlp_projector.2")

    return plain


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
    options = {**OPTIONS, "scale": scale}
    assert build_projector(**options, feature_width=3, text_width=4).tokens_out(fine) == coarse
    parity.agrees(options, SHAPES, pooled_to(coarse), fine, 3, 4)


def test_the_weights_of_deco_load_or_are_refused_by_name():
    parity.loads_strictly(OPTIONS, SHAPES, 3, 4, prefixes=("model.mm_projector.", "mm_projector."))


def test_the_weights_of_a_llava_projector_load_as_well():
    shapes = {name.removeprefix("mlp_projector."): shape for name, shape in SHAPES.items()}
    parity.loads_strictly(OPTIONS, shapes, 3, 4, prefixes=("model.mm_projector.",))


def test_one_linear_is_enough_for_depth_one():
    projector = build_projector("avg_pool", feature_width=3, text_width=4, depth=1)
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {
        "mlp.0.weight": (4, 3),
        "mlp.0.bias": (4,),
    }


def test_any_number_of_tokens_can_be_asked_for_and_keeps_the_shape_of_the_grid():
    projector = build_projector("avg_pool", feature_width=3, text_width=4)
    assert projector.tokens_out(Grid(24, 24)) == Grid(12, 12)
    assert projector.tokens_out(Grid(24, 24), num_tokens=36) == Grid(6, 6)
    assert projector.tokens_out(Grid(12, 24), num_tokens=32) == Grid(4, 8)
    with pytest.raises(ValueError, match="5x5 tokens of a 4x6 grid"):
        projector.tokens_out(Grid(4, 6), num_tokens=25)


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


@pytest.mark.parametrize("option", ["scale", "depth"])
def test_a_number_below_one_is_refused(option):
    with pytest.raises(ValueError, match=f"{option} is at least 1, got 0"):
        build_projector("avg_pool", feature_width=3, text_width=4, **{option: 0})
