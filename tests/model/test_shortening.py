"""A whole model that drops vision tokens: batches, padding, beams, what is refused, training and saving."""

import time

import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, Qwen2Config

from tests.model.conftest import MIXED, NONE, answered, ask, page
from tests.model.test_generation import GREEDY, PROMPT, TOLERANCE, assert_same, greedy
from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration
from vision_remember.model.flops import prompt_ids
from vision_remember.model.shortening import shortening_of_chunk

FASTV = {"type": "fastv", "full_layers": 2, "drop_ratio": 0.5}


@pytest.fixture(scope="module")
def model(build):
    return build(FASTV)


def lengths(cache):
    return [layer.keys.shape[2] for layer in cache.layers]


def test_a_batch_of_eight_equals_eight_single_runs(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    tokens, logits = greedy(model, inputs)
    for row, messages in enumerate(MIXED):
        single = greedy(model, processor.apply_chat_template(messages, **PROMPT))
        assert_same((tokens[row : row + 1], logits[row : row + 1]), single)


def test_left_padding_does_not_change_the_answer_and_is_dropped_too(model, processor):
    inputs = processor.apply_chat_template(MIXED[2], **PROMPT)
    padded = {
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (32, 0), value=processor.tokenizer.pad_token_id),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (32, 0)),
        "pixel_values": inputs["pixel_values"],
    }
    assert_same(greedy(model, padded), greedy(model, inputs))
    length = inputs["input_ids"].shape[1]
    assert lengths(model(**padded, use_cache=True).past_key_values) == [length + 32] * 2 + [length - 4] * 2


def test_it_answers_otherwise_than_without_dropping(build, model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    (_, dropped), (_, whole) = greedy(model, inputs), greedy(build(NONE), inputs)
    differs = (dropped[:, 0] - whole[:, 0]).abs().amax(-1) > 100 * TOLERANCE
    assert torch.equal(differs, (inputs["input_ids"] == processor.image_token_id).any(1)), "rows of text alone do not"


def test_beams_keep_rows_apart_and_one_beam_is_greedy(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    together = model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
    for row, messages in enumerate(MIXED):
        single = processor.apply_chat_template(messages, **PROMPT)
        alone = model.generate(**single, **beams)[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(alone)], alone)


def test_precomputed_image_features_give_the_same_answer(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    expected = greedy(model, inputs)
    features = model.get_image_features(encoder_levels=model.encode(inputs.pop("pixel_values")))
    assert features.deepstack_features is None
    assert_same(greedy(model, inputs, mm_encoder_outputs={"image": features}), expected)


def test_the_loss_of_an_answer_sees_what_decoding_it_sees(model, processor):
    """Teacher-forced with labels, the token before the answer asks, so that an answer cannot choose what it is read from."""
    chat = answered("What is the total of it all?", "42 euros", page(1), page(2))
    encoding = processor.encode(chat)
    batch = processor.pad([encoding], side="right")
    start = encoding.target.index(True)
    whole = model(**batch).logits[0, start - 1 :]
    prompt = {"input_ids": batch["input_ids"][:, :start], "pixel_values": batch["pixel_values"]}
    out = model(**prompt, use_cache=True)
    steps = [out.logits[0, -1:]]
    for place in range(start, batch["input_ids"].shape[1]):
        ids = batch["input_ids"][:, place : place + 1]
        steps.append(model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True).logits[0])
    assert (whole - torch.cat(steps)).abs().max() <= TOLERANCE


def test_the_token_that_asks_is_the_last_or_the_one_before_the_first_answer_after_the_images():
    vision = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]])
    answers = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0]]).bool()
    asking = [shortening_of_chunk(vision, mask, given, has_images=True).asking for given in (None, answers)]
    assert asking[0].tolist() == [5, 7, 3]
    assert asking[1].tolist()[:2] == [3, 6]


def test_a_training_step_learns_through_the_drop(build, processor):
    model = build(FASTV).train()
    chats = [answered("What is the total?", "42", page(1)), answered("Compare", "Equal", page(2), page(3))]
    batch = processor.pad([processor.encode(chat) for chat in chats], side="right")
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    grads = [p.grad for _, p in model.parts()["projector"]]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    text = processor.pad([processor.encode(answered("Hello", "Hi there"))], side="right")
    model(**text, use_cache=False).loss.backward()


def test_a_saved_model_answers_the_same(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = processor.apply_chat_template(MIXED[:3], **PROMPT)
    assert_same(greedy(loaded, inputs), greedy(model, inputs))
    assert not model.parts()["refusion"], "there is nothing to train"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunk_size": 8}, "fastv .* cannot generate with prefill_chunk_size=8"),
        ({"cache_implementation": "static"}, "cannot generate with cache_implementation='static'"),
        ({"cache_implementation": "quantized"}, "cannot generate with cache_implementation='quantized'"),
        ({"use_cache": False}, "cannot generate with use_cache=False"),
        ({"prompt_lookup_num_tokens": 2}, "cannot generate with assisted decoding"),
    ],
)
def test_ways_of_generating_that_would_drop_otherwise_are_refused_by_name(model, processor, options, message):
    inputs = processor.apply_chat_template(MIXED[0], **PROMPT)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, **GREEDY, **options)


def test_an_image_on_a_warm_cache_and_a_mask_of_another_kind_are_refused(model, processor):
    inputs = processor.apply_chat_template(MIXED[0], **PROMPT)
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="already holds .* tokens"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], past_key_values=cache)
    with pytest.raises(ValueError, match=r"reads an attention_mask \[B, T\], got \[1, 1, 3, 3\]"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"], attention_mask=torch.ones(1, 1, 3, 3))


def test_a_later_question_continues_on_the_pruned_cache(model, processor):
    first = ask("What?", page(1))
    start = processor.apply_chat_template(first, **PROMPT)
    rest = processor.tokenizer("And which colour is it?", return_tensors="pt").input_ids
    out = model(**start, use_cache=True)
    before = lengths(out.past_key_values)
    at_once = model(input_ids=rest, past_key_values=out.past_key_values, use_cache=True).logits
    assert lengths(out.past_key_values) == [length + rest.shape[1] for length in before]
    out = model(**start, use_cache=True)
    one_by_one = [
        model(input_ids=rest[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True).logits
        for i in range(rest.shape[1])
    ]
    assert (at_once - torch.cat(one_by_one, 1)).abs().max() <= TOLERANCE


@pytest.mark.slow
@torch.inference_mode()
def test_prefill_of_576_vision_tokens_is_faster_than_without_dropping():
    """Measured, seconds: a random decoder of 12 layers, half of the vision tokens dropped at layer 2. ``-s`` prints the ratio."""
    shape = {"hidden_size": 256, "num_attention_heads": 8, "vocab_size": 1024, "intermediate_size": 704}
    models = {}
    for method in (NONE, FASTV):
        config = VisionRememberConfig(
            vision_config=CLIPVisionConfig(hidden_size=32, num_attention_heads=2, image_size=336, patch_size=14),
            text_config=Qwen2Config(num_hidden_layers=12, num_key_value_heads=2, **shape),
            projector={"type": "mlp"},
            refusion=method,
            image_token_id=9,
            turn_start_token_id=10,
            turn_end_token_id=11,
        )
        torch.manual_seed(0)
        models[method["type"]] = VisionRememberForConditionalGeneration(config).eval()
    ids = prompt_ids(config, 50)
    levels = torch.randn(1, len(models["none"].encoder_level_indices), 576, 32)
    seconds = {name: [] for name in models}
    for _ in range(6):  # in turns, so that a busy machine is busy for both; the first of each warms up
        for name, model in models.items():
            begin = time.perf_counter()
            model(input_ids=ids, encoder_levels=levels, use_cache=True, logits_to_keep=1)
            seconds[name].append(time.perf_counter() - begin)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    ratio = best["none"] / best["fastv"]
    print(
        f"\nprefill of {ids.shape[1]} tokens, best of 5: none {best['none']:.3f} s, fastv {best['fastv']:.3f} s, {ratio:.2f}x"
    )
    assert ratio > 1
