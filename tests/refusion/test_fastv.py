"""FastV in real decoder classes: the kept set by brute force, what is left against a masked decoder, caches, training, refusals."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.refusion import test_attach
from tests.refusion.pruning import (
    DEPTH,
    ROWS,
    TOLERANCE,
    K,
    at,
    batch,
    brute_force,
    dropping,
    language_model,
    last_valid,
    masked_logits,
    places_of,
    plain,
    prefill,
    state_of,
)
from tests.refusion.scene import T, build
from vision_remember.refusion import Shortening
from vision_remember.refusion.attach import attach

# gemma3 has sliding windows and is refused.
every_family = pytest.mark.parametrize("family", [name for name in test_attach.FAMILIES if name != "gemma3"])
every_side = pytest.mark.parametrize("side", ["left", "right"])


@torch.no_grad()
@every_family
@every_side
def test_the_kept_set_is_that_of_brute_force_for_every_row_of_a_padded_batch(family, side):
    embeds, valid, vision = batch(side)
    for ratio in (0.5, 0.75, 0.9):
        state = state_of(valid, vision)
        prefill(dropping(family, drop_ratio=ratio), embeds, valid, state)
        assert places_of(state) == brute_force(plain(family), embeds, valid, vision, ratio)
        assert state.places.shape[1] == max(map(len, places_of(state))) < T


@torch.no_grad()
@every_family
@every_side
def test_what_is_left_says_what_a_decoder_says_that_may_not_look_at_the_rest(family, side):
    embeds, valid, vision = batch(side)
    kept = brute_force(plain(family), embeds, valid, vision)
    found = prefill(dropping(family), embeds, valid, state_of(valid, vision))
    expected = masked_logits(plain(family), embeds, valid, kept)
    assert (at(found, kept) - at(expected, kept)).abs().max() <= TOLERANCE
    assert found.shape == expected.shape
    dropped = [[place for place in range(T) if place not in row] for row in kept]
    assert not at(found, dropped).any(), "what was dropped has nothing to say"


@torch.no_grad()
@every_family
def test_the_layers_and_caches_above_the_drop_are_really_shorter(family):
    embeds, valid, vision = batch("left")
    model, state, cache = dropping(family), state_of(valid, vision), DynamicCache()
    lengths = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    prefill(model, embeds, valid, state, past_key_values=cache, use_cache=True)
    left = state.places.shape[1]
    assert lengths == [T] * K + [left] * (DEPTH - K) and left < T
    assert [layer.keys.shape[2] for layer in cache.layers] == lengths


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "side", "attention", "with_config"),
    [("qwen2", "left", "sdpa", True), ("llama", "left", "eager", False), ("qwen3", "right", "sdpa", False)],
)
def test_decoding_on_the_pruned_cache_equals_a_masked_reference(family, side, attention, with_config):
    steps = 3 if side == "left" else 1
    embeds, valid, vision = batch(side, extra=steps)
    model, state = dropping(family), state_of(valid, vision)
    model.set_attn_implementation(attention)
    cache = DynamicCache(config=model.config) if with_config else DynamicCache()
    kept = brute_force(plain(family), embeds[:, :T], valid, vision)
    logits, length = [prefill(model, embeds, valid, state, past_key_values=cache, use_cache=True)], T
    while length < T + steps:
        valid = torch.nn.functional.pad(valid, (0, 1), value=True)
        step = {"inputs_embeds": embeds[:, length : length + 1], "attention_mask": valid.long()}
        given = (
            {"refusion": Shortening()} if length % 2 else {}
        )  # what only spares the upper layers making their own mask
        logits.append(model(**step, past_key_values=cache, use_cache=True, **given).logits)
        length += 1
    kept = [[*row, *range(T, length)] for row in kept]
    expected = masked_logits(plain(family), embeds, valid, kept)
    assert (at(torch.cat(logits, 1), kept) - at(expected, kept)).abs().max() <= TOLERANCE


@torch.no_grad()
@every_family
def test_dropping_nothing_changes_no_logit_by_one_bit(family):
    embeds, _, vision = batch("left")
    everything = torch.ones_like(vision)
    expected = language_model(family)(inputs_embeds=embeds, use_cache=False).logits
    found = dropping(family, drop_ratio=0.0)
    assert torch.equal(
        found(inputs_embeds=embeds, refusion=state_of(everything, vision), use_cache=False).logits, expected
    )
    assert torch.equal(found(inputs_embeds=embeds, use_cache=False).logits, expected)


@torch.no_grad()
def test_a_row_says_in_a_batch_what_it_says_alone():
    embeds, valid, vision = batch("left")
    together = prefill(dropping(), embeds, valid, state_of(valid, vision))
    for row, (_, length) in enumerate(ROWS):
        own = slice(T - length, T)
        state = state_of(valid[row : row + 1, own], vision[row : row + 1, own])
        alone = dropping()(inputs_embeds=embeds[row : row + 1, own], refusion=state, use_cache=False).logits
        torch.testing.assert_close(together[row, own], alone[0], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_row_of_padding_alone_disturbs_nobody():
    embeds, valid, vision = batch("left")
    expected = prefill(dropping(), embeds, valid, state_of(valid, vision))
    empty = torch.zeros(1, T, dtype=torch.bool)
    state = Shortening(
        valid=torch.cat([valid, empty]),
        vision=torch.cat([vision, empty]),
        asking=torch.cat([last_valid(valid), torch.tensor([0])]),
    )
    found = prefill(dropping(), torch.cat([embeds, embeds[:1]]), state.valid, state)
    torch.testing.assert_close(found[:-1], expected, atol=TOLERANCE, rtol=0)
    assert not found[-1].any()


@torch.no_grad()
def test_hidden_states_are_recorded_as_they_are():
    embeds, valid, vision = batch("left")
    model, state = dropping(), state_of(valid, vision)
    out = model(inputs_embeds=embeds, attention_mask=valid.long(), refusion=state, output_hidden_states=True)
    lengths = [hidden.shape[1] for hidden in out.hidden_states]
    assert lengths == [T] * K + [state.places.shape[1]] * (DEPTH - K) + [T]


@torch.no_grad()
def test_of_equal_scores_the_lower_position_stays_and_halves_round_to_even():
    drop = build("fastv").insertion(1)
    vision = torch.ones(2, 7, dtype=torch.bool)
    vision[1, 5:] = False
    received = torch.tensor([[0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1], [0.2] * 7])
    state = Shortening(valid=torch.ones_like(vision), vision=vision, asking=torch.tensor([6, 6]), received=received)
    drop(torch.zeros(2, 7, 4), state, 1)
    assert places_of(state) == [[0, 1, 3, 5], [0, 1, 5, 6]]  # 3.5 rounds to 4, 2.5 to 2


@every_family
def test_training_goes_through_the_drop_with_and_without_checkpointing(family):
    embeds, valid, vision = batch("right")
    gradients = {}
    for checkpointing in (False, True):
        model, given = dropping(family), embeds.clone().requires_grad_()
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        state = state_of(valid, vision)
        prefill(model, given, valid, state, use_cache=False).square().sum().backward()
        gradients[checkpointing] = {"embeds": given.grad, **{name: p.grad for name, p in model.named_parameters()}}
        assert places_of(state) == brute_force(plain(family), embeds, valid, vision)
    for name, gradient in gradients[False].items():
        if gradient is not None:
            assert torch.equal(gradient, gradients[True][name]), name
    assert (gradients[False]["embeds"].abs().sum(-1) > 0)[valid].all(), "also what was dropped was seen below"


def test_gradients_are_those_of_a_masked_decoder():
    embeds, valid, vision = batch("right")
    kept, found = brute_force(plain(), embeds, valid, vision), []
    for logits in (
        lambda given: prefill(dropping(), given, valid, state_of(valid, vision)),
        lambda given: masked_logits(plain(), given, valid, kept),
    ):
        given = embeds.clone().requires_grad_()
        at(logits(given), kept).square().mean().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found, atol=TOLERANCE, rtol=1e-5)


@torch.no_grad()
def test_calls_do_not_see_each_other_and_copies_answer_the_same():
    embeds, valid, vision = batch("left")
    model = dropping()
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    expected = prefill(model, embeds, valid, state_of(valid, vision))
    prefill(model, embeds.flip(0), valid.flip(0), state_of(valid.flip(0), vision.flip(0)))
    assert torch.equal(prefill(model, embeds, valid, state_of(valid, vision)), expected)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    torch.testing.assert_close(prefill(other, embeds, valid, state_of(valid, vision)), expected, atol=TOLERANCE, rtol=0)
    assert model.config._attn_implementation == "sdpa"


def test_caches_that_cannot_get_shorter_and_second_prompts_are_refused():
    embeds, valid, vision = batch("left")
    model = dropping()
    static = StaticCache(config=model.config, max_cache_len=64)
    with pytest.raises(ValueError, match="a StaticCache cannot; use the default dynamic cache"):
        prefill(model, embeds, valid, state_of(valid, vision), past_key_values=static)
    cache = DynamicCache()
    model(inputs_embeds=embeds[:, :5], past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="already holds 5 tokens.*in one call"):
        model(inputs_embeds=embeds[:, :T], past_key_values=cache, refusion=state_of(valid, vision))


def test_a_decoder_with_sliding_windows_is_refused():
    model = test_attach.language_model(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match="Qwen2Model has layers with a sliding window.*FastV.*use another LLM"):
        attach(model, build("fastv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full_layers": 0}, f"full_layers is 0, the decoder has {DEPTH} layers.*use 1 to {DEPTH - 1}"),
        ({"full_layers": DEPTH}, f"full_layers is {DEPTH}, the decoder has {DEPTH} layers"),
        ({"drop_ratio": 1.5}, "from 0 to 1, got 1.5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("fastv", **options)
