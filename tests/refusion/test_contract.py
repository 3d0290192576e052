"""What every re-fusion method must do, for every file of the room. No method is named here."""

import dataclasses

import pytest
import torch

from tests.refusion.scene import (
    BACKBONES,
    COARSE,
    T,
    V,
    build,
    features,
    hidden_states,
    state_of,
    variants,
    vision_mask,
    wake,
)
from vision_remember import plugins
from vision_remember.refusion import Insertion

VARIANTS = variants()
ACTING = [options for options in VARIANTS if build(options["type"]).layers]


def name_of(options: dict) -> str:
    return "-".join(str(value) if key == "type" else f"{key}={value}" for key, value in options.items())


everyone = pytest.mark.parametrize("options", VARIANTS, ids=name_of)
acting = pytest.mark.parametrize("options", ACTING, ids=name_of)


def method(options):
    return build(options["type"], **{key: value for key, value in options.items() if key != "type"})


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
    memory = refusion.memory(features(refusion), COARSE)
    assert memory.rows.shape[:2] == memory.valid.shape[:2] == memory.place.shape[:2] == (3, V)
    assert memory.valid.dtype is torch.bool and memory.place.dtype is torch.long
    assert memory.valid.shape == memory.place.shape
    alone = refusion.memory(
        dataclasses.replace(features(refusion), levels={i: x[1:2] for i, x in features(refusion).levels.items()}),
        COARSE,
    )
    torch.testing.assert_close(alone.rows[0], memory.rows[1])


@acting
def test_only_the_rows_of_vision_tokens_change_and_the_input_stays_as_it_was(options):
    refusion = method(options)
    child, hidden, state = wake(refusion.insertion(0)), hidden_states(), state_of(refusion)
    assert isinstance(child, Insertion)
    given = hidden.clone()
    out, passed_on = child(hidden, state, 0)
    assert torch.equal(hidden, given) and passed_on is state
    changed = (out != hidden).any(-1)
    assert torch.equal(changed, vision_mask())


@acting
def test_a_method_that_claims_to_start_at_zero_is_the_identity(options):
    refusion = method(options)
    if not (hasattr(refusion.config, "zero_init") and refusion.config.zero_init):
        pytest.skip("makes no such claim")
    hidden = hidden_states()
    for layer in refusion.layers:
        assert torch.equal(refusion.insertion(layer)(hidden, state_of(refusion), layer)[0], hidden)


@acting
def test_every_parameter_learns_by_the_second_step(options):
    refusion = method(options)
    child, hidden, state = refusion.insertion(0), hidden_states(), state_of(refusion)
    parameters = [*child.named_parameters(), *refusion.named_parameters()]
    optimizer = torch.optim.SGD([parameter for _, parameter in parameters], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        child(hidden, state, 0)[0].square().sum().backward()
        optimizer.step()
    for name, parameter in parameters:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@acting
def test_gradients_reach_the_text_model_and_the_encoder(options):
    refusion = method(options)
    child, hidden, seen = wake(refusion.insertion(0)), hidden_states().requires_grad_(), features(refusion)
    for level in seen.levels.values():
        level.requires_grad_()
    child(hidden, state_of(refusion, seen), 0)[0].square().sum().backward()
    assert (hidden.grad.abs().sum(-1) > 0).all()
    for level in seen.levels.values():
        assert (level.grad.abs().sum((0, 2)) > 0).all(), "every patch must be seen by some token"


@acting
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_of_the_hidden_states_comes_back(options, dtype):
    refusion = method(options).to(dtype)
    child = wake(refusion.insertion(0).to(dtype))
    assert child(hidden_states(dtype), state_of(refusion, features(refusion, dtype)), 0)[0].dtype is dtype


@acting
def test_a_batch_of_text_alone_is_left_as_it_is_and_still_reaches_every_parameter(options):
    refusion = method(options)
    child, hidden, state = wake(refusion.insertion(0)), hidden_states(), state_of(refusion)
    per_token = ("position", "rows", "valid", "place", "image", "index", "count")
    nothing = {name: getattr(state, name)[:0] for name in per_token}
    state = dataclasses.replace(state, **nothing, batch_row=state.batch_row[:0], guidance=state.guidance[:0])
    out, _ = child(hidden, state, 0)
    assert torch.equal(out, hidden)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in child.parameters())


@acting
def test_saved_weights_load_strictly_and_answer_the_same(options):
    refusion = method(options)
    child, other = wake(refusion.insertion(0)), wake(wake(refusion.insertion(0)))
    other.load_state_dict(child.state_dict(), strict=True)
    hidden, state = hidden_states(), state_of(refusion)
    assert torch.equal(child(hidden, state, 0)[0], other(hidden, state, 0)[0])


@acting
def test_interleaved_calls_do_not_see_each_other(options):
    refusion = method(options)
    child, hidden, state = wake(refusion.insertion(0)), hidden_states(), state_of(refusion)
    kept = {name: set(vars(module)) for name, module in child.named_modules()}
    first, _ = child(hidden, state, 0)
    child(hidden.flip(1), dataclasses.replace(state, rows=state.rows.flip(0)), 0)
    assert torch.equal(child(hidden, state, 0)[0], first)
    assert {name: set(vars(module)) for name, module in child.named_modules()} == kept


@acting
def test_padding_on_the_left_changes_nothing(options):
    refusion = method(options)
    child, hidden, state = wake(refusion.insertion(0).double()), hidden_states(torch.float64), state_of(refusion)
    state = dataclasses.replace(state, rows=state.rows.double())
    padded = torch.cat([torch.randn(3, 4, hidden.shape[2], dtype=torch.float64), hidden], dim=1)
    moved = dataclasses.replace(
        state,
        position=state.position // T * (T + 4) + state.position % T + 4,
        guidance=torch.nn.functional.pad(state.guidance, (4, 0)),
    )
    torch.testing.assert_close(child(padded, moved, 0)[0][:, 4:], child(hidden, state, 0)[0], rtol=1e-12, atol=1e-12)


@acting
def test_the_graph_is_whole_under_dynamo(options):
    refusion = method(options)
    child, hidden, seen = wake(refusion.insertion(0)), hidden_states(), features(refusion)

    def look_again(hidden, levels):
        memory = refusion.memory(dataclasses.replace(seen, levels=levels), COARSE)
        return child(hidden, dataclasses.replace(state, rows=memory.rows.flatten(0, 1)), 0)[0]

    state = state_of(refusion)
    compiled = torch.compile(look_again, backend="eager", fullgraph=True)
    assert torch.equal(compiled(hidden, seen.levels), look_again(hidden, seen.levels))


@everyone
def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match="has no option 'layres'"):
        build(options["type"], layres=(1,))
