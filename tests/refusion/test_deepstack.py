"""The mergers of Qwen3-VL against loops over tokens and patches, written with the original's parameter names."""

import dataclasses
import math
import re

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLModel

from tests.refusion.scene import BACKBONES, Inserted, build, rows_of_images
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.refusion import build_refusion

C, D = BACKBONES.feature_width, BACKBONES.text_width
GRIDS = [
    (Grid(4, 4), Grid(2, 2)),
    (Grid(4, 6), Grid(2, 3)),
    (Grid(9, 3), Grid(3, 1)),
    (Grid(6, 4), Grid(2, 2)),  # cells of 3 x 2
    (Grid(3, 5), Grid(3, 5)),
]


def original_weights(cell, levels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    width, weights = cell[0] * cell[1] * C, {}
    shapes = {"norm": (width,), "linear_fc1": (width, width), "linear_fc2": (D, width)}
    for k in range(levels):
        for part, shape in shapes.items():
            name = f"model.visual.deepstack_merger_list.{k}.{part}"
            weights[f"{name}.weight"] = torch.randn(shape, generator=generator, dtype=dtype)
            weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator, dtype=dtype)
    return weights


def merged(weights, k, patches):
    """One merger on the patches of one token, one after the other: norm, linear, GELU, linear."""
    name = f"model.visual.deepstack_merger_list.{k}"
    x = torch.cat(patches)
    x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6)
    x = x * weights[f"{name}.norm.weight"] + weights[f"{name}.norm.bias"]
    x = weights[f"{name}.linear_fc1.weight"] @ x + weights[f"{name}.linear_fc1.bias"]
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return weights[f"{name}.linear_fc2.weight"] @ x + weights[f"{name}.linear_fc2.bias"]


@pytest.mark.parametrize(("fine", "coarse"), GRIDS, ids=str)
def test_it_is_what_the_loops_say_with_its_gradients(fine, coarse):
    cell = (fine.height // coarse.height, fine.width // coarse.width)
    refusion, twin = (build("deepstack", cell=cell).double() for _ in range(2))
    weights = original_weights(cell)
    refusion.load_original(weights)
    for weight in weights.values():
        weight.requires_grad_()
    generator = torch.Generator().manual_seed(4)
    levels = {i: torch.randn(2, fine.num_cells, C, generator=generator, dtype=torch.float64) for i in refusion.levels}
    hidden = torch.randn(2, coarse.num_cells + 2, D, generator=generator, dtype=torch.float64)

    def ours(hidden, *levels):
        seen = VisionFeatures(levels=dict(zip(refusion.levels, levels, strict=True)), grid=fine)
        return Inserted(refusion)(hidden, rows_of_images(refusion.memory(seen, coarse)))

    def loops(hidden, *levels):
        out = hidden.clone()
        for image in range(2):
            for token in range(coarse.num_cells):
                top, left = token // coarse.width * cell[0], token % coarse.width * cell[1]
                patches = [(top + dh) * fine.width + left + dw for dh in range(cell[0]) for dw in range(cell[1])]
                for k, level in enumerate(levels):
                    out[image, 1 + token] += merged(weights, k, [level[image, patch] for patch in patches])
        return out

    results = []
    for run in (ours, loops):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, *levels.values())]
        out = run(*leaves)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append((out, *(leaf.grad for leaf in leaves)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    twin.load_original({name: weight.grad for name, weight in weights.items()})
    for parameter, gradient in zip(refusion.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, gradient.detach(), rtol=1e-8, atol=1e-9)


@torch.no_grad()
def test_the_mergers_of_a_whole_qwen3_vl_give_the_same_stacks():
    """Its tower keeps the four patches of a cell together; its taps 0, 2, 3 are the outputs of blocks, our levels 1, 3, 4."""
    torch.manual_seed(0)
    shape = {"depth": 4, "num_heads": 2, "intermediate_size": 12, "patch_size": 4, "num_position_embeddings": 16}
    text = {"hidden_size": D, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 8}
    vision = {**shape, "hidden_size": 8, "out_hidden_size": D, "deepstack_visual_indexes": [0, 2, 3]}
    theirs = Qwen3VLModel(Qwen3VLConfig(vision_config=vision, text_config={**text, "vocab_size": 32})).eval()
    for merger in theirs.visual.deepstack_merger_list:
        for parameter in merger.parameters():
            parameter.normal_(std=0.5)
    blocks = []
    for number in (0, 2, 3):
        theirs.visual.blocks[number].register_forward_hook(lambda _, __, out: blocks.append(out))
    fine, coarse = Grid(4, 6), Grid(2, 3)
    grid = torch.tensor([[1, fine.height, fine.width]])
    expected = theirs.visual(torch.randn(fine.num_cells, 3 * 2 * 4 * 4), grid_thw=grid).deepstack_features

    config = build("deepstack", levels=(1, 3, 4), zero_init=False).config
    refusion = type(build("deepstack"))(config, dataclasses.replace(BACKBONES, feature_width=8))
    names = {f"model.{name}": weight for name, weight in theirs.state_dict().items() if "deepstack" in name}
    refusion.load_original(names)
    rows = [out.view(2, 3, 2, 2, 8).transpose(1, 2).reshape(1, fine.num_cells, 8) for out in blocks]
    seen = VisionFeatures(levels=dict(zip(refusion.levels, rows, strict=True)), grid=fine)
    stacks = refusion.memory(seen, coarse).rows.unflatten(-1, (3, D))
    for k in range(3):
        assert (stacks[0, :, k] - expected[k]).abs().max() <= 1e-5  # float32, sums in another order


def test_every_layer_adds_the_level_at_its_place_in_the_list():
    refusion = build("deepstack", levels=(4, 1), layers=(2, -1), zero_init=False)
    levels = {i: torch.randn(1, 16, C, generator=torch.Generator().manual_seed(i)) for i in refusion.levels}
    state = rows_of_images(refusion.memory(VisionFeatures(levels=levels, grid=Grid(4, 4)), Grid(2, 2)))
    hidden = torch.zeros(1, 6, D)
    for number, layer in enumerate((2, -1)):
        added, _ = refusion.insertion(layer)(hidden, state, layer)
        cells = levels[(4, 1)[number]].view(1, 2, 2, 2, 2, C).transpose(2, 3).reshape(1, 4, 4 * C)
        torch.testing.assert_close(added[:, 1:5], refusion.mergers[number](cells))


@pytest.mark.parametrize(("encoder", "levels"), [(27, (9, 17, 25)), (24, (8, 15, 22)), (2, (1,))])
def test_the_default_levels_scale_with_the_encoder(encoder, levels):
    backbones = dataclasses.replace(BACKBONES, encoder_layers=encoder)
    refusion = build_refusion({"type": "deepstack"}, backbones)
    assert (refusion.levels, refusion.layers) == (levels, tuple(range(len(levels))))


@pytest.mark.parametrize(("fine", "coarse"), [(Grid(5, 4), Grid(2, 3)), (Grid(6, 6), Grid(2, 2))])
def test_grids_of_other_cells_are_refused_with_both(fine, coarse):
    refusion = build("deepstack")
    seen = VisionFeatures(levels={i: torch.zeros(1, fine.num_cells, C) for i in refusion.levels}, grid=fine)
    with pytest.raises(ValueError, match=f"2x2 patches cannot cover a {fine} patch grid with {coarse} tokens"):
        refusion.memory(seen, coarse)


@pytest.mark.parametrize("prefix", ["model.visual.", "visual.", ""])
def test_weights_load_with_any_prefix(prefix):
    weights = {re.sub("^model.visual.", prefix, name): value for name, value in original_weights((2, 2)).items()}
    refusion = build("deepstack")
    refusion.load_original(weights)
    loaded = refusion.mergers[2].linear_fc2.weight
    torch.testing.assert_close(loaded, weights[f"{prefix}deepstack_merger_list.2.linear_fc2.weight"].float())


def test_weights_that_do_not_fit_are_refused_by_name():
    weights = original_weights((2, 2), levels=4)
    weights.pop("model.visual.deepstack_merger_list.1.norm.bias")
    weights["model.visual.deepstack_merger_list.0.linear_fc1.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as caught:
        build("deepstack").load_original(weights)
    for name in ("1.norm.bias", "0.linear_fc1.bias", "3.norm.weight"):
        assert f"deepstack_merger_list.{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ()}, "type: none"),
        ({"layers": (0, 1)}, r"3 levels \(1, 2, 3\) cannot enter after 2 layers \(0, 1\)"),
        ({"cell": (2,)}, r"got \(2,\)"),
        ({"cell": (0, 2)}, r"got \(0, 2\)"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("deepstack", **options)


def test_the_parity_mode_starts_as_torch_starts_a_linear():
    assert build("deepstack", zero_init=False).mergers[0].linear_fc2.weight.all()
    assert not build("deepstack").mergers[0].linear_fc2.weight.any()
