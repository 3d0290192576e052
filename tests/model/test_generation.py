import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, pipeline

from tests.model.conftest import METHODS, MIXED, V1, V2, answered, ask, page, stir

PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
TOLERANCE = 2e-5  # float32 sums in another order, on logits up to 5; in float64 rows agree bit for bit


@pytest.fixture(scope="module", params=METHODS)
def model(build, request):
    return stir(build(METHODS[request.param]))


def greedy(model, inputs, **options):
    """New tokens [B, n] and their logits [B, n, vocabulary]."""
    out = model.generate(**inputs, **{**GREEDY, **options})
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def assert_same(found, expected):
    """The same tokens, and the same logits as far as both runs went before the end token."""
    (tokens, logits), (expected_tokens, expected_logits) = found, expected
    length = min(tokens.shape[1], expected_tokens.shape[1])
    assert torch.equal(tokens[:, :length], expected_tokens[:, :length])
    assert (logits[:, :length] - expected_logits[:, :length]).abs().max() <= TOLERANCE


def test_a_batch_of_eight_equals_eight_single_runs(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    assert inputs["attention_mask"].sum(1).unique().numel() > 4  # left-padded, and text-only rows among them
    tokens, logits = greedy(model, inputs)
    for row, messages in enumerate(MIXED):
        single = greedy(model, processor.apply_chat_template(messages, **PROMPT))
        assert_same((tokens[row : row + 1], logits[row : row + 1]), single)


def test_left_padding_does_not_change_the_answer(model, processor):
    inputs = processor.apply_chat_template(MIXED[0], **PROMPT)
    pad = processor.tokenizer.pad_token_id
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (32, 0), value=pad)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (32, 0))
    assert_same(greedy(model, padded), greedy(model, inputs))


def test_the_cache_does_not_change_the_answer(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    assert_same(greedy(model, inputs, use_cache=False), greedy(model, inputs))


def test_a_static_cache_does_not_change_the_answer(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    assert_same(greedy(model, inputs, cache_implementation="static", disable_compile=True), greedy(model, inputs))


def test_one_beam_per_row_is_greedy_and_more_beams_keep_rows_apart(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    together = model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
    for row, messages in enumerate(MIXED):
        single = processor.apply_chat_template(messages, **PROMPT)
        alone = model.generate(**single, **beams)[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(alone)], alone)


def test_several_answers_per_prompt_and_sampling_run(model, processor):
    inputs = processor.apply_chat_template(MIXED[2], **PROMPT)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, do_sample=True, temperature=2.0, num_return_sequences=4, max_new_tokens=6)
    assert len({tuple(row.tolist()) for row in sampled}) > 1


def test_a_placeholder_is_never_generated(model, processor):
    torch.manual_seed(0)
    inputs = processor.apply_chat_template(MIXED[0], **PROMPT)
    with torch.no_grad():
        weight = model.lm_head.weight
        kept = weight[model.config.image_token_id].clone()
        weight[model.config.image_token_id] = 10 * weight.abs().max()
        sampled = model.generate(**inputs, do_sample=True, num_return_sequences=8, max_new_tokens=8)
        weight[model.config.image_token_id] = kept
    assert not (sampled[:, inputs["input_ids"].shape[1] :] == model.config.image_token_id).any()


def test_precomputed_image_features_give_the_same_answer(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    expected = greedy(model, inputs)
    pixels = inputs.pop("pixel_values")
    features = model.get_image_features(encoder_levels=model.encode(pixels))
    assert_same(greedy(model, inputs, mm_encoder_outputs={"image": features}), expected)


def test_a_second_image_may_arrive_on_a_warm_cache(model, processor):
    first, second = ask("What?", page(1)), ask("And here?", page(2))
    whole = processor.apply_chat_template([*first, {"role": "assistant", "content": "42"}, *second], **PROMPT)
    start = processor.apply_chat_template(
        [*first, {"role": "assistant", "content": "42"}], tokenize=True, return_dict=True
    )
    cut = start["input_ids"].shape[1]
    expected = model(**whole).logits[:, cut:]
    cache = model(**start, use_cache=True).past_key_values
    rest = {"input_ids": whole["input_ids"][:, cut:], "pixel_values": whole["pixel_values"][1:]}
    found = model(**rest, attention_mask=whole["attention_mask"], past_key_values=cache).logits
    assert (found - expected).abs().max() <= TOLERANCE


def test_prefill_in_chunks_equals_prefill_at_once_where_no_image_is_cut(model, processor):
    inputs = processor.apply_chat_template([*answered("Hello", "Hi"), *ask("What?", page(1))], **PROMPT)
    ids = inputs["input_ids"][0].tolist()
    image = ids.index(processor.image_token_id)
    size = max(index for index, token in enumerate(ids[:image]) if token == processor.template.start_id)
    assert ids[size : size + 8].count(processor.image_token_id) == 4
    assert_same(greedy(model, inputs, prefill_chunk_size=size), greedy(model, inputs))


def test_a_chunk_that_cuts_an_image_is_exact_or_refused(build, processor):
    inputs = processor.apply_chat_template(ask("What?", page(1)), **PROMPT)
    start = inputs["input_ids"][0].tolist().index(processor.image_token_id)
    local = stir(build(V1))
    assert_same(greedy(local, inputs, prefill_chunk_size=start + 2), greedy(local, inputs))
    with pytest.raises(ValueError, match="holds 2 of the 4 vision tokens of image 0"):
        greedy(stir(build(V2)), inputs, prefill_chunk_size=start + 2)


def test_a_chunk_that_cuts_the_guiding_turn_is_refused(build, processor):
    inputs = processor.apply_chat_template(ask("What is the total of it all?", page(1)), **PROMPT)
    end = inputs["input_ids"][0].tolist().index(processor.image_token_id) + 5
    with pytest.raises(ValueError, match="stands apart from the opening or the end of its user turn"):
        greedy(stir(build(V2)), inputs, prefill_chunk_size=end)


@torch.no_grad()
def test_with_guidance_a_cached_image_answers_the_question_it_was_read_with(build, processor):
    model = stir(build(V2))
    first, second = (
        processor.apply_chat_template(ask(text, page(1)), **PROMPT) for text in ("What is the total?", "Which colour?")
    )
    end = first["input_ids"][0].tolist().index(processor.image_token_id) + 4
    image = {"input_ids": second["input_ids"][:, :end], "pixel_values": second["pixel_values"]}
    with pytest.raises(ValueError, match="stands apart from the opening or the end of its user turn"):
        model(**image, use_cache=True)
    cache = DynamicCache(config=model.config.text_config)
    model(**first, past_key_values=cache, use_cache=True)
    cache.crop(end - cache.get_seq_length())  # the caller's own doing, which the second call cannot see
    reused = model(input_ids=second["input_ids"][:, end:], past_key_values=cache, use_cache=True).logits[:, -1]
    assert (reused - model(**second).logits[:, -1]).abs().max() > 1e-3


def test_the_pipeline_answers(build, processor, tmp_path):
    build(V1).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    said = answer(text=MIXED[0], max_new_tokens=4, return_full_text=False)[0]["generated_text"]
    model, again = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = again.apply_chat_template(MIXED[0], **PROMPT)
    tokens, _ = greedy(model, inputs)
    assert said == again.tokenizer.decode(tokens[0, :4], skip_special_tokens=True)
    begun = {"role": "assistant", "content": [{"type": "text", "text": "one two"}]}
    turned = answer(text=[*ask("Count", page(1)), begun], max_new_tokens=2)[0]["generated_text"]
    assert turned[-1]["role"] == "assistant" and turned[-1]["content"][0]["text"].startswith("one two")
