import copy
import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from tests.model.conftest import METHODS, NONE, V1, V2, answered, ask, page, stir
from vision_remember.model import VisionRememberForConditionalGeneration

CHATS = [answered("What is the total?", "42 euros", page(1)), answered("Compare", "Equal", page(2), page(3))]
TEXT_ONLY = [answered("Hello", "Hi there"), answered("What is your name?", "Anna")]


def batch_of(processor, chats, side="right"):
    return processor.pad([processor.encode(chat) for chat in chats], side=side)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- identity: nothing that is attached fresh changes what the language model says, bit for bit


@pytest.fixture(scope="module")
def base_run(backbones):
    """Embeddings with padding on the left, and the logits of the untouched language model for them."""
    language_model = AutoModelForCausalLM.from_pretrained(backbones[1]).eval()
    embeds = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[1, :5] = 0
    return language_model, embeds, mask


def state_over(model, embeds):
    """A re-fusion state as if tokens 6 to 9 of both rows were an image."""
    if not model.model.refusion.layers:
        return {}
    from vision_remember.model.rows import state_of_chunk

    ids = torch.full(embeds.shape[:2], 7)
    ids[:, 5], ids[:, 6:10], ids[:, 11] = (
        model.config.turn_start_token_id,
        model.config.image_token_id,
        model.config.turn_end_token_id,
    )
    image = model.get_image_features(torch.randn(2, 3, 48, 48))
    return {"refusion": state_of_chunk(model.model, image, ids == model.config.image_token_id, ids)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", ["plain", "cache", "checkpointing"])
def test_a_fresh_model_says_what_its_language_model_says_bit_for_bit(build, base_run, method, mode):
    language_model, embeds, mask = base_run
    model = build(METHODS[method])
    inputs = {"inputs_embeds": embeds, "attention_mask": mask}
    if mode == "checkpointing":
        model.activation_checkpointing_enable()
        model.train()
    if mode == "cache":
        caches = [DynamicCache(config=language_model.config), DynamicCache(config=language_model.config)]
        first = {"inputs_embeds": embeds[:, :12], "attention_mask": mask[:, :12]}
        second = {"inputs_embeds": embeds[:, 12:], "attention_mask": mask}
        expected = [
            language_model(**part, past_key_values=caches[0], use_cache=True).logits for part in (first, second)
        ]
        hidden = [
            model.model.language_model(
                **first, **state_over(model, embeds[:, :12]), past_key_values=caches[1], use_cache=True
            ),
            model.model.language_model(**second, past_key_values=caches[1], use_cache=True),
        ]
        for part, states in zip(expected, hidden, strict=True):
            assert torch.equal(model.lm_head(states.last_hidden_state)[..., : part.shape[-1]], part)
        return
    expected = language_model(**inputs).logits
    hidden = model.model.language_model(**inputs, **state_over(model, embeds)).last_hidden_state
    assert torch.equal(model.lm_head(hidden)[..., : expected.shape[-1]], expected)


def test_a_fresh_remember_equals_none_on_images_bit_for_bit(build, processor):
    batch = batch_of(processor, CHATS)
    expected = build(NONE)(**batch)
    for method in (V1, V2):
        found = build(method)(**batch)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.loss, expected.loss)


def test_a_stirred_remember_does_change_the_answer(build, processor):
    batch = batch_of(processor, CHATS)
    for method in (V1, V2):
        assert (stir(build(method))(**batch).logits - build(NONE)(**batch).logits).abs().max() > 1e-2


# --- training


@pytest.mark.parametrize("method", [name for name in METHODS if name != "none"])
def test_every_inserted_parameter_has_a_gradient_by_the_second_step(build, processor, method):
    model = build(METHODS[method]).train()
    batch = batch_of(processor, CHATS)
    trainable = [parameter for part in ("projector", "refusion") for _, parameter in model.parts()[part]]
    optimizer = torch.optim.SGD(trainable, lr=1.0)
    moved: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
        moved |= {name for name, gradient in gradients(model).items() if gradient.abs().max() > 0}
    inserted = {name for part in ("projector", "refusion") for name, _ in model.parts()[part]}
    # The learned stand-in for absent text is used by images without text alone.
    assert {name for name in inserted - moved if not name.endswith("no_text")} == set()


@pytest.mark.parametrize("method", METHODS)
def test_activation_checkpointing_changes_neither_loss_nor_gradients(build, processor, method):
    batch = batch_of(processor, CHATS)
    runs = []
    for is_checkpointed in (False, True):
        model = stir(build(METHODS[method])).train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        loss = model(**batch).loss
        loss.backward()
        runs.append((loss, gradients(model)))
    (loss, plain), (checkpointed_loss, checkpointed) = runs
    assert torch.equal(loss, checkpointed_loss)
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_text_alone_uses_every_parameter_and_changes_nothing(build, processor, method):
    model = stir(build(METHODS[method])).train()
    batch = batch_of(processor, TEXT_ONLY)
    trained = model(**batch)
    trained.loss.backward()
    served = model.eval()(**batch)
    assert torch.equal(trained.logits, served.logits)
    inserted = [(name, parameter) for part in ("projector", "refusion") for name, parameter in model.parts()[part]]
    assert [name for name, parameter in inserted if parameter.grad is None] == []
    assert all(parameter.grad.abs().max() == 0 for _, parameter in inserted)


def test_a_batch_without_any_target_has_loss_zero(build, processor):
    batch = batch_of(processor, [ask("Hello")])
    assert build(NONE)(**batch).loss == 0


def test_the_loss_is_divided_by_the_targets_of_the_whole_step(build, processor):
    model, batch = build(V1), batch_of(processor, CHATS)
    count = int((batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss * 2, model(**batch).loss)


@pytest.mark.parametrize("method", METHODS)
def test_right_padding_changes_no_logit(build, processor, method):
    model = stir(build(METHODS[method]))
    chat = batch_of(processor, CHATS[:1])
    both = batch_of(processor, CHATS)
    length = chat["input_ids"].shape[1]
    torch.testing.assert_close(
        both_logits := model(**both).logits[0, :length], model(**chat).logits[0], atol=1e-5, rtol=0
    )
    assert both_logits.shape[0] < both["input_ids"].shape[1]


def test_cached_encoder_levels_stand_in_for_pixels(build, processor):
    model, batch = stir(build(V2)), batch_of(processor, CHATS)
    expected = model(**batch).logits
    pixels = batch.pop("pixel_values")
    assert torch.equal(model(**batch, encoder_levels=model.encode(pixels)).logits, expected)
    with pytest.raises(ValueError, match="holds 1 levels, this model reads 2"):
        model(**batch, encoder_levels=model.encode(pixels)[:, :1])


# --- parts, state, shapes


def test_every_parameter_belongs_to_exactly_one_part(build):
    model = build(V2)
    parts = model.parts()
    names = [name for part in parts.values() for name, _ in part]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert {name.split(".refusion")[0] for name, _ in parts["refusion"]} == {
        "model.language_model.layers.0",
        "model.language_model.layers.2",
        "model",
    }
    assert [name for name, _ in parts["language_model"] if "embed_tokens" in name or "lm_head" in name] == [
        "model.language_model.embed_tokens.weight"
    ]


def test_calls_leave_nothing_behind_on_the_modules(build, processor):
    model = stir(build(V2))

    def things():
        return {name: sorted(vars(module)) for name, module in model.named_modules()}

    one, two = batch_of(processor, CHATS[:1]), batch_of(processor, CHATS[1:])
    model(**one)
    before = things()
    expected = model(**one).logits
    model(**two)
    assert things() == before
    assert torch.equal(model(**one).logits, expected)


def test_attention_weights_come_back_when_asked_for(build, processor):
    model, batch = stir(build(V1)), batch_of(processor, CHATS)
    plain = model(**batch)
    asked = model(**batch, output_remember_attentions=True)
    assert plain.remember_attentions is None
    assert len(asked.remember_attentions) == 2
    for weights in asked.remember_attentions:
        assert weights.shape == (3 * 4, 4, 9)  # three images of four tokens, four heads, windows of 3 x 3
        torch.testing.assert_close(weights.sum(-1), torch.ones(12, 4))
    torch.testing.assert_close(asked.logits, plain.logits, atol=1e-5, rtol=0)


def test_hidden_states_are_recorded(build, processor):
    states = build(V1)(**batch_of(processor, CHATS), output_hidden_states=True).hidden_states
    assert len(states) == 5


# --- refusals


def test_placeholders_without_images_are_refused_with_both_counts(build, processor):
    batch = batch_of(processor, CHATS)
    pixels = batch.pop("pixel_values")
    with pytest.raises(ValueError, match="12 image placeholders in input_ids, 0 vision tokens given"):
        build(V1)(**batch)
    with pytest.raises(ValueError, match="12 image placeholders in input_ids, 8 vision tokens given"):
        build(V1)(**batch, pixel_values=pixels[:2])


def test_two_sources_of_images_are_refused(build, processor):
    model, batch = build(V1), batch_of(processor, CHATS)
    with pytest.raises(ValueError, match="give one of"):
        model(**batch, mm_encoder_outputs={"image": model.get_image_features(batch["pixel_values"])})


def test_a_wrong_number_of_encoder_tokens_is_refused(build, processor):
    model = build(NONE)
    model.config.num_prefix_tokens = 0
    with pytest.raises(ValueError, match="the encoder made 37 tokens, its 6x6 grid and num_prefix_tokens=0 make 36"):
        model(**batch_of(processor, CHATS))


# --- building and generating


def test_a_model_can_be_built_from_its_config_alone(build):
    config = copy.deepcopy(build(V1).config)
    model = VisionRememberForConditionalGeneration(config)
    fresh = [parameter for name, parameter in model.parts()["refusion"] if name.endswith("out.weight")]
    assert fresh and all(parameter.abs().max() == 0 for parameter in fresh)


def test_rows_survive_slicing_like_generate_slices_them(build):
    from transformers.generation.utils import _slice_mm_encoder_output

    image = build(V1).get_image_features(torch.randn(2, 3, 48, 48))
    part = _slice_mm_encoder_output(image, torch.tensor([1, 2, 5]))
    assert [tensor.shape[0] for tensor in (part.pooler_output[0], *(rows[0] for rows in part.deepstack_features))] == [
        3
    ] * 3
    assert torch.equal(part.deepstack_features[1][0], torch.cat(image.deepstack_features[1])[[1, 2, 5]])
    assert dataclasses.is_dataclass(part)
