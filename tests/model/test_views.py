"""Enlarged pages: a re-fusion method that asks for views gets their crops beside every page, on every path."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.model.conftest import MIXED, NONE, V1, answered, ask, page, stir
from vision_remember.geometry import Grid
from vision_remember.model import VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.pixels import crops, place_on_canvas

HD = {"type": "deepstack_hd", "layers": [-1, 0, 1, 2]}
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model(build):
    return stir(build(HD))


@pytest.fixture(scope="module")
def processor(backbones, model):
    return VisionRememberProcessor.from_backbones(*backbones, model.config)


@pytest.fixture(scope="module")
def plain(backbones, build):
    return VisionRememberProcessor.from_backbones(*backbones, build(NONE).config)


def logits_of(model, inputs, **options):
    """New tokens and their logits."""
    out = model.generate(**inputs, **GREEDY, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def assert_same(found, expected):
    (tokens, logits), (expected_tokens, expected_logits) = found, expected
    length = min(tokens.shape[1], expected_tokens.shape[1])
    assert torch.equal(tokens[:, :length], expected_tokens[:, :length])
    torch.testing.assert_close(logits[:, :length], expected_logits[:, :length], rtol=0, atol=1e-5)


def test_the_crops_are_the_enlarged_page_cut_into_canvases(processor):
    image = page(3, size=(90, 61))
    enlarged = place_on_canvas(image, (3 * 48, 2 * 48), processor.image_processor)
    cut = crops(image, Grid(2, 3), (48, 48), processor.image_processor)
    together = Image.new("RGB", enlarged.size)
    for number, crop in enumerate(cut):
        together.paste(crop, (number % 3 * 48, number // 3 * 48))
    assert together.tobytes() == enlarged.tobytes()


def test_the_page_comes_first_and_is_the_page_that_every_model_sees(processor, plain):
    images = [page(1), page(2, size=(30, 80))]
    pixels = processor.pixels(images)
    assert pixels.shape == (2, 5, 3, 48, 48)
    assert torch.equal(pixels[:, 0], plain.pixels(images))
    assert processor.pixels([]).shape == (0, 5, 3, 48, 48)
    sharp, coarse = processor.canvases(images), plain.canvases(images)
    assert [canvas.tobytes() for canvas in sharp] == [canvas.tobytes() for canvas in coarse]


def test_a_fresh_model_says_what_a_model_without_re_fusion_says_bit_for_bit(build, processor, plain):
    hd, none = (
        build(refusion)(**tokens.apply_chat_template(MIXED, **PROMPT)).logits
        for refusion, tokens in ((HD, processor), (NONE, plain))
    )
    assert torch.equal(hd, none)


def test_crops_change_the_answer_and_only_those_of_the_own_image(model, processor):
    inputs = processor.apply_chat_template(MIXED[:3], **PROMPT)
    before = model(**inputs).logits
    pixels = inputs["pixel_values"].clone()
    pixels[0, 3] += 1  # a crop of the only image of row 0
    after = model(**{**inputs, "pixel_values": pixels}).logits
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1:], after[1:])


def test_stacks_are_the_projected_crops_after_the_named_layers(model, processor):
    pixels = processor.pixels([page(1), page(2)])
    features = model.get_image_features(pixels)
    base = model.model
    encoded = base.encode(pixels)  # [N, L, 1 + X, P, C]
    assert encoded.shape[:3] == (2, 1, 5)
    for image in range(2):
        mosaic = torch.empty(4, 4, model.config.text_config.hidden_size)  # of 2 x 2 crops with 2 x 2 tokens
        for crop in range(4):
            tokens = base._tokens(encoded[image, :, 1 + crop][None])[0].view(2, 2, -1)
            mosaic[crop // 2 * 2 :, crop % 2 * 2 :][:2, :2] = tokens
        rows = features.deepstack_features[0][image].unflatten(1, (4, -1))  # [V, stacks, D]
        for token in range(4):
            for k in range(4):
                expected = mosaic[token // 2 * 2 + k // 2, token % 2 * 2 + k % 2]
                torch.testing.assert_close(rows[token, k], expected)


def test_a_batch_equals_single_runs_and_beams_keep_rows_apart(model, processor):
    inputs = processor.apply_chat_template(MIXED, **PROMPT)
    tokens, logits = logits_of(model, inputs)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    together = model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
    for row, messages in enumerate(MIXED[:4]):
        single = processor.apply_chat_template(messages, **PROMPT)
        assert_same((tokens[row : row + 1], logits[row : row + 1]), logits_of(model, single))
        alone = model.generate(**single, **beams)[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(alone)], alone)


def test_cache_chunks_and_features_made_before_change_nothing(model, processor):
    inputs = processor.apply_chat_template(MIXED[2], **PROMPT)
    expected = logits_of(model, inputs)
    assert_same(logits_of(model, inputs, use_cache=False), expected)
    assert_same(logits_of(model, inputs, prefill_chunk_size=7), expected)
    pixels = inputs.pop("pixel_values")
    features = model.get_image_features(encoder_levels=model.encode(pixels))
    assert_same(logits_of(model, inputs, mm_encoder_outputs={"image": features}), expected)


def test_checkpointing_changes_no_gradient_and_text_alone_reaches_every_gate(build, processor):
    chats = [answered("What is the total?", "42", page(1)), answered("Hello", "Hi")]
    for batch in (chats, chats[1:]):
        inputs = processor.pad([processor.encode(chat) for chat in batch], side="right")
        found = []
        for is_checkpointed in (False, True):
            model = stir(build(HD)).train()
            if is_checkpointed:
                model.activation_checkpointing_enable()
            model(**inputs).loss.backward()
            found.append({name: p.grad for part in ("projector", "refusion") for name, p in model.parts()[part]})
        assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
        assert all(bool(gradient.any()) == (batch is chats) for gradient in found[0].values())


def test_model_and_processor_come_back_from_disk(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, tokens = (
        VisionRememberForConditionalGeneration.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    )
    inputs = tokens.apply_chat_template(MIXED[0], **PROMPT)
    assert torch.equal(inputs["pixel_values"], processor.apply_chat_template(MIXED[0], **PROMPT)["pixel_values"])
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_pixels_and_levels_of_another_model_are_refused_with_both_shapes(build, model, processor, plain):
    with pytest.raises(ValueError, match=r"shape \[1, 3, 48, 48\], this model reads \[N, 5, 3, 48, 48\]"):
        model(**plain.apply_chat_template(ask("What?", page(1)), **PROMPT))
    with pytest.raises(ValueError, match=r"shape \[1, 5, 3, 48, 48\], this model reads \[N, 3, 48, 48\]"):
        build(V1)(**processor.apply_chat_template(ask("What?", page(1)), **PROMPT))
    levels = build(NONE).encode(plain.pixels([page(1)]))
    with pytest.raises(ValueError, match=r"is not that of images with \[5, 3, 48, 48\] pixels"):
        model.get_image_features(encoder_levels=levels)
