"""MobileVLM's projector by hand: the MLP on every patch, then the mean, then a 3x3 window of means per channel."""

import pytest
import torch

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector

C, D = 3, 4
SHAPES = {
    "mlp.mlp.0.weight": (D, C),
    "mlp.mlp.0.bias": (D,),
    "mlp.mlp.2.weight": (D, D),
    "mlp.mlp.2.bias": (D,),
    "peg.peg.0.weight": (D, 1, 3, 3),
    "peg.peg.0.bias": (D,),
}


def pooled_to(coarse):
    def plain(weights, features):
        patches = parity.mlp(features.level(-2), weights, "mlp.mlp.0", "mlp.mlp.2")
        means = torch.stack([patches[:, own].mean(1) for own in parity.bins(features.grid, coarse)], 1)
        tokens = []
        for row in range(coarse.height):
            for column in range(coarse.width):
                token = means[:, row * coarse.width + column] + weights["peg.peg.0.bias"]
                for dh in (-1, 0, 1):
                    for dw in (-1, 0, 1):
                        if 0 <= row + dh < coarse.height and 0 <= column + dw < coarse.width:
                            neighbour = means[:, (row + dh) * coarse.width + column + dw]
                            token = token + neighbour * weights["peg.peg.0.weight"][:, 0, dh + 1, dw + 1]
                tokens.append(token)
        return torch.stack(tokens, 1)

    return plain


@pytest.mark.parametrize(("fine", "coarse"), parity.GRIDS, ids=str)
def test_a_token_is_the_mean_of_its_cell_and_its_neighbours(fine, coarse):
    options = {"type": "ldp_v2", "token_grid": [coarse.height, coarse.width]}
    parity.agrees(options, SHAPES, pooled_to(coarse), fine, C, D)


def test_the_weights_of_mobilevlm_load_or_are_refused_by_name():
    parity.loads_strictly(
        {"type": "ldp_v2"}, SHAPES, C, D, prefixes=("model.mm_projector.", "base_model.model.model.mm_projector.")
    )


def test_the_number_of_parameters_is_the_published_one():
    projector = build_projector("ldp_v2", feature_width=10, text_width=16)
    assert sum(parameter.numel() for parameter in projector.parameters()) == 16**2 + (10 + 12) * 16


def test_the_token_grid_does_not_follow_the_patches_unless_a_number_is_asked_for():
    projector = build_projector("ldp_v2", feature_width=C, text_width=D)
    assert projector.tokens_out(Grid(24, 24)) == projector.tokens_out(Grid(16, 32)) == Grid(12, 12)
    assert projector.tokens_out(Grid(16, 32), num_tokens=32) == Grid(4, 8)
    with pytest.raises(ValueError, match="12x12 tokens of a 8x16 grid"):
        projector.tokens_out(Grid(8, 16))


def test_padding_patches_do_not_count():
    projector = build_projector("ldp_v2", feature_width=C, text_width=D, token_grid=[2, 2]).double()
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[:, 3:] = False
    seen = parity.see((-2,), Grid(4, 4), C, valid=valid.flatten(1))
    other = parity.see((-2,), Grid(4, 4), C, valid=valid.flatten(1))
    other.level(-2)[:, 12:] = 100.0
    assert torch.equal(projector(seen), projector(other))


def test_a_token_grid_that_is_no_grid_is_refused():
    with pytest.raises(ValueError, match=r"token_grid is \[rows, columns\], got \[12\]"):
        build_projector("ldp_v2", feature_width=C, text_width=D, token_grid=[12])
