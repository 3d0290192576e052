"""TokenPacker by hand: every token, its interpolated query, its cell, its heads."""

import math

import pytest
import torch

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector

C, D, E, HEADS, LEVELS = 3, 5, 8, 2, (12, 16, 22, 23)
OPTIONS = {"type": "token_packer", "width": E, "num_heads": HEADS}
SHAPES = {
    "q_proj_1.weight": (E, C),
    **{f"{x}_proj_1.0.weight": (E, 4 * C) for x in "kv"},
    **{f"{x}_proj_1.2.weight": (E, E) for x in "kv"},
    **{f"{x}_proj_1.{layer}.bias": (E,) for x in "kv" for layer in (0, 2)},
    **{f"ln_{x}_1.{kind}": (E,) for x in "qkv" for kind in ("weight", "bias")},
    "clip_attn.in_proj_weight": (3 * E, E),
    "clip_attn.in_proj_bias": (3 * E,),
    "clip_attn.out_proj.weight": (E, E),
    "clip_attn.out_proj.bias": (E,),
    "mlp.0.weight": (D, E),
    "mlp.0.bias": (D,),
    "mlp.2.weight": (D, D),
    "mlp.2.bias": (D,),
}


def between(x, grid, at):
    """Bilinear value at a place (row, column) counted in patches from the first patch's centre; the edge goes on outside."""
    place = [min(max(value, 0.0), side - 1.0) for value, side in zip(at, (grid.height, grid.width), strict=True)]
    low = [math.floor(value) for value in place]
    result = 0
    for dh in (0, 1):
        for dw in (0, 1):
            share = 1.0
            corner = (low[0] + dh, low[1] + dw)
            for value, cell in zip(place, corner, strict=True):
                share *= max(0.0, 1 - abs(value - cell))
            if share:
                result = result + share * x[corner[0] * grid.width + corner[1]]
    return result


def packed_to(coarse):
    def plain(weights, features):
        grid = features.grid

        def norm(x, name):
            return parity.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

        images = []
        for image in range(2):
            x = features.level(23)[image]
            detail = torch.cat([features.level(level)[image] for level in LEVELS], dim=-1)
            keys = norm(parity.mlp(detail, weights, "k_proj_1.0", "k_proj_1.2"), "ln_k_1")
            values = norm(parity.mlp(detail, weights, "v_proj_1.0", "v_proj_1.2"), "ln_v_1")
            tokens = []
            for token, patches in enumerate(parity.bins(grid, coarse)):
                row, column = divmod(token, coarse.width)
                at = ((row + 0.5) * grid.height / coarse.height - 0.5, (column + 0.5) * grid.width / coarse.width - 0.5)
                query = norm(weights["q_proj_1.weight"] @ between(x, grid, at), "ln_q_1")
                seen = parity.packed_attention(query, keys[patches], values[patches], weights, "clip_attn", HEADS)
                tokens.append(parity.mlp(seen, weights, "mlp.0", "mlp.2"))
            images.append(torch.stack(tokens))
        return torch.stack(images)

    return plain


@pytest.mark.parametrize(
    ("grid", "scale", "coarse"),
    [
        (Grid(4, 4), 2, Grid(2, 2)),
        (Grid(6, 6), 3, Grid(2, 2)),
        (Grid(4, 8), 4, Grid(1, 2)),
        (Grid(6, 4), 2, Grid(3, 2)),
        (Grid(5, 7), 2, Grid(3, 4)),
        (Grid(7, 4), 3, Grid(3, 2)),
    ],
    ids=str,
)
def test_a_token_asks_and_collects_from_its_own_cell(grid, scale, coarse):
    options = {**OPTIONS, "scale": scale}
    assert build_projector(**options, feature_width=C, text_width=D).tokens_out(grid) == coarse
    parity.agrees(options, SHAPES, packed_to(coarse), grid, C, D)


def test_any_number_of_tokens_can_be_asked_for():
    parity.agrees(OPTIONS, SHAPES, packed_to(Grid(3, 3)), Grid(5, 5), C, D, num_tokens=9)
    projector = build_projector(**OPTIONS, feature_width=C, text_width=D)
    with pytest.raises(ValueError, match="5x5 tokens of a 4x6 grid"):
        projector.tokens_out(Grid(4, 6), num_tokens=25)


def test_the_weights_of_the_original_load_or_are_refused_by_name():
    parity.loads_strictly(OPTIONS, SHAPES, C, D, prefixes=("model.mm_projector.", "mm_projector."))


@pytest.mark.parametrize(("scale", "tokens"), [(2, 144), (3, 64), (4, 36)])
def test_tokens_and_parameters_are_the_published_ones(scale, tokens):
    with torch.device("meta"):
        projector = build_projector("token_packer", feature_width=1024, text_width=64, scale=scale)
    assert projector.tokens_out(Grid(24, 24)).num_cells == tokens
    trunk = 15_742_976 + 64**2 + 1026 * 64
    assert sum(parameter.numel() for parameter in projector.parameters()) == trunk


def test_padding_patches_are_no_keys():
    projector = build_projector(**OPTIONS, scale=4, feature_width=C, text_width=D).double()
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[:, :, [1, 2, 5, 6]] = True  # the queries come from the centres of the cells
    valid = valid.flatten(1)
    seen, other = (parity.see(LEVELS, Grid(8, 8), C, valid=valid) for _ in range(2))
    for level in LEVELS:
        other.level(level)[~valid] = 100.0
    assert torch.equal(projector(seen), projector(other))
    assert not torch.equal(projector(seen), projector(parity.see(LEVELS, Grid(8, 8), C)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": []}, "at least one level"),
        ({"scale": 0}, "scale is at least 1, got 0"),
        ({"num_heads": 3}, "width of 8 cannot be shared by 3 heads"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_projector(**{**OPTIONS, **options}, feature_width=C, text_width=D)
