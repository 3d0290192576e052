"""What every re-fusion method must do, for every file of the room. No method is named here."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from tests.refusion.scene import (
    BACKBONES,
    Inserted,
    T,
    V,
    build,
    features,
    hidden_states,
    memory_of,
    state_of,
    tensors_of,
    variants,
    vision_mask,
    wake,
    with_tensors,
)
from vision_remember import plugins
from vision_remember.refusion import Insertion

VARIANTS = variants()
ACTING = [options for options in VARIANTS if (built := build(options["type"])).layers and built.drops_after is None]

PER_TOKEN = ("position", "rows", "valid", "place", "image", "index", "count")


def name_of(options: dict) -> str:
    return "-".join(str(value) if key == "type" else f"{key}={value}" for key, value in options.items())


everyone = pytest.mark.parametrize("options", VARIANTS, ids=name_of)
acting = pytest.mark.parametrize("options", ACTING, ids=name_of)


def method(options):
    return build(options["type"], **{key: value for key, value in options.items() if key != "type"})


def awake(options):
    """A method and its insertions, all of whose parameters do something."""
    refusion = wake(method(options))
    return refusion, wake(Inserted(refusion))


@everyone
def test_its_options_say_all_that_shapes_it(options):
    refusion = method(options)
    kept = json.loads(json.dumps(plugins.complete("refusion", options, refusion)))
    assert {**kept, **plugins.listed(options)} == kept, "what was given stays"
    assert None not in kept.values(), "a default may change, a saved model not"
    again = method(kept)
    assert again.config == refusion.config
    assert (again.layers, again.levels) == (refusion.layers, refusion.levels)
    assert {name: x.shape for name, x in Inserted(again).state_dict().items()} == {
        name: x.shape for name, x in Inserted(refusion).state_dict().items()
    }


@everyone
def test_a_method_says_where_it_acts_and_what_it_reads(options):
    refusion = method(options)
    assert all(-1 <= layer < BACKBONES.decoder_layers for layer in refusion.layers)
    assert len(set(refusion.layers)) == len(refusion.layers)
    assert all(-BACKBONES.encoder_layers - 1 <= level <= BACKBONES.encoder_layers for level in refusion.levels)
    assert isinstance(refusion.views, tuple) and isinstance(refusion.needs_whole_images, bool)
    for field in dataclasses.fields(plugins.load("refusion", options["type"]).Config):
        assert field.kw_only


@acting
def test_the_memory_has_one_row_per_token(options):
    refusion = method(options)
    seen = features(refusion)
    memory = memory_of(refusion, seen)
    assert memory.rows.shape[:2] == memory.valid.shape[:2] == memory.place.shape[:2] == (3, V)
    assert memory.valid.dtype is torch.bool and memory.place.dtype is torch.long
    assert memory.valid.shape == memory.place.shape
    alone = memory_of(refusion, with_tensors(seen, [tensor[1:2] for tensor in tensors_of(seen)]))
    torch.testing.assert_close(alone.rows[0], memory.rows[1])


@acting
def test_only_the_rows_of_vision_tokens_change_and_the_input_stays_as_it_was(options):
    refusion, inserted = awake(options)
    hidden = hidden_states()
    given = hidden.clone()
    out = inserted(hidden, state_of(refusion))
    assert all(isinstance(child, Insertion) for child in inserted.insertions)
    assert torch.equal(hidden, given)
    assert torch.equal((out != hidden).any(-1), vision_mask())


@acting
def test_a_method_that_claims_to_start_at_zero_is_the_identity(options):
    refusion = method(options)
    if not (hasattr(refusion.config, "zero_init") and refusion.config.zero_init):
        pytest.skip("makes no such claim")
    hidden = hidden_states()
    assert torch.equal(Inserted(refusion)(hidden, state_of(refusion)), hidden)


@acting
def test_every_parameter_learns_by_the_second_step(options):
    refusion = method(options)
    both = nn.ModuleList([refusion, Inserted(refusion)]).double()  # what nothing depends on gets a gradient of rounding
    if not list(both.parameters()):
        pytest.skip("has no parameters")
    optimizer = torch.optim.SGD(both.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        state = state_of(refusion, features(refusion, torch.float64))
        both[1](hidden_states(torch.float64), state).square().sum().backward()
        optimizer.step()
    gradients = {name: parameter.grad.norm() for name, parameter in both.named_parameters()}
    rounding = 1e-12 * max(gradients.values())
    idle = {name for name, gradient in gradients.items() if gradient <= rounding}
    assert idle == {
        name for name in gradients if any(f"{part}." in f"{name}." for part in getattr(refusion, "idle", ()))
    }


@acting
def test_gradients_reach_the_text_model_and_the_encoder(options):
    refusion, inserted = awake(options)
    hidden, seen = hidden_states().requires_grad_(), features(refusion)
    leaves = [tensor.requires_grad_() for tensor in tensors_of(seen)]
    inserted(hidden, state_of(refusion, seen)).square().sum().backward()
    assert (hidden.grad.abs().sum(-1) > 0).all()
    for leaf in leaves:
        assert (leaf.grad.abs().sum((0, -1)) > 0).all(), "every patch must be seen by some token"


@acting
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_of_the_hidden_states_comes_back(options, dtype):
    refusion, inserted = (module.to(dtype) for module in awake(options))
    assert inserted(hidden_states(dtype), state_of(refusion, features(refusion, dtype))).dtype is dtype


@acting
def test_a_batch_of_text_alone_is_left_as_it_is_and_still_reaches_every_parameter(options):
    refusion, inserted = awake(options)
    hidden, state = hidden_states().requires_grad_(), state_of(refusion)
    nothing = {name: getattr(state, name)[:0] for name in PER_TOKEN}
    state = dataclasses.replace(state, **nothing, batch_row=state.batch_row[:0], guidance=state.guidance[:0])
    out = inserted(hidden, state)
    assert torch.equal(out, hidden)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in [*inserted.parameters(), *refusion.parameters()])


@acting
def test_images_may_have_any_place_in_their_call(options):
    refusion, inserted = awake(options)
    hidden, state = hidden_states(), state_of(refusion)
    out = inserted(hidden, state)
    for image, row in enumerate(state.batch_row.tolist()):
        own = (state.image == image).nonzero().squeeze(1)
        alone = {name: getattr(state, name)[own] for name in PER_TOKEN}
        alone |= {"position": alone["position"] - row * T, "image": torch.zeros_like(own)}
        guidance = state.guidance[image : image + 1]
        single = dataclasses.replace(state, **alone, batch_row=torch.zeros(1, dtype=torch.long), guidance=guidance)
        place = alone["position"]
        torch.testing.assert_close(inserted(hidden[row : row + 1], single)[0, place], out[row, place])


@acting
def test_a_chunk_that_cuts_an_image_gives_the_same_or_is_refused(options):
    refusion, inserted = awake(options)
    hidden, state = hidden_states(), state_of(refusion)
    if refusion.needs_whole_images:
        pytest.skip("such a chunk is refused by the state itself")
    whole = inserted(hidden, state)
    for part in (slice(0, V + 2), slice(V + 2, None)):
        hidden = inserted(
            hidden, dataclasses.replace(state, **{name: getattr(state, name)[part] for name in PER_TOKEN})
        )
    torch.testing.assert_close(hidden, whole)


@acting
def test_saved_weights_load_strictly_and_answer_the_same(options):
    refusion, inserted = awake(options)
    other_refusion, other = (wake(module) for module in awake(options))
    other_refusion.load_state_dict(refusion.state_dict(), strict=True)
    other.load_state_dict(inserted.state_dict(), strict=True)
    hidden = hidden_states()
    assert torch.equal(inserted(hidden, state_of(refusion)), other(hidden, state_of(other_refusion)))


@acting
def test_interleaved_calls_do_not_see_each_other(options):
    refusion, inserted = awake(options)
    hidden, state, both = hidden_states(), state_of(refusion), nn.ModuleList([refusion, inserted])
    kept = {name: set(vars(module)) for name, module in both.named_modules()}
    first = inserted(hidden, state)
    inserted(hidden.flip(1), dataclasses.replace(state, rows=state.rows.flip(0)))
    assert torch.equal(inserted(hidden, state), first)
    assert {name: set(vars(module)) for name, module in both.named_modules()} == kept


@acting
def test_padding_on_the_left_changes_nothing(options):
    refusion, inserted = (module.double() for module in awake(options))
    hidden, state = hidden_states(torch.float64), state_of(refusion, features(refusion, torch.float64))
    padded = torch.cat([torch.randn(3, 4, hidden.shape[2], dtype=torch.float64), hidden], dim=1)
    moved = dataclasses.replace(
        state,
        position=state.position // T * (T + 4) + state.position % T + 4,
        guidance=torch.nn.functional.pad(state.guidance, (4, 0)),
    )
    torch.testing.assert_close(inserted(padded, moved)[:, 4:], inserted(hidden, state), rtol=1e-12, atol=1e-12)


@acting
def test_the_graph_is_whole_under_dynamo(options):
    torch._dynamo.reset()  # it counts the graphs of one function over all options, and stops at eight
    refusion, inserted = awake(options)
    hidden, seen, state = hidden_states(), features(refusion), state_of(refusion)

    def look_again(hidden, tensors):
        memory = memory_of(refusion, with_tensors(seen, tensors))
        return inserted(hidden, dataclasses.replace(state, rows=memory.rows.flatten(0, 1)))

    compiled = torch.compile(look_again, backend="eager", fullgraph=True)
    assert torch.equal(compiled(hidden, tensors_of(seen)), look_again(hidden, tensors_of(seen)))


@everyone
def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match="has no option 'layres'"):
        build(options["type"], layres=(1,))
