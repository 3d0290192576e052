"""Cambrian's sampler against loops over tokens, heads and patches, written with the original's parameter names."""

import dataclasses
import math

import pytest
import torch

from tests.refusion.scene import BACKBONES, build, rows_of_images
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.refusion import build_refusion

C, D, M, H, L = BACKBONES.feature_width, BACKBONES.text_width, 12, 3, 2
OPTIONS = {"width": M, "num_heads": H, "levels": (3, 1), "layers": (0, 2)}
GRIDS = [
    (Grid(4, 4), Grid(2, 2)),
    (Grid(4, 6), Grid(2, 3)),
    (Grid(5, 4), Grid(2, 3)),  # neither side divides
    (Grid(7, 3), Grid(3, 2)),
    (Grid(3, 2), Grid(3, 2)),  # one patch each: no positions
]


def bins(fine, coarse, cell):
    return range(math.floor(cell * fine / coarse), math.ceil((cell + 1) * fine / coarse))


def max_slots(fine, coarse):
    rows = max(len(bins(fine.height, coarse.height, i)) for i in range(coarse.height))
    columns = max(len(bins(fine.width, coarse.width, i)) for i in range(coarse.width))
    return rows, columns


def original_weights(positions, dtype=torch.float64):
    """Projections of the levels and one sampler, under the names of the original."""
    shapes = {}
    for n in range(L):
        aux = f"model.mm_projector_aux_{n}"
        shapes |= {f"{aux}.0.weight": (M, C), f"{aux}.0.bias": (M,), f"{aux}.2.weight": (M, M), f"{aux}.2.bias": (M,)}
        shapes |= {f"{aux}.3.weight": (M,), f"{aux}.3.bias": (M,)}
    layer = {"proj_context.weight": (M, M), "proj_in.weight": (M, D + M), "norm.weight": (M,), "norm.bias": (M,)}
    layer |= {"proj_out.linear_1.weight": (M, M), "proj_out.linear_2.weight": (D, M)}
    layer |= {f"pos_embed_{n}": (positions, M) for n in range(L) if positions > 1}
    for name in ("q_proj", *(f"{kind}_proj_{n}" for kind in "kv" for n in range(L))):
        layer |= {f"cross_attn.{name}.0.weight": (M,), f"cross_attn.{name}.0.bias": (M,)}
        layer |= {f"cross_attn.{name}.1.weight": (M, M)}
    layer |= {"cross_attn.o_proj.weight": (M, M)}
    shapes |= {f"model.vision_sampler_layers.1.layers.0.{name}": shape for name, shape in layer.items()}
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) * 0.5 for name, shape in shapes.items()}


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def norm(x, weight, bias):
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * weight + bias


def loops(weights, hidden, levels, fine, coarse, valid=None):
    """The equations, one token after the other; ``hidden[:, 1 : 1 + V]`` are the vision tokens."""

    def of(name):
        return weights[f"model.vision_sampler_layers.1.layers.0.{name}"]

    def normed_linear(name, x):
        return of(f"cross_attn.{name}.1.weight") @ norm(
            x, of(f"cross_attn.{name}.0.weight"), of(f"cross_attn.{name}.0.bias")
        )

    def projected(n, x):
        w = {key: weights[f"model.mm_projector_aux_{n}.{key}"] for key in ("0.weight", "0.bias", "2.weight", "2.bias")}
        y = w["2.weight"] @ gelu(w["0.weight"] @ x + w["0.bias"]) + w["2.bias"]
        return norm(y, weights[f"model.mm_projector_aux_{n}.3.weight"], weights[f"model.mm_projector_aux_{n}.3.bias"])

    out, (_, slot_columns) = hidden.clone(), max_slots(fine, coarse)
    for image in range(len(hidden)):
        f = [[projected(n, patch) for patch in level[image]] for n, level in enumerate(levels)]
        context = torch.stack(f[0]).mean(0)
        for token in range(coarse.num_cells):
            row, column = divmod(token, coarse.width)
            cells = [
                (h * fine.width + w, dh * slot_columns + dw)
                for dh, h in enumerate(bins(fine.height, coarse.height, row))
                for dw, w in enumerate(bins(fine.width, coarse.width, column))
            ]
            if valid is not None and any(valid[image, patch] for patch, _ in cells):
                cells = [(patch, slot) for patch, slot in cells if valid[image, patch]]
            q = hidden[image, 1 + token]
            z = of("proj_in.weight") @ torch.cat([q, of("proj_context.weight") @ context])
            query = normed_linear("q_proj", z)
            keys, values = [], []
            for n in range(L):
                for patch, slot in cells:
                    kv = f[n][patch]
                    if max_slots(fine, coarse) != (1, 1):
                        kv = kv + of(f"pos_embed_{n}")[slot]
                    keys.append(normed_linear(f"k_proj_{n}", kv))
                    values.append(normed_linear(f"v_proj_{n}", kv))
            heads = []
            for head in range(H):
                mine = slice(head * M // H, (head + 1) * M // H)
                scores = torch.stack([key[mine] @ query[mine] for key in keys]) / math.sqrt(M // H)
                heads.append(torch.softmax(scores, 0) @ torch.stack([value[mine] for value in values]))
            z = norm(z + of("cross_attn.o_proj.weight") @ torch.cat(heads), of("norm.weight"), of("norm.bias"))
            out[image, 1 + token] = q + of("proj_out.linear_2.weight") @ gelu(of("proj_out.linear_1.weight") @ z)
    return out


def loaded(positions, weights=None):
    """A method and the insertion after layer 2 with the original's weights, which are leaves; everything in float64."""
    refusion = build("sva", **OPTIONS, positions=positions).double()
    child = refusion.insertion(2).double()
    weights = original_weights(positions) if weights is None else weights
    refusion.load_original({name: value for name, value in weights.items() if "aux" in name})
    child.load_original({name: value for name, value in weights.items() if "sampler" in name})
    return refusion, child, {name: value.requires_grad_() for name, value in weights.items()}


def inputs(fine, coarse):
    generator = torch.Generator().manual_seed(6)
    levels = [torch.randn(2, fine.num_cells, C, generator=generator, dtype=torch.float64) for _ in range(L)]
    return torch.randn(2, coarse.num_cells + 2, D, generator=generator, dtype=torch.float64), levels


@pytest.mark.parametrize(("fine", "coarse"), GRIDS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_what_the_loops_say_with_its_gradients(fine, coarse, padded):
    positions = math.prod(max_slots(fine, coarse))
    refusion, child, weights = loaded(positions)
    hidden, levels = inputs(fine, coarse)
    valid = None
    if padded:
        valid = torch.ones(2, fine.num_cells, dtype=torch.bool)
        valid[0, : fine.num_cells // 2], valid[1, -1] = False, False

    def ours(hidden, *levels):
        seen = VisionFeatures(levels=dict(zip(refusion.levels, levels, strict=True)), grid=fine, valid=valid)
        return child(hidden, rows_of_images(refusion.memory(seen, coarse)), 2)[0]

    results = []
    for run in (ours, lambda hidden, *levels: loops(weights, hidden, levels, fine, coarse, valid)):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, *levels)]
        out = run(*leaves)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append((out, *(leaf.grad for leaf in leaves)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    method_gradients, child_gradients, _ = loaded(positions, {name: weight.grad for name, weight in weights.items()})
    for module, twin in ((refusion, method_gradients), (child, child_gradients)):
        for (name, parameter), gradient in zip(module.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, gradient.detach(), rtol=1e-8, atol=1e-9, msg=name)


def test_a_longer_table_changes_nothing_but_its_length():
    fine, coarse = Grid(4, 4), Grid(2, 2)
    refusion, child, weights = loaded(4)
    longer = build("sva", **OPTIONS, positions=9).double()
    longer.load_state_dict(refusion.state_dict())
    long_child = longer.insertion(2).double()
    state_dict = child.state_dict()
    for n in range(L):
        state_dict[f"position.{n}"] = torch.cat([state_dict[f"position.{n}"], torch.randn(5, M)])
    long_child.load_state_dict(state_dict)
    hidden, levels = inputs(fine, coarse)
    seen = VisionFeatures(levels=dict(zip((3, 1), levels, strict=True)), grid=fine)
    expected, _ = child(hidden, rows_of_images(refusion.memory(seen, coarse)), 2)
    assert torch.equal(long_child(hidden, rows_of_images(longer.memory(seen, coarse)), 2)[0], expected)


def test_attention_weights_are_summed_over_the_levels():
    refusion, child, _ = loaded(6)
    hidden, levels = inputs(Grid(5, 4), Grid(2, 3))
    seen = VisionFeatures(levels=dict(zip((3, 1), levels, strict=True)), grid=Grid(5, 4))
    state = dataclasses.replace(rows_of_images(refusion.memory(seen, Grid(2, 3))), attentions={})
    loud, _ = child(hidden, state, 2)
    assert state.attentions[2].shape == (2 * 6, H, 6)
    torch.testing.assert_close(state.attentions[2].sum(-1), torch.ones(12, H, dtype=torch.float64))
    torch.testing.assert_close(loud, child(hidden, dataclasses.replace(state, attentions=None), 2)[0])


def test_windows_that_outgrow_the_position_tables_are_refused_with_both_numbers():
    refusion = build("sva", **OPTIONS, positions=4)
    seen = VisionFeatures(levels={i: torch.zeros(1, 20, C) for i in (3, 1)}, grid=Grid(5, 4))
    with pytest.raises(ValueError, match="2x3 tokens over 5x4 patches hold 6 patches, the position tables 4; .* 6"):
        refusion.memory(seen, Grid(2, 3))


@pytest.mark.parametrize(
    ("decoder", "layers"), [(32, tuple(range(0, 30, 3))), (28, tuple(range(0, 27, 3))), (6, (0, 3)), (1, (0,))]
)
def test_the_default_layers_are_those_of_the_original_as_far_as_they_are_of_use(decoder, layers):
    backbones = dataclasses.replace(BACKBONES, decoder_layers=decoder)
    assert build_refusion({"type": "sva"}, backbones).layers == layers


@pytest.mark.parametrize(
    "prefix", ["model.vision_sampler_layers.7.layers.0.", "model.vision_sampler_0.layers.2.", "layers.0.", ""]
)
def test_a_sampler_loads_with_any_prefix(prefix):
    weights = {
        name.replace("model.vision_sampler_layers.1.layers.0.", prefix): value
        for name, value in original_weights(16).items()
        if "sampler" in name
    }
    child = build("sva", **OPTIONS).insertion(0)
    child.load_original(weights)
    torch.testing.assert_close(child.linear_1.weight, weights[f"{prefix}proj_out.linear_1.weight"].float())


def test_the_weights_of_two_samplers_are_refused():
    one = {name: value for name, value in original_weights(16).items() if "sampler" in name}
    two = {name.replace("sampler_layers.1", "sampler_layers.2"): value for name, value in one.items()}
    with pytest.raises(ValueError, match="given twice: model.vision_sampler_layers.2.layers.0.proj_context.weight and"):
        build("sva", **OPTIONS).insertion(0).load_original({**one, **two})


def test_weights_that_do_not_fit_are_refused_by_name():
    weights = {name: value for name, value in original_weights(4).items() if "sampler" in name}
    weights.pop("model.vision_sampler_layers.1.layers.0.cross_attn.v_proj_1.0.bias")
    weights["model.vision_sampler_layers.1.layers.0.gate"] = torch.zeros(1)
    with pytest.raises(ValueError) as caught:
        build("sva", **OPTIONS).insertion(0).load_original(weights)
    for name in ("v_proj_1.0.bias", "layers.0.gate", "pos_embed_0"):
        assert name in str(caught.value)
    with pytest.raises(ValueError, match="mm_projector_aux_1.3.bias"):
        build("sva", **OPTIONS).load_original({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, "type: none"),
        ({"num_heads": 5}, "5 heads cannot share a width of 12"),
        ({"positions": 0}, "positions is at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("sva", **{**OPTIONS, **options})
