"""The shortening of one call: what every method that drops tokens must do with it, and how the cache remembers it."""

import pytest
import torch
from transformers import DynamicCache

from tests.refusion.pruning import (
    ROWS,
    TOLERANCE,
    batch,
    brute_force,
    dropping,
    language_model,
    masked_logits,
    plain,
    prefill,
    state_of,
)
from tests.refusion.scene import BACKBONES, T, build, variants, vision_mask
from vision_remember import plugins
from vision_remember.refusion import Shortening

DROPPING = [options for options in variants() if build(options["type"]).drops_after is not None]
LAST = 18  # the last position that holds a token; one of padding follows

everyone = pytest.mark.parametrize("options", DROPPING, ids=lambda options: options["type"])


def made_up():
    """A prompt of three rows: one image, text alone, two images; what the asking token looks at is made up."""
    valid = torch.ones(3, T, dtype=torch.bool)
    valid[:, LAST + 1 :] = False
    received = torch.rand(3, T, generator=torch.Generator().manual_seed(5))
    return Shortening(valid=valid, vision=vision_mask(), asking=torch.full((3,), LAST), received=received)


def run(options, hidden, given):
    """The insertions of a method, one after the other: the short sequence between them, and the long one at the end."""
    refusion = build(**{"name": options["type"], **{key: value for key, value in options.items() if key != "type"}})
    first, *others = refusion.layers
    assert refusion.drops_after == first and BACKBONES.decoder_layers - 1 in others
    short, passed_on = refusion.insertion(first)(hidden, given, first)
    assert passed_on is given
    out = short
    for layer in others:
        out, passed_on = refusion.insertion(layer)(out, given, layer)
        assert passed_on is given
    return short, out


def hidden_states(dtype=torch.float32):
    return torch.randn(3, T, BACKBONES.text_width, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_the_room_has_such_a_method():
    assert {options["type"] for options in DROPPING} <= set(plugins.names("refusion")) and DROPPING


@everyone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_stays_some_vision_tokens_go_and_the_rest_comes_back_where_it_was(options, dtype):
    hidden, given = hidden_states(dtype), made_up()
    before = hidden.clone()
    short, out = run(options, hidden, given)
    assert torch.equal(hidden, before) and short.dtype is out.dtype is dtype
    assert short.shape[1] == given.places.shape[1] < T and out.shape == hidden.shape
    stayed = torch.zeros(3, T, dtype=torch.bool)
    for row, places in enumerate(given.places.tolist()):
        places = [place for place in places if place >= 0]
        assert places == sorted(places)
        stayed[row, places] = True
    assert stayed[given.valid & ~given.vision].all() and not stayed[~given.valid].any()
    assert 0 < (stayed & given.vision).sum() < given.vision.sum()
    assert torch.equal(out, hidden * stayed[..., None])


@everyone
def test_rows_choose_for_themselves(options):
    hidden, given = hidden_states(), made_up()
    _, together = run(options, hidden, given)
    for row in range(3):
        own = {name: value[row : row + 1] for name, value in vars(made_up()).items() if value is not None}
        _, alone = run(options, hidden[row : row + 1], Shortening(**own))
        assert torch.equal(alone[0], together[row])


@everyone
def test_text_alone_and_decoding_are_left_as_they_are(options):
    hidden = hidden_states()
    for given in (Shortening(), Shortening(valid=torch.ones(3, T, dtype=torch.bool))):
        short, out = run(options, hidden, given)
        assert torch.equal(short, hidden) and torch.equal(out, hidden) and given.places is None


@everyone
def test_gradients_reach_what_stayed_and_nothing_else(options):
    hidden, given = hidden_states().requires_grad_(), made_up()
    _, out = run(options, hidden, given)
    out.sum().backward()
    assert torch.equal(hidden.grad != 0, out.detach() != 0)


@torch.no_grad()
def test_a_second_turn_of_text_continues_on_the_pruned_cache_padding_included():
    turn = 4
    embeds, valid, vision = batch("left", extra=turn)
    model, cache = dropping(), DynamicCache()
    kept = brute_force(plain(), embeds[:, :T], valid, vision)
    prefill(model, embeds, valid, state_of(valid, vision), past_key_values=cache, use_cache=True)
    new = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    valid = torch.cat([valid, new], 1)
    found = model(
        inputs_embeds=embeds[:, T:], attention_mask=valid.long(), past_key_values=cache, refusion=Shortening(valid=new)
    ).logits
    kept = [[*row, *(T + new[number].nonzero().flatten()).tolist()] for number, row in enumerate(kept)]
    expected = masked_logits(plain(), embeds, valid, kept)[:, T:]
    assert (found - expected)[new].abs().max() <= TOLERANCE


@torch.no_grad()
def test_the_cache_follows_when_rows_are_reordered_repeated_selected_and_cut():
    embeds, valid, vision = batch("left", extra=2)

    def continued(change, rows):
        model, cache = dropping(), DynamicCache()
        prefill(model, embeds, valid, state_of(valid, vision), past_key_values=cache, use_cache=True)
        change(model, cache)
        step = {"inputs_embeds": embeds[rows, T : T + 1], "past_key_values": cache, "use_cache": True}
        return model(**step, attention_mask=torch.nn.functional.pad(valid[rows], (0, 1), value=True).long()).logits

    def one_step_and_back(model, cache):
        new = torch.tensor([[True], [False], [True], [False]])  # two rows are at their end
        step = {"inputs_embeds": embeds[:, T + 1 :], "attention_mask": torch.cat([valid, new], 1).long()}
        model(**step, past_key_values=cache, use_cache=True, refusion=Shortening(valid=new))
        cache.crop(-1)

    every = torch.arange(len(ROWS))
    expected = continued(lambda *_: None, every)
    moves = {
        (3, 1, 0, 2): lambda _, cache: cache.reorder_cache(torch.tensor([3, 1, 0, 2])),
        (2, 0): lambda _, cache: cache.batch_select_indices(torch.tensor([2, 0])),
        (0, 0, 1, 1, 2, 2, 3, 3): lambda _, cache: cache.batch_repeat_interleave(2),
        tuple(every.tolist()): one_step_and_back,
    }
    for rows, change in moves.items():
        rows = torch.tensor(rows)
        torch.testing.assert_close(continued(change, rows), expected[rows], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_cache_that_was_reset_forgets_what_was_dropped():
    embeds, valid, vision = batch("left")
    model, cache = dropping(), DynamicCache(config=language_model().config)
    prefill(model, embeds, valid, state_of(valid, vision), past_key_values=cache, use_cache=True)
    cache.reset()
    text = prefill(model, embeds, valid, Shortening(valid=valid), past_key_values=cache, use_cache=True)
    torch.testing.assert_close(text[valid], prefill(plain(), embeds, valid, None)[valid], atol=TOLERANCE, rtol=0)
    cache.reset()
    again = prefill(model, embeds, valid, state_of(valid, vision), past_key_values=cache, use_cache=True)
    assert torch.equal(again, prefill(model, embeds, valid, state_of(valid, vision)))
