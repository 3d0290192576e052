"""Every way of generating gives what one plain forward pass says, for every method, or is refused by name.

The models run in float64, where two ways of computing the same thing agree to rounding and a wrong mask cannot hide; one test per method
repeats the main ways in float32.
"""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from tests.model.conftest import METHODS, MIXED, ask, page, stir
from vision_remember.model.batch import IGNORED_LABEL

FASTV = {"type": "fastv", "full_layers": 2, "drop_ratio": 0.5}
EVERY = METHODS | {"fastv": FASTV}
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
EXACT = 1e-6  # the models compute in float64, `generate` hands logits out in float32
TOLERANCE = 1e-5  # float32 sums in another order


@pytest.fixture(scope="module", params=EVERY)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def model(build, method):
    return stir(build(EVERY[method])).double()


def greedy(model, inputs, **options):
    out = model.generate(**inputs, **(GREEDY | options))
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def assert_same(found, expected, tolerance=EXACT):
    (tokens, logits), (expected_tokens, expected_logits) = found, expected
    length = min(tokens.shape[1], expected_tokens.shape[1])
    assert torch.equal(tokens[:, :length], expected_tokens[:, :length])
    assert (logits[:, :length] - expected_logits[:, :length]).abs().max() <= tolerance


def teacher(model, prompt, spoken):
    """Logits of one forward pass, without a cache, at the places that said `spoken long[n]` after one prompt."""
    ids = torch.cat([prompt["input_ids"], spoken[None]], dim=1)
    labels = ids.clone()
    labels[:, : prompt["input_ids"].shape[1]] = IGNORED_LABEL  # tells methods that drop tokens where the prompt ended
    images = {"pixel_values": prompt["pixel_values"]} if "pixel_values" in prompt else {}
    logits = model(input_ids=ids, labels=labels, use_cache=False, **images).logits
    return logits[0, prompt["input_ids"].shape[1] - 1 : -1]


def until_end(model, spoken):
    """The tokens of a row, the first end token included."""
    is_end = torch.isin(spoken, torch.tensor(model.generation_config.eos_token_id))
    return spoken[: int(is_end.long().argmax()) + 1] if is_end.any() else spoken


def singles(processor):
    return [processor.apply_chat_template(messages, **PROMPT) for messages in MIXED]


@torch.no_grad()
def test_greedy_tokens_are_those_of_a_forward_pass(model, processor):
    tokens, logits = greedy(model, processor.apply_chat_template(MIXED, **PROMPT))
    for row, prompt in enumerate(singles(processor)):
        spoken = until_end(model, tokens[row])
        expected = teacher(model, prompt, spoken)
        assert (logits[row, : len(spoken)] - expected).abs().max() <= EXACT
        expected[:, model.config.image_token_id] = -torch.inf
        assert torch.equal(expected.argmax(-1), spoken)


@torch.no_grad()
def test_every_beam_scores_what_a_forward_pass_gives_it(model, processor):
    """`num_return_sequences` beams of every row of a mixed batch, best first."""
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    beams = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "max_new_tokens": 5, "do_sample": False}
    out = model.generate(**inputs, **beams, return_dict_in_generate=True, output_scores=True)
    scores = out.sequences_scores.view(-1, 3)
    assert (scores[:, 0] >= scores[:, 1]).all() and (scores[:, 1] >= scores[:, 2]).all()
    found = out.sequences[:, inputs["input_ids"].shape[1] :].view(len(MIXED), 3, -1)
    for row, prompt in enumerate(singles(processor)):
        assert len({tuple(beam.tolist()) for beam in found[row]}) == 3
        for beam in range(3):
            spoken = until_end(model, found[row, beam])
            said = teacher(model, prompt, spoken).log_softmax(-1)
            assert (
                said.gather(1, spoken[:, None]).sum() - scores[row, beam]
            ).abs() <= 1e-5  # scores are kept in float32


@torch.no_grad()
def test_sampled_answers_come_from_the_logits_of_a_forward_pass(model, processor):
    inputs = processor.apply_chat_template(MIXED[:4], **PROMPT)
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 1.5, "num_return_sequences": 2}
    tokens, logits = greedy(model, inputs, **options)
    assert not torch.equal(tokens[0], tokens[1])
    for row in range(len(tokens)):
        spoken = until_end(model, tokens[row])
        expected = teacher(model, singles(processor)[row // 2], spoken)
        assert (logits[row, : len(spoken)] - expected).abs().max() <= EXACT
    torch.manual_seed(0)
    assert torch.equal(greedy(model, inputs, **options)[0], tokens)


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_chunks_of_a_mixed_batch_give_the_whole_prefill_or_are_refused_by_name(model, method, processor, size):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    refusal = {
        "v2": "attends over whole images; prefill in larger chunks|guidance reads the whole turn",
        "fastv": f"fastv .* cannot generate with prefill_chunk_size={size}",
    }
    if method in refusal:
        with pytest.raises(ValueError, match=refusal[method]):
            greedy(model, inputs, prefill_chunk_size=size)
    else:
        assert_same(greedy(model, inputs, prefill_chunk_size=size), greedy(model, inputs))


def test_a_static_cache_of_ones_own_is_as_good_or_refused_by_name(model, method, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    cache = StaticCache(config=model.config.text_config, max_cache_len=128)
    if method == "fastv":
        with pytest.raises(ValueError, match="use the default dynamic cache, no static or sliding one"):
            greedy(model, inputs, past_key_values=cache)
    else:
        assert_same(greedy(model, inputs, past_key_values=cache, disable_compile=True), greedy(model, inputs))


@torch.no_grad()
def test_a_quantised_cache_is_read_to_the_precision_of_its_bits_or_refused_by_name(build, method, processor):
    pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    model = stir(build(EVERY[method]))
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    quantised = {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 8},
    }
    if method == "fastv":
        with pytest.raises(ValueError, match="fastv .* cannot generate with cache_implementation='quantized'"):
            greedy(model, inputs, **quantised)
        return
    (tokens, found), (expected_tokens, expected) = greedy(model, inputs, **quantised), greedy(model, inputs)
    assert torch.equal(found[:, 0], expected[:, 0]) and torch.equal(tokens[:, 0], expected_tokens[:, 0])
    is_possible = expected[:, 1].isfinite()
    error = (found[:, 1] - expected[:, 1])[is_possible].square().mean().sqrt() / expected[:, 1][is_possible].std()
    # Four bits a number, four random layers: about an eighth of the logits' own spread; another prompt's cache gives more than one.
    assert 0 < error <= 0.2


def test_a_decoder_with_a_sliding_window_is_refused_by_fastv(build, backbones, processor):
    config = copy.deepcopy(build(FASTV).config.text_config)
    config.sliding_window, config.layer_types = 16, ["sliding_attention"] * 4
    cache = DynamicCache(config=config)
    inputs = processor.apply_chat_template(MIXED[0], **PROMPT)
    with pytest.raises(ValueError, match="use the default dynamic cache"):
        build(FASTV)(**inputs, past_key_values=cache, use_cache=True)


def test_a_second_turn_brings_a_new_image_to_the_cache_of_the_first(model, method, processor):
    first = processor.apply_chat_template(ask("What?", page(1), page(2)), **PROMPT)
    cache = DynamicCache(config=model.config.text_config)
    said = model.generate(**first, past_key_values=cache, max_new_tokens=4, do_sample=False)
    turn = processor.encode(ask("And here?", page(3)), add_generation_prompt=True)
    between = [processor.template.end_id, *processor.template.encode_text("\n")]
    ids = torch.cat([said, torch.tensor([between + turn.input_ids])], dim=1)
    later = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": turn.pixel_values}
    if method == "fastv":
        with pytest.raises(ValueError, match="the cache already holds .* prefill it in one call, with an empty cache"):
            greedy(model, later, past_key_values=cache)
        return
    warm = greedy(model, later, past_key_values=cache)
    everything = torch.cat([first["pixel_values"], turn.pixel_values])
    assert_same(warm, greedy(model, later | {"pixel_values": everything}))


def test_images_that_the_cache_has_seen_already_are_refused_with_both_counts(model, processor):
    first = processor.apply_chat_template(ask("What?", page(1)), **PROMPT)
    cache = DynamicCache(config=model.config.text_config)
    said = model.generate(**first, past_key_values=cache, max_new_tokens=4, do_sample=False)
    ids = torch.cat([said, said[:, -2:]], dim=1)
    with pytest.raises(ValueError, match="0 image placeholders in input_ids, 4 vision tokens given"):
        model.generate(input_ids=ids, pixel_values=first["pixel_values"], past_key_values=cache, max_new_tokens=1)


def test_prompt_lookup_and_a_text_assistant_change_nothing_or_are_refused_by_name(model, method, backbones, processor):
    inputs = processor.apply_chat_template(MIXED[3], **PROMPT)
    assistant = AutoModelForCausalLM.from_pretrained(backbones[1]).double()
    assistant.resize_token_embeddings(model.config.text_config.vocab_size)
    for help_ in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistant}):
        if method == "fastv":
            with pytest.raises(ValueError, match="fastv .* cannot generate with assisted decoding"):
                greedy(model, inputs, **help_)
        else:
            assert_same(greedy(model, inputs, **help_), greedy(model, inputs))


def test_assistants_that_would_need_the_images_are_refused_by_name(model, build, processor):
    inputs = processor.apply_chat_template(MIXED[0], **PROMPT)
    other = build(METHODS["none"]).double()
    with pytest.raises(ValueError, match="assistant_model VisionRememberForConditionalGeneration would guess without"):
        greedy(model, inputs, assistant_model=other)
    with pytest.raises(ValueError, match="assistant_early_exit would cut the decoder"):
        greedy(model, inputs, assistant_early_exit=2)


def test_right_padding_is_refused_when_generating_and_harmless_when_reading(model, processor):
    encodings = [processor.encode(messages, add_generation_prompt=True) for messages in MIXED[:3]]
    batch = processor.pad(encodings, side="right")
    batch.pop("labels")
    with pytest.raises(ValueError, match="prompt 0 of 3 is padded on the right.*pad on the left"):
        greedy(model, batch)
    with torch.no_grad():
        together = model(**batch).logits
        for row, prompt in enumerate(singles(processor)[:3]):
            alone = model(**prompt).logits[0]
            # Methods that drop tokens answer 0 where they dropped, for both alike.
            assert (together[row, : len(alone)] - alone).abs().max() <= EXACT


def test_the_main_ways_agree_in_float32_too(build, method, processor):
    model = stir(build(EVERY[method]))
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    tokens, logits = greedy(model, inputs)
    for row, prompt in enumerate(singles(processor)):
        assert_same((tokens[row : row + 1], logits[row : row + 1]), greedy(model, prompt), TOLERANCE)
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (16, 0), value=processor.template.pad_id)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (16, 0))
    assert_same(greedy(model, padded), (tokens, logits), TOLERANCE)
    ways = {} if method == "fastv" else {"use_cache": [False], "cache_implementation": ["static"]}
    ways |= {} if method in ("fastv", "v2") else {"prefill_chunk_size": [5, 11]}
    for option, values in ways.items():
        for value in values:
            assert_same(greedy(model, inputs, **{option: value}), (tokens, logits), TOLERANCE)
