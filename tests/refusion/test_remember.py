"""Vision Remember against a plain re-derivation in loops, and the rules that it must keep."""

import dataclasses

import pytest
import torch

from tests.refusion.rederivation import by_loops, window_of
from tests.refusion.scene import (
    BACKBONES,
    COARSE,
    FINE,
    GUIDANCE,
    IMAGES,
    V,
    build,
    features,
    hidden_states,
    state_of,
    wake,
)
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.refusion import build_refusion

V1 = {}
V2 = {"bidirectional": True, "guidance": True}


def woken(**options):
    """A method, one of its layers at work, and everything in float64."""
    refusion = build("remember", **options)
    return (
        refusion.double(),
        wake(refusion.insertion(0)).double(),
        hidden_states(torch.float64),
        features(refusion, torch.float64),
    )


@pytest.mark.parametrize(
    "options",
    [
        V1,
        V2,
        {"bidirectional": True, "ffn_ratio": 0.0},
        {"margin": 1, "position_side": 3, "levels": (4, 1, -2)},
        {"num_heads": 6, "num_kv_heads": 3, "ffn_ratio": 2.5, **V2},
        {"memory_width": 0},
        {"memory_width": 20, "margin": 1, **V2},
    ],
    ids=str,
)
def test_a_layer_is_what_the_loops_say_with_its_gradients(options):
    refusion, child, hidden, seen = woken(**options)
    results = []
    for run in (lambda h: child(h, state_of(refusion, seen), 0)[0], lambda h: by_loops(refusion, child, h, seen)):
        child.zero_grad()
        refusion.zero_grad()
        leaf = hidden.clone().requires_grad_()
        out = run(leaf)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        learned = (*child.parameters(), *refusion.parameters())
        results.append((out, leaf.grad, *(parameter.grad for parameter in learned)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [V1, {**V2, "margin": 1}], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("fine", "coarse"),
    [
        (Grid(4, 4), Grid(2, 2)),
        (Grid(4, 6), Grid(2, 3)),
        (Grid(6, 2), Grid(3, 2)),
        (Grid(5, 7), Grid(2, 3)),  # from here on neither side divides
        (Grid(5, 5), Grid(2, 2)),
    ],
    ids=str,
)
def test_on_any_grids_a_layer_is_what_the_loops_say_with_all_gradients(fine, coarse, options):
    refusion, child, hidden, _ = woken(**options)
    results = []

    def ours(hidden, seen):
        return child(hidden, state_of(refusion, seen, coarse), 0)[0]

    def loops(hidden, seen):
        return by_loops(refusion, child, hidden, seen, coarse)

    for run in (ours, loops):
        child.zero_grad()
        refusion.zero_grad()
        leaf, seen = hidden.clone().requires_grad_(), features(refusion, torch.float64, grid=fine)
        levels = [level.requires_grad_() for level in seen.levels.values()]
        out = run(leaf, seen)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        results.append((out, leaf.grad, *(x.grad for x in (*levels, *child.parameters()))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [V1, {**V2, "margin": 1}], ids=str)
def test_gradients_agree_with_finite_differences(options):
    refusion, child, hidden, seen = woken(**options, num_heads=2, num_kv_heads=1)
    parameters = {
        name: parameter for name, parameter in child.named_parameters() if "norm" in name or "position" in name
    }
    state = state_of(refusion, seen)

    def run(x, rows, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(child, named, (x, dataclasses.replace(state, rows=rows), 0))[0]

    inputs = [hidden.requires_grad_(), state.rows.clone().requires_grad_(), *parameters.values()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("margin", [0, 1])
def test_a_token_sees_its_own_window_and_no_other_patch(margin):
    refusion, child, hidden, seen = woken(margin=margin)
    for level in seen.levels.values():
        level.requires_grad_()
    out, _ = child(hidden, state_of(refusion, seen), 0)
    for image, (row, start) in enumerate(IMAGES):
        for token in range(V):
            grads = torch.autograd.grad(
                out[row, start + token].square().sum(), list(seen.levels.values()), retain_graph=True
            )
            touched = sum(grad.abs().sum(-1) for grad in grads).nonzero().tolist()
            assert touched == [[image, patch] for patch in sorted(patch for patch, *_ in window_of(token, margin))]


def test_padding_patches_are_never_seen():
    refusion, child, hidden, seen = woken(margin=1)
    valid = torch.rand(3, FINE.num_cells, generator=torch.Generator().manual_seed(3)) < 0.7
    masked = dataclasses.replace(seen, valid=valid)
    out, _ = child(hidden, state_of(refusion, masked), 0)
    other = {index: torch.where(valid[..., None], level, 100.0) for index, level in seen.levels.items()}
    assert torch.equal(child(hidden, state_of(refusion, dataclasses.replace(masked, levels=other)), 0)[0], out)
    assert not torch.equal(child(hidden, state_of(refusion, seen), 0)[0], out)


def test_the_guide_is_the_user_text_and_nothing_later():
    refusion, child, hidden, seen = woken(**V2)
    state = state_of(refusion, seen)
    out, _ = child(hidden, state, 0)
    row, start, end = GUIDANCE[0]
    later = hidden.clone()
    later[row, end:] += 1.0
    assert torch.equal(child(later, state, 0)[0][row, :end], out[row, :end])
    asked = hidden.clone()
    asked[row, start:end] += torch.randn(end - start, hidden.shape[2], dtype=torch.float64)
    moved = (child(asked, state, 0)[0] != out).any(-1)
    image_row, first = IMAGES[0]
    assert moved[image_row, first : first + V].all() and not moved[1:].any()


def test_images_are_independent_of_their_batch_and_of_each_other():
    refusion, child, hidden, seen = woken(**V2)
    state = state_of(refusion, seen)
    out, _ = child(hidden, state, 0)
    for image, (row, start) in enumerate(IMAGES):
        own = slice(image * V, (image + 1) * V)
        per_token = {name: getattr(state, name)[own] for name in ("rows", "valid", "place", "index", "count")}
        alone = dataclasses.replace(
            state,
            **per_token,
            position=torch.arange(start, start + V),
            image=torch.zeros(V, dtype=torch.long),
            batch_row=torch.zeros(1, dtype=torch.long),
            guidance=state.guidance[image : image + 1],
        )
        got, _ = child(hidden[row : row + 1], alone, 0)
        torch.testing.assert_close(got[0, start : start + V], out[row, start : start + V], rtol=1e-12, atol=1e-12)


def test_images_of_different_sizes_share_a_call():
    refusion, child, hidden, seen = woken(**V2)
    state = state_of(refusion, seen)
    kept = torch.tensor([i for i in range(3 * V) if not V + 2 <= i < 2 * V])  # image 1 has two tokens
    per_token = {name: getattr(state, name)[kept] for name in ("position", "rows", "valid", "place", "image", "index")}
    count = torch.tensor([V] * V + [2] * 2 + [V] * V)
    mixed = dataclasses.replace(state, **per_token, count=count)
    mixed.check_whole_images()
    got, _ = child(hidden, mixed, 0)
    full, _ = child(hidden, state, 0)
    torch.testing.assert_close(got[0], full[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[2, 10:16], full[2, 10:16], rtol=1e-12, atol=1e-12)
    assert not torch.equal(got[2, :2], full[2, :2])


def test_a_chunk_that_cuts_an_image_is_refused_with_both_numbers():
    refusion = build("remember", **V2)
    state = state_of(refusion)
    assert refusion.needs_whole_images and not build("remember").needs_whole_images
    state.check_whole_images()
    per_token = ("position", "rows", "valid", "place", "image", "index", "count")
    cut = dataclasses.replace(state, **{name: getattr(state, name)[: V + 2] for name in per_token})
    with pytest.raises(ValueError, match="2 of the 6 vision tokens of image 1.*larger chunks"):
        cut.check_whole_images()


def test_without_the_self_attention_a_chunk_may_cut_an_image():
    refusion, child, hidden, seen = woken()
    state = state_of(refusion, seen)
    whole, _ = child(hidden, state, 0)
    per_token = ("position", "rows", "valid", "place", "image", "index", "count")
    for part in (slice(0, V + 2), slice(V + 2, None)):
        hidden, _ = child(
            hidden, dataclasses.replace(state, **{name: getattr(state, name)[part] for name in per_token}), 0
        )
    torch.testing.assert_close(hidden, whole, rtol=1e-12, atol=1e-12)


def test_attention_weights_come_back_when_asked_for():
    refusion, child, hidden, seen = woken()
    state = state_of(refusion, seen)
    quiet, _ = child(hidden, state, 5)
    state = dataclasses.replace(state, attentions={})
    loud, _ = child(hidden, state, 5)
    weights = state.attentions[5]
    assert weights.shape == (3 * V, BACKBONES.num_heads, state.valid.shape[1])
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(loud, quiet)


def test_every_patch_of_a_window_has_a_place_of_its_own_in_the_table():
    state = state_of(build("remember"))
    assert state.place[0][state.valid[0]].unique().numel() == state.valid[0].sum()


@pytest.mark.parametrize("heads", [9, 12])
def test_nine_heads_start_at_the_nine_patches_of_a_window(heads):
    wide = dataclasses.replace(BACKBONES, num_heads=heads, num_kv_heads=3)
    refusion = build_refusion({"type": "remember", "focus": 3.0}, wide)
    place = refusion.memory(features(refusion, grid=Grid(6, 6)), Grid(2, 2)).place[0, 0]
    leans = refusion.insertion(0).cross_attention.position[place].softmax(0)  # [W, H]
    assert leans.argmax(0).tolist() == [head % 9 for head in range(heads)]
    assert leans.max(0).values.min() > 0.6


def test_without_focus_no_head_prefers_a_place():
    assert not build("remember", focus=0.0).insertion(0).cross_attention.position.any()


def test_a_module_that_is_not_zero_initialised_acts_at_once():
    refusion = build("remember", zero_init=False)
    hidden = hidden_states()
    assert not torch.equal(refusion.insertion(0)(hidden, state_of(refusion), 0)[0], hidden)


@pytest.mark.parametrize(
    ("decoder", "encoder", "layers", "levels"),
    [
        (28, 24, (-1, 8, 17), (13, 18, 23)),
        (6, 6, (-1, 1, 3), (3, 4, 5)),
        (2, 2, (-1, 0), (1,)),
        (24, 27, (-1, 7, 15), (14, 20, 25)),
    ],
)
def test_the_default_layers_and_levels_scale_with_the_backbones(decoder, encoder, layers, levels):
    backbones = dataclasses.replace(BACKBONES, decoder_layers=decoder, encoder_layers=encoder)
    refusion = build_refusion({"type": "remember"}, backbones)
    assert refusion.layers == layers and refusion.levels == levels


def test_memory_without_an_mlp_has_nothing_to_learn():
    refusion = build("remember", memory_width=0)
    assert not refusion.memory(features(refusion), COARSE).rows.requires_grad
    assert not list(refusion.parameters())


def test_tokens_that_outnumber_the_patches_are_refused():
    refusion = build("remember")
    seen = VisionFeatures(levels={index: torch.zeros(1, 4, 6) for index in refusion.levels}, grid=Grid(2, 2))
    with pytest.raises(ValueError, match="3x3.*2x2"):
        refusion.memory(seen, Grid(3, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": True}, "set bidirectional: true"),
        ({"layers": ()}, "type: none"),
        ({"levels": ()}, "type: none"),
        ({"margin": -1}, "margin is at least 0, got -1"),
        ({"position_side": 0}, "position_side is at least 1, got 0"),
        ({"num_heads": 0}, "num_heads is at least 1, got 0"),
        ({"ffn_ratio": -0.5}, "ffn_ratio is at least 0, got -0.5"),
        ({"memory_width": -1}, "memory_width is at least 0, got -1"),
        ({"num_heads": 3}, "3 attention heads cannot share 2 key heads"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("remember", **options)
