"""Honeybee's C-Abstractor by hand: every convolution as a sum over shifted maps, every norm by its formula."""

import pytest
import torch

from tests.projectors import parity
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector

C, M, D = 6, 4, 5  # the first block squeezes to round(6 / 4) = 2 channels (an even round), the others to 1


def shapes(grid, *, width=M, depth=2, mlp_depth=2, prenorm=False, num_eos_tokens=0):
    """The original's names, in the shapes timm gives them."""
    found = {"pos_emb": (1, grid.num_cells, C)}
    if prenorm:
        found |= {"prenorm.weight": (C,), "prenorm.bias": (C,)}
    if num_eos_tokens:
        found["eos_tokens"] = (1, num_eos_tokens, D)
    for stage in (0, 2):
        for number in range(1, depth + 1):
            inside = C if (stage, number) == (0, 1) else width
            block, squeezed = f"net.{stage}.b{number}", round(inside * 0.25)
            convolutions = {"conv1": (width, inside, 1, 1), "conv2": (width, 1, 3, 3), "conv3": (width, width, 1, 1)}
            if inside != width:
                convolutions["downsample"] = (width, inside, 1, 1)
            for name, shape in convolutions.items():
                found[f"{block}.{name}.conv.weight"] = shape
                found |= {f"{block}.{name}.bn.{kind}": (width,) for kind in ("weight", "bias")}
            found |= {f"{block}.se.fc1.weight": (squeezed, width, 1, 1), f"{block}.se.fc1.bias": (squeezed,)}
            found |= {f"{block}.se.fc2.weight": (width, squeezed, 1, 1), f"{block}.se.fc2.bias": (width,)}
    for layer in range(mlp_depth):
        found[f"readout.{2 * layer}.weight"] = (D, D if layer else width)
        found[f"readout.{2 * layer}.bias"] = (D,)
    return found


def block(x, grid, weights, name):
    """One block on patches ``x [P, C]`` of one image."""

    def normed(x, conv):
        return parity.layer_norm(x, weights[f"{name}.{conv}.bn.weight"], weights[f"{name}.{conv}.bn.bias"], 1e-5)

    def pointwise(x, conv):
        return normed(x @ weights[f"{name}.{conv}.conv.weight"][:, :, 0, 0].T, conv)

    inner = parity.silu(pointwise(x, "conv1"))
    kernel = weights[f"{name}.conv2.conv.weight"][:, 0]
    framed = inner.new_zeros(grid.height + 2, grid.width + 2, len(kernel))
    framed[1:-1, 1:-1] = inner.view(grid.height, grid.width, -1)
    sums = sum(
        framed[dh : dh + grid.height, dw : dw + grid.width] * kernel[:, dh, dw] for dh in range(3) for dw in range(3)
    )
    inner = parity.silu(normed(sums.flatten(0, 1), "conv2"))
    squeeze = {i: (weights[f"{name}.se.fc{i}.weight"][:, :, 0, 0], weights[f"{name}.se.fc{i}.bias"]) for i in (1, 2)}
    hidden = parity.silu(squeeze[1][0] @ inner.mean(0) + squeeze[1][1])
    inner = inner / (1 + torch.exp(-(squeeze[2][0] @ hidden + squeeze[2][1])))
    inner = pointwise(inner, "conv3")
    shortcut = pointwise(x, "downsample") if f"{name}.downsample.conv.weight" in weights else x
    return parity.silu(inner + shortcut)


def pooled_to(coarse):
    def plain(weights, features):
        images = []
        for x in features.level(-1):
            if "prenorm.weight" in weights:
                x = parity.layer_norm(x, weights["prenorm.weight"], weights["prenorm.bias"], 1e-5)
            if "pos_emb" in weights:
                x = x + weights["pos_emb"][0]
            depth = len({name.split(".")[2] for name in weights if name.startswith("net.0.")})
            for number in range(1, depth + 1):
                x = block(x, features.grid, weights, f"net.0.b{number}")
            x = torch.stack([x[own].mean(0) for own in parity.bins(features.grid, coarse)])
            for number in range(1, depth + 1):
                x = block(x, coarse, weights, f"net.2.b{number}")
            for layer in range(sum(name.startswith("readout") for name in weights) // 2):
                x = parity.silu(x) if layer else x
                x = x @ weights[f"readout.{2 * layer}.weight"].T + weights[f"readout.{2 * layer}.bias"]
            images.append(torch.cat([x, weights["eos_tokens"][0]]) if "eos_tokens" in weights else x)
        return torch.stack(images)

    return plain


def options(fine, coarse, **others):
    grids = {"patch_grid": [fine.height, fine.width], "token_grid": [coarse.height, coarse.width]}
    return {"type": "c_abstractor", **grids, "width": M, "depth": 2, **others}


@pytest.mark.parametrize(("fine", "coarse"), parity.GRIDS, ids=str)
def test_the_stages_are_what_the_sums_say(fine, coarse):
    parity.agrees(options(fine, coarse), shapes(fine), pooled_to(coarse), fine, C, D)


@pytest.mark.parametrize(
    "others",
    [
        {"width": C},  # no downsample anywhere
        {"depth": 1, "mlp_depth": 1},
        {"mlp_depth": 3, "prenorm": True},
        {"num_eos_tokens": 2},
    ],
    ids=str,
)
def test_every_option_of_the_original(others):
    fine, coarse = Grid(4, 6), Grid(2, 3)
    parity.agrees(options(fine, coarse, **others), shapes(fine, **others), pooled_to(coarse), fine, C, D)


def test_without_positions_any_grid_is_read():
    named = shapes(Grid(1, 1))
    del named["pos_emb"]
    asked = {**options(Grid(1, 1), Grid(2, 2)), "patch_grid": None}
    for grid in (Grid(4, 4), Grid(3, 5)):
        parity.agrees(asked, named, pooled_to(Grid(2, 2)), grid, C, D)


def test_the_weights_of_honeybee_load_or_are_refused_by_name():
    fine, coarse = Grid(4, 6), Grid(2, 3)
    others = {"prenorm": True, "num_eos_tokens": 2, "depth": 1}
    parity.loads_strictly(options(fine, coarse, **others), shapes(fine, **others), C, D, prefixes=("abstractor.",))


def test_positions_that_begin_with_the_class_token_lose_it():
    fine, coarse = Grid(2, 4), Grid(1, 2)
    weights = parity.draw(shapes(fine))
    old = {**weights, "pos_emb": torch.cat([torch.full((1, 1, C), 9.0), weights["pos_emb"]], dim=1)}
    answers = []
    for named in (weights, {f"abstractor.{name}": weight for name, weight in old.items()}):
        projector = build_projector(**options(fine, coarse), feature_width=C, text_width=D).double()
        projector.load_original(named)
        answers.append(projector(parity.see((-1,), fine, C)))
    assert torch.equal(*answers)


def test_the_convolutions_have_the_published_number_of_parameters():
    with torch.device("meta"):
        projector = build_projector("c_abstractor", feature_width=1024, text_width=8)
    trunk = sum(p.numel() for name, p in projector.named_parameters() if name.startswith("stage"))
    assert trunk == 15_828_480 and projector.tokens_out(Grid(24, 24)) == Grid(12, 12)


def test_another_grid_than_that_of_the_positions_is_refused_with_both_lengths():
    projector = build_projector(**options(Grid(4, 6), Grid(2, 3)), feature_width=C, text_width=D)
    for grid, message in ((Grid(5, 6), "24 positions for a 4x6 grid, got 30 patches on a 5x6"), (Grid(6, 4), "6x4")):
        with pytest.raises(ValueError, match=message):
            projector(parity.see((-1,), grid, C))


def test_the_number_of_tokens_can_be_asked_for():
    projector = build_projector(**options(Grid(4, 6), Grid(2, 3)), feature_width=C, text_width=D)
    assert projector.tokens_out(Grid(4, 6), num_tokens=2) == Grid(1, 2)
    with pytest.raises(ValueError, match="5x5 tokens of a 4x6 grid"):
        projector.tokens_out(Grid(4, 6), num_tokens=25)


def test_eos_tokens_are_counted_and_leave_no_grid():
    projector = build_projector(**options(Grid(4, 6), Grid(2, 3), num_eos_tokens=2), feature_width=C, text_width=D)
    assert projector.tokens_out(Grid(4, 6)) == Grid(1, 8)
    assert projector.tokens_out(Grid(4, 6), num_tokens=8) == Grid(1, 8)
    with pytest.raises(ValueError, match="2 of its tokens are eos tokens, ask for more than 2"):
        projector.tokens_out(Grid(4, 6), num_tokens=2)


def test_the_features_of_the_caller_are_not_written_to():
    projector = build_projector(**options(Grid(4, 6), Grid(2, 3)), feature_width=C, text_width=D).double()
    seen, other = (parity.see((-1,), Grid(4, 6), C) for _ in range(2))
    projector(seen)
    assert torch.equal(seen.level(-1), other.level(-1))


def test_a_mask_is_refused():
    projector = build_projector(**options(Grid(4, 6), Grid(2, 3)), feature_width=C, text_width=D).double()
    with pytest.raises(ValueError, match="whole grids and has no mask"):
        projector(parity.see((-1,), Grid(4, 6), C, valid=torch.ones(2, 24, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": 0}, "depth is at least 1, got 0"),
        ({"num_eos_tokens": -1}, "num_eos_tokens is at least 0, got -1"),
        ({"patch_grid": [4]}, r"patch_grid is \[rows, columns\], got \[4\]"),
        ({"token_grid": [1, 2, 3]}, r"token_grid is \[rows, columns\], got \[1, 2, 3\]"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        build_projector(**{**options(Grid(4, 6), Grid(2, 3)), **wrong}, feature_width=C, text_width=D)
