"""Matryoshka queries by hand, query by query and head by head."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector
from vision_remember.projectors.mqt import sine_positions

C, D, SIDE, HEADS = 8, 5, 3, 2
OPTIONS = {"type": "mqt", "num_queries": SIDE**2, "num_heads": HEADS}
SHAPES = {
    "query": (SIDE**2, C),
    "attn.in_proj_weight": (3 * C, C),
    "attn.in_proj_bias": (3 * C,),
    "attn.out_proj.weight": (C, C),
    "attn.out_proj.bias": (C,),
    **{f"ln_{x}.{kind}": (C,) for x in "qkv" for kind in ("weight", "bias")},
    "proj": (C, D),
}


def positions(side=SIDE, width=C):
    """The table entry by entry, as the original makes it."""
    table = torch.zeros(side * side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                frequency = 10000 ** (-k / quarter)
                here = table[row * side + column]
                here[k], here[quarter + k] = math.sin(column * frequency), math.cos(column * frequency)
                here[2 * quarter + k], here[3 * quarter + k] = math.sin(row * frequency), math.cos(row * frequency)
    return table.half().double()


def first(m):
    def plain(weights, features):
        def norm(x, name):
            return parity.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

        grid, table = features.grid, weights["pos_embed"]
        square = table.view(1, SIDE, SIDE, C).permute(0, 3, 1, 2)
        over = F.interpolate(square, size=(grid.height, grid.width), mode="bicubic", align_corners=False)
        keys = norm(over.permute(0, 2, 3, 1).reshape(-1, C), "ln_k")
        images = []
        for image in features.level(-2):
            values = norm(image, "ln_v")
            queries = [norm(weights["query"][i] + table[i], "ln_q") for i in range(m)]
            seen = [parity.packed_attention(query, keys, values, weights, "attn", HEADS) for query in queries]
            images.append(torch.stack(seen) @ weights["proj"])
        return torch.stack(images)

    return plain


@pytest.mark.parametrize("m", [1, 4, 9])
@pytest.mark.parametrize("grid", [grid for grid, _ in parity.GRIDS], ids=str)
def test_a_token_is_its_query_looking_by_position(grid, m):
    parity.agrees(OPTIONS, SHAPES, first(m), grid, C, D, fixed={"pos_embed": positions()}, num_tokens=m)


def test_the_weights_of_the_original_load_or_are_refused_by_name():
    prefixes = ("model.mm_projector.", "mm_projector.")
    parity.loads_strictly(OPTIONS, SHAPES, C, D, prefixes=prefixes, fixed={"pos_embed": positions()})
    parity.loads_strictly(OPTIONS, SHAPES, C, D, prefixes=prefixes)


def test_the_position_table_of_another_size_is_refused():
    projector = build_projector(**OPTIONS, feature_width=C, text_width=D)
    with pytest.raises(ValueError, match=r"misshapen: pos_embed is \[16, 8\], needs \[9, 8\]"):
        projector.load_original({**parity.draw(SHAPES), "pos_embed": positions(4)})


@pytest.mark.parametrize(("side", "width"), [(3, 8), (16, 64), (1, 4)])
def test_the_position_table_is_the_sines_rounded_to_half(side, width):
    # Half precision keeps 11 bits; where float64 here and float32 there round apart, they do so by one unit.
    torch.testing.assert_close(sine_positions(side, width).double(), positions(side, width), rtol=1e-3, atol=1e-7)


def test_fewer_tokens_are_the_first_of_more():
    projector = build_projector(**OPTIONS, feature_width=C, text_width=D).double()
    seen = parity.see((-2,), Grid(4, 6), C)
    everything = projector(seen)
    for m in range(1, 10):
        torch.testing.assert_close(projector(seen, num_tokens=m), everything[:, :m])


def test_the_number_of_tokens_can_be_fixed_by_the_config():
    projector = build_projector(**OPTIONS, num_tokens=4, feature_width=C, text_width=D)
    assert projector.tokens_out(Grid(6, 6)) == Grid(2, 2)
    assert projector.double()(parity.see((-2,), Grid(6, 6), C)).shape == (2, 4, D)
    assert projector.tokens_out(Grid(6, 6), num_tokens=9) == Grid(3, 3)
    assert projector.tokens_out(Grid(2, 8), num_tokens=4) == Grid(1, 4)
    for num_tokens in (0, 10):
        with pytest.raises(ValueError, match=f"9 queries, it cannot make {num_tokens} tokens"):
            projector.tokens_out(Grid(6, 6), num_tokens=num_tokens)


def test_padding_patches_are_not_seen():
    projector = build_projector(**OPTIONS, feature_width=C, text_width=D).double()
    valid = torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.6
    seen, other = (parity.see((-2,), Grid(4, 6), C, valid=valid) for _ in range(2))
    other.level(-2)[~valid] = 100.0
    assert torch.equal(projector(seen), projector(other))
    assert not torch.equal(projector(seen), projector(parity.see((-2,), Grid(4, 6), C)))


def test_the_number_to_train_with_is_even_covers_all_and_depends_on_seed_and_step_alone():
    projector = build_projector(**OPTIONS, feature_width=C, text_width=D)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = [projector.draw_num_tokens(step) for step in range(200)]
    assert torch.equal(torch.get_rng_state(), state)
    assert set(drawn) == {2, 4, 6, 8}
    assert drawn == [projector.draw_num_tokens(step) for step in range(200)]
    assert drawn != [projector.draw_num_tokens(step, seed=1) for step in range(200)]


@pytest.mark.parametrize(
    ("options", "width", "message"),
    [
        ({"num_queries": 8}, 8, "square number, got 8"),
        ({"num_tokens": 10}, 8, r"num_tokens is 1 to 9 \(num_queries\), got 10"),
        ({"num_heads": 0}, 8, "num_heads is at least 1, got 0"),
        ({"num_heads": 3}, 8, "width of 8 cannot be shared by 3 heads"),
        ({}, 6, "width divisible by 4 for its sine positions, got 6"),
    ],
)
def test_impossible_options_are_refused(options, width, message):
    with pytest.raises(ValueError, match=message):
        build_projector(**{**OPTIONS, **options}, feature_width=width, text_width=D)
