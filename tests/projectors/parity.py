"""How a projector is held against its original: same weights under the original's names, outputs and gradients compared.

The original is written once more in each test file, plainly, as a function of its named weights; loops are welcome. Everything runs
in float64, so that a difference is a mistake and not rounding.
"""

import re

import pytest
import torch

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.projectors import build_projector

# Patches and tokens: square, wide, tall, and three that do not divide.
GRIDS = [
    (Grid(6, 6), Grid(3, 3)),
    (Grid(4, 6), Grid(2, 3)),
    (Grid(6, 2), Grid(2, 2)),
    (Grid(5, 7), Grid(3, 3)),
    (Grid(7, 4), Grid(2, 3)),
    (Grid(5, 5), Grid(3, 2)),
]


def draw(shapes, seed=0):
    """Random weights in float64, small enough for no activation to saturate."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.4 + 0.1
        for name, shape in shapes.items()
    }


def see(levels, grid, width, batch=2, seed=1, **valid):
    """Random features in float64."""
    generator = torch.Generator().manual_seed(seed)
    maps = {i: torch.randn(batch, grid.num_cells, width, generator=generator, dtype=torch.float64) for i in levels}
    return VisionFeatures(levels=maps, grid=grid, **valid)


def bins(fine, coarse):
    """The patches of every token, by floor and ceiling."""
    for row in range(coarse.height):
        for column in range(coarse.width):
            top, bottom = row * fine.height // coarse.height, -(-(row + 1) * fine.height // coarse.height)
            left, right = column * fine.width // coarse.width, -(-(column + 1) * fine.width // coarse.width)
            yield [h * fine.width + w for h in range(top, bottom) for w in range(left, right)]


def layer_norm(x, weight, bias, eps):
    return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def silu(x):
    return x / (1 + torch.exp(-x))


def mlp(x, weights, first, second, activation=gelu):
    """Two linears by the names of their layers."""
    inner = activation(x @ weights[f"{first}.weight"].T + weights[f"{first}.bias"])
    return inner @ weights[f"{second}.weight"].T + weights[f"{second}.bias"]


def packed_attention(query, keys, values, weights, name, num_heads):
    """One query over its keys with the weights of ``nn.MultiheadAttention``, head by head."""
    (wq, wk, wv), (bq, bk, bv) = weights[f"{name}.in_proj_weight"].chunk(3), weights[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = wq @ query + bq, keys @ wk.T + bk, values @ wv.T + bv
    seen = []
    for head in torch.arange(len(q)).chunk(num_heads):
        weight = torch.exp(k[:, head] @ q[head] / len(head) ** 0.5)
        seen.append(weight / weight.sum() @ v[:, head])
    return weights[f"{name}.out_proj.weight"] @ torch.cat(seen) + weights[f"{name}.out_proj.bias"]


def agrees(options, shapes, plain, grid, feature_width, text_width, *, fixed=None, num_tokens=None, valid=None):
    """Asserts that a projector with the weights of its original is its original, in outputs and in every gradient.

    Args:
        options: Of the projector.
        shapes: Original name -> shape.
        plain: ``plain(weights, features) -> tokens float[B, V, D]``.
        fixed: Original name -> tensor that does not learn.
        num_tokens: As ``forward`` takes it.
        valid: Of the features.
    """
    torch.manual_seed(0)
    ours, twin = (
        build_projector(**options, feature_width=feature_width, text_width=text_width).double() for _ in range(2)
    )
    weights, fixed = draw(shapes), fixed or {}
    ours.load_original({**weights, **fixed})
    tokens, gradients = [], []
    for run in ("ours", "plain"):
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        seen = see(ours.levels, grid, feature_width, valid=valid)
        for level in seen.levels.values():
            level.requires_grad_()
        out = ours(seen, num_tokens) if run == "ours" else plain({**leaves, **fixed}, seen)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out))
        if run == "ours":
            found = {name: parameter.grad for name, parameter in ours.named_parameters()}
        else:  # the plain gradients, brought to our names the way weights are
            twin.load_original({**{name: leaf.grad for name, leaf in leaves.items()}, **fixed})
            found = dict(twin.named_parameters())
        tokens.append(out.detach())
        gradients.append({**found, **{index: level.grad for index, level in seen.levels.items()}})
    torch.testing.assert_close(*tokens, rtol=1e-9, atol=1e-9)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name].detach(), rtol=1e-8, atol=1e-9, msg=f"gradient of {name}"
        )


def loads_strictly(options, shapes, feature_width, text_width, *, prefixes, fixed=None):
    """Asserts that the original's weights load with and without a prefix, and that every other dictionary is refused by name."""
    torch.manual_seed(0)
    ours = build_projector(**options, feature_width=feature_width, text_width=text_width)
    weights = {**draw(shapes), **(fixed or {})}
    for prefix in ("", *prefixes):
        for parameter in ours.parameters():
            torch.nn.init.constant_(parameter, -7.0)
        ours.load_original({prefix + name: weight for name, weight in weights.items()})
        assert all((parameter != -7.0).all() for parameter in ours.parameters())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    prefix = prefixes[0]
    named = {prefix + name: weight + 1 for name, weight in weights.items()}
    for name in shapes:
        without = {key: weight for key, weight in named.items() if key != prefix + name}
        told = prefix + name if without else name  # where no name is left, no prefix is known
        with pytest.raises(ValueError, match=rf"missing: {re.escape(told)}$"):
            ours.load_original(without)
        wrong = torch.zeros(*shapes[name], 2)
        with pytest.raises(ValueError, match=rf"misshapen: {re.escape(f'{prefix}{name} is {list(wrong.shape)}')}"):
            ours.load_original({**named, prefix + name: wrong})
    with pytest.raises(ValueError, match="unexpected: lm_head.weight, other"):
        ours.load_original({**named, "lm_head.weight": torch.zeros(1), "other": torch.zeros(1)})
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} changed although the weights were refused"
