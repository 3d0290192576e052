"""Any resolution on every path: tiles on compressed grids, newlines without memory, windows and self-attention inside one tile."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model.conftest import AVG_POOL, METHODS, MIXED, NONE, V1, V2, answered, ask, page, stir
from vision_remember.model import Engine, VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Request
from vision_remember.model.rows import FACTS, state_of_chunk
from vision_remember.tiling import NEWLINE

ANYRES = {"mode": "anyres", "pinpoints": [[48, 96], [96, 48], [96, 96]]}
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
TOLERANCE = 2e-5  # float32 sums in another order, over prompts four times as long as those of one canvas
# Pages of many shapes: (rows, columns) of tiles 2x2, 1x2 and 2x1, with and without a border.
SIZES = [(90, 61), (96, 96), (100, 40), (31, 90), (48, 48), (1, 1), (64, 70), (20, 20)]


@pytest.fixture(scope="module")
def build(backbones):
    def build(refusion, projector=AVG_POOL, resolution=ANYRES):
        return VisionRememberForConditionalGeneration.from_backbones(
            *backbones, projector=projector, refusion=refusion, resolution=resolution
        )

    return build


@pytest.fixture(scope="module")
def processor(backbones, build):
    return VisionRememberProcessor.from_backbones(*backbones, build(NONE).config)


@pytest.fixture(scope="module", params=METHODS)
def model(build, request):
    return stir(build(METHODS[request.param]))


def resized(messages, sizes):
    """The same conversation with pages of other sizes."""
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [
                {**part, "image": part["image"].resize(next(sizes))} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


PAGES = iter(SIZES)
CHATS = [resized(messages, PAGES) for messages in MIXED]


def greedy(model, inputs, **options):
    out = model.generate(**inputs, **GREEDY, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def assert_same(found, expected):
    (tokens, logits), (expected_tokens, expected_logits) = found, expected
    length = min(tokens.shape[1], expected_tokens.shape[1])
    assert torch.equal(tokens[:, :length], expected_tokens[:, :length])
    assert (logits[:, :length] - expected_logits[:, :length]).abs().max() <= TOLERANCE


def test_placeholders_tokens_and_rows_are_as_many_as_the_layout_says(model, processor):
    images = [page(seed, size) for seed, size in enumerate(SIZES)]
    counts = [processor.tiling.layout(size[::-1]).num_tokens for size in SIZES]
    assert set(counts) == {10, 14, 16, 24}
    encodings = [processor.encode(ask("What?", image)) for image in images]
    assert [e.input_ids.count(processor.image_token_id) for e in encodings] == counts
    assert processor._get_num_multimodal_tokens([size[::-1] for size in SIZES]).num_image_tokens == counts
    inputs = processor(images=images)
    features = model.get_image_features(**inputs)
    assert [len(tokens) for tokens in features.pooler_output] == counts
    for rows in features.deepstack_features or []:
        assert [len(row) for row in rows] == counts


def test_a_batch_equals_single_runs_and_beams_keep_rows_apart(model, processor):
    inputs = processor.apply_chat_template(CHATS, **PROMPT)
    assert inputs["image_sizes"].shape == (8, 2) and inputs["pixel_values"].shape == (8, 5, 3, 48, 48)
    tokens, logits = greedy(model, inputs)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    together = model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
    for row, messages in enumerate(CHATS):
        single = processor.apply_chat_template(messages, **PROMPT)
        assert_same((tokens[row : row + 1], logits[row : row + 1]), greedy(model, single))
        alone = model.generate(**single, **beams)[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(alone)], alone)


def test_padding_cache_and_features_made_before_change_nothing(model, processor):
    inputs = processor.apply_chat_template(CHATS[2], **PROMPT)
    expected = greedy(model, inputs)
    assert_same(greedy(model, inputs, use_cache=False), expected)
    padded = {
        **inputs,
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (32, 0), value=processor.tokenizer.pad_token_id),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (32, 0)),
    }
    assert_same(greedy(model, padded), expected)
    pixels, sizes = inputs.pop("pixel_values"), inputs.pop("image_sizes")
    features = model.get_image_features(encoder_levels=model.encode(pixels, sizes), image_sizes=sizes)
    assert_same(greedy(model, inputs, mm_encoder_outputs={"image": features}), expected)


@pytest.mark.parametrize("refusion", [NONE, V1, METHODS["deepstack"], METHODS["sva"]], ids=lambda r: r["type"])
def test_chunks_that_cut_images_change_nothing_where_tokens_look_for_themselves(build, processor, refusion):
    model = stir(build(refusion))
    inputs = processor.apply_chat_template(CHATS[2], **PROMPT)
    assert_same(greedy(model, inputs, prefill_chunk_size=7), greedy(model, inputs))


def test_a_chunk_that_cuts_a_tile_is_refused_where_its_tokens_attend_to_each_other(build, processor):
    model = stir(build({**V2, "guidance": False}))
    inputs = processor.apply_chat_template(ask("What?", page(1, (96, 96))), **PROMPT)
    start = inputs["input_ids"][0].tolist().index(processor.image_token_id)
    # After the base view: four tokens. After half of the map: the upper two tiles, whole.
    for whole in (start + 4, start + 4 + 10):
        mask = torch.ones(1, whole, dtype=torch.long)
        features = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
        cut = whole - start
        first, second = (
            type(features)(
                pooler_output=[tokens[part] for tokens in features.pooler_output],
                deepstack_features=[[rows[part] for rows in kind] for kind in features.deepstack_features],
            )
            for part in (slice(None, cut), slice(cut, None))
        )
        cache = model(
            inputs["input_ids"][:, :whole], attention_mask=mask, mm_encoder_outputs={"image": first}, use_cache=True
        ).past_key_values
        found = model(
            inputs["input_ids"][:, whole:],
            attention_mask=inputs["attention_mask"],
            mm_encoder_outputs={"image": second},
            past_key_values=cache,
        ).logits
        assert (found - model(**inputs).logits[:, whole:]).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match="holds 2 of the 4 vision tokens of image 1"):
        greedy(model, inputs, prefill_chunk_size=start + 4 + 5)


def test_a_fresh_remember_says_what_a_model_without_re_fusion_says_bit_for_bit(build, processor):
    inputs = processor.apply_chat_template(CHATS, **PROMPT)
    none = build(NONE)
    for refusion in (V1, V2):
        fresh = build(refusion)
        fresh.load_state_dict(none.state_dict(), strict=False)  # the newline is drawn after the insertions
        assert torch.equal(fresh(**inputs).logits, none(**inputs).logits)


@pytest.mark.parametrize("refusion", [V1, {**V2, "guidance": False}], ids=["v1", "bidirectional"])
def test_re_fusion_of_a_tile_is_that_of_the_tile_as_an_image_of_its_own(build, processor, refusion, backbones):
    """Rows, slots and groups of each whole tile are those that the plain model makes of the tile's pixels."""
    model = stir(build(refusion))
    plain = build(refusion, resolution=None)
    plain.load_state_dict(model.state_dict(), strict=False)
    inputs = processor.apply_chat_template(ask("What?", page(3, (96, 96))), **PROMPT)
    features = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    views = plain.get_image_features(inputs["pixel_values"][0])
    layout = processor.tiling.layout((96, 96))
    state = state_of_chunk(model.model, features, inputs["input_ids"] == processor.image_token_id, inputs["input_ids"])
    owns = layout.source != NEWLINE
    assert len(state.rows) == int(owns.sum()) == 20 and len(state.batch_row) == 5
    assert torch.equal(state.image, layout.view[owns])
    for token, (view, cell) in enumerate(zip(layout.view[owns], layout.source[owns] % 4, strict=True)):
        torch.testing.assert_close(state.rows[token], views.deepstack_features[0][view][cell])
        facts = views.deepstack_features[1][view][cell]
        assert torch.equal(torch.cat([state.valid[token].long(), state.place[token]]), facts[: -len(FACTS)])
        assert (state.index[token], state.count[token]) == (cell, 4)
    position = state.position.tolist()
    newline = model.model.image_newline
    for place, source in zip(
        (inputs["input_ids"][0] == processor.image_token_id).nonzero()[:, 0].tolist(), layout.source, strict=True
    ):
        assert (place in position) == (source != NEWLINE)
    assert torch.equal(features.pooler_output[0][~owns], newline.expand(4, -1))


def test_newlines_are_never_changed_by_re_fusion(build, processor):
    """With layers that only re-fuse, a newline leaves the decoder's input as it came: only rows of tokens differ."""
    model = stir(build(V1))
    inputs = processor.apply_chat_template(CHATS[0], **PROMPT)
    is_image = inputs["input_ids"] == processor.image_token_id
    features = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    state = state_of_chunk(model.model, features, is_image, inputs["input_ids"])
    hidden = torch.randn(*is_image.shape, model.config.text_config.hidden_size)
    insertion = model.model.language_model.layers[1].refusion
    after, _ = insertion(hidden, state, 1)
    changed = (after != hidden).any(-1).flatten().nonzero()[:, 0]
    assert torch.equal(changed, state.position)
    layout = processor.tiling.layout(SIZES[0][::-1])
    assert len(changed) == int((layout.source != NEWLINE).sum()) < int(is_image.sum())


def test_padding_of_a_border_tile_is_in_no_window(build, processor):
    model = build(V1)
    wide = page(1, (96, 30))  # on 48 x 96: nine black rows of pixels above and below
    inputs = processor(images=wide)
    layout = processor.tiling.layout((30, 96))
    assert layout.tiles.num_cells == 2
    [facts] = model.get_image_features(**inputs).deepstack_features[1]
    slots = facts[:, :9].bool()  # 3 x 3 patches of 8 pixels: rows 0 to 2, then 3 to 5
    tokens = layout.source != NEWLINE
    assert slots[:4].all(), "the base view is all image"
    upper = slots[4:9][tokens[4:9]].unflatten(1, (3, 3))
    assert not upper[:, 0].any() and upper[:, 1:].all(), "eight rows of the first patches are black"
    assert not slots[~tokens].any()


@pytest.mark.parametrize(
    "projector",
    [
        {"type": "resampler", "num_latents": 6, "head_width": 8, "num_heads": 2, "num_kv_heads": 1},
        {"type": "mqt", "num_queries": 4, "num_heads": 2},
    ],
    ids=lambda p: p["type"],
)
def test_projectors_without_places_end_each_view_with_one_newline(build, backbones, projector):
    model = stir(build({**V2, "margin": 0}, projector=projector))
    tokens = VisionRememberProcessor.from_backbones(*backbones, model.config)
    num_tokens = model.config.token_grid.num_cells
    inputs = tokens(images=page(1, (90, 61)))
    features = model.get_image_features(**inputs)
    views = model.model._tokens(model.encode(**inputs))
    expected = torch.cat([torch.cat([view, model.model.image_newline[None]]) for view in views])
    assert views.shape[:2] == (5, num_tokens) and torch.equal(features.pooler_output[0], expected)
    prompt = tokens.apply_chat_template(CHATS, **PROMPT)
    found, logits = greedy(model, prompt)
    single = greedy(model, tokens.apply_chat_template(CHATS[2], **PROMPT))
    assert_same((found[2:3], logits[2:3]), single)


def test_training_reaches_every_parameter_and_text_alone_uses_them_all(build, processor):
    chats = [answered("What is the total?", "42", page(1, (90, 61))), answered("Hello", "Hi")]
    for batch in (chats, chats[1:]):
        model = stir(build(V2)).train()
        inputs = processor.pad([processor.encode(chat) for chat in batch], side="right")
        assert ("image_sizes" in inputs) == (batch is chats)
        model(**inputs).loss.backward()
        gradients = {name: p.grad for part in ("projector", "refusion") for name, p in model.parts()[part]}
        assert "model.image_newline" in gradients and all(gradient is not None for gradient in gradients.values())
        assert bool(gradients["model.image_newline"].any()) == (batch is chats)


def test_fastv_drops_tokens_of_images_of_any_size(build, processor):
    model = build({"type": "fastv", "full_layers": 1})
    inputs = processor.apply_chat_template(CHATS, **PROMPT)
    tokens, logits = greedy(model, inputs)
    assert_same((tokens[2:3], logits[2:3]), greedy(model, processor.apply_chat_template(CHATS[2], **PROMPT)))


def test_model_and_processor_come_back_from_disk(build, processor, tmp_path):
    model = stir(build(V1))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, tokens = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = tokens.apply_chat_template(CHATS, **PROMPT)
    expected = processor.apply_chat_template(CHATS, **PROMPT)
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert again.config.resolution == model.config.resolution == ANYRES
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_video_is_its_frames_in_one_place(build, processor):
    frames = [page(seed, (90, 61)) for seed in range(3)]
    text = {"type": "text", "text": "\nWhat moves?"}
    video = [{"role": "user", "content": [{"type": "video", "frames": frames}, text]}]
    images = [{"role": "user", "content": [*({"type": "image", "image": frame} for frame in frames), text]}]
    found, expected = (processor.apply_chat_template(chat, **PROMPT) for chat in (video, images))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["image_sizes"].tolist() == [[61, 90]] * 3
    rendered = processor.apply_chat_template(video, add_generation_prompt=True)
    assert rendered.count("<image>") == 3
    assert torch.equal(processor(text=rendered)["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("of", [np.asarray, torch.as_tensor, list])
def test_frames_may_be_arrays_as_readers_of_videos_return_them(processor, of):
    frames = [page(seed, (90, 61)) for seed in range(3)]
    arrays = of(np.stack([np.asarray(frame) for frame in frames]))
    found, expected = (
        processor.encode([{"role": "user", "content": [{"type": "video", "frames": given}]}])
        for given in (arrays, frames)
    )
    assert found.input_ids == expected.input_ids and torch.equal(found.pixel_values, expected.pixel_values)


def test_what_is_wrong_is_named_by_the_place_its_user_gave_it(processor):
    good = page(1)
    cases = [
        ([good, None], None, r"content\[1\].frames\[1\]: this is no image but of type NoneType"),
        ([good, b"noise"], None, r"content\[1\].frames\[1\]: this is text"),
        ([good, good], {"type": "image", "image": b"noise"}, r"content\[2\]: this is text"),
        ([good, good], {"type": "audio"}, r"content\[2\] must be"),
        (np.zeros((8, 8, 3), np.uint8), None, r"content\[1\].frames is an array of shape \[8, 8, 3\]; give \[frames,"),
    ]
    for frames, last, message in cases:
        content = [{"type": "text", "text": "See"}, {"type": "video", "frames": frames}, *([last] if last else [])]
        with pytest.raises(ValueError, match=rf"messages\[0\].{message}"):
            processor.encode([{"role": "user", "content": content}])


@pytest.mark.parametrize("frames", [None, [], "clip.mp4", np.zeros((0, 8, 8, 3), np.uint8)])
def test_a_video_without_frames_is_refused(processor, frames):
    part = {"type": "video"} if frames is None else {"type": "video", "frames": frames}
    with pytest.raises(ValueError, match=r"messages\[0\].content\[0\] is a video without frames"):
        processor.encode([{"role": "user", "content": [part]}])


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (100, 1), (1, 100), (1000, 10), (4000, 41)])
def test_odd_sizes_are_read_at_any_resolution_and_on_one_canvas(build, backbones, processor, size):
    model = build(NONE)
    inputs = processor.apply_chat_template(ask("What?", page(1, size)), **PROMPT)
    assert torch.isfinite(model(**inputs).logits).all()
    for mode in ("pad", "resize", "crop"):
        plain = build(NONE, resolution={"mode": mode})
        own = VisionRememberProcessor.from_backbones(*backbones, plain.config)
        inputs = own.apply_chat_template(ask("What?", page(1, size)), **PROMPT)
        assert "image_sizes" not in inputs and inputs["pixel_values"].shape == (1, 3, 48, 48)
        assert torch.isfinite(plain(**inputs).logits).all()


@pytest.mark.parametrize("size", [(10_000, 10), (10, 10_000), (10_000, 1)])
def test_strips_beyond_the_decoders_limit_are_refused_by_their_sides(processor, size):
    with pytest.raises(ValueError, match=r"images\[0\].*one side is more than 100 times the other"):
        processor(images=page(1, size))


def test_inputs_of_another_model_are_refused_with_both_shapes(build, processor):
    model, plain = build(V1), build(V1, resolution=None)
    inputs = processor.apply_chat_template(ask("What?", page(1, (90, 61))), **PROMPT)
    with pytest.raises(ValueError, match="needs image_sizes"):
        model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")})
    with pytest.raises(ValueError, match=r"shape \[1, 2, 3, 48, 48\], these 1 image_sizes ask for \[1, 5, 3, 48, 48\]"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:, :2]})
    with pytest.raises(ValueError, match="one canvas of every image, and got image_sizes"):
        plain(**inputs)
    levels = model.encode(inputs["pixel_values"], inputs["image_sizes"])
    with pytest.raises(ValueError, match="4 views in encoder_levels, these image_sizes make 5"):
        model.get_image_features(encoder_levels=levels[:4], image_sizes=inputs["image_sizes"])
    cut = {**inputs, "image_sizes": torch.tensor([[96, 96]])}
    with pytest.raises(ValueError, match="image placeholders in input_ids"):
        model(**cut)


def test_an_answer_is_explained_on_the_base_view(build, processor):
    engine = Engine(stir(build(V1)), processor)
    image = page(1, (90, 61))
    look = engine.explain(Request(first_question("What?", num_images=1), [image]), max_new_tokens=2)
    assert look.image.tobytes() == image.resize((48, 48), Image.Resampling.BICUBIC).tobytes()
    assert sorted(look.attention) == [-1, 1] and {len(weights) for weights in look.attention.values()} == {4}
    torch.testing.assert_close(look.attention[1].sum(-1), torch.ones(4, 4))


def test_enlarged_pages_and_tiles_together_are_refused(build):
    with pytest.raises(ValueError, match="deepstack_hd reads an enlarged page of its own"):
        build({"type": "deepstack_hd"})


def test_a_misspelt_option_is_refused_with_the_nearest(build):
    with pytest.raises(ValueError, match="resolution has no option 'pinpoint'; did you mean 'pinpoints'"):
        build(NONE, resolution={"mode": "anyres", "pinpoint": [[48, 96]]})


def test_the_encoding_of_a_sample_keeps_its_sizes_when_text_is_cut(processor):
    encoding = processor.encode(ask("What?", page(1, (90, 61))))
    assert encoding.image_sizes == [(61, 90)]
    assert dataclasses.replace(encoding, input_ids=encoding.input_ids[:-1]).image_sizes == [(61, 90)]


def test_a_number_of_tokens_per_image_is_refused_by_name(build, processor):
    model = build(NONE)
    with pytest.raises(ValueError, match=r"tokens_per_image is 4, and an any-resolution model \(resolution: anyres\)"):
        processor.at(4)
    inputs = processor.apply_chat_template(ask("What is the total?", page(1)), **PROMPT)
    with pytest.raises(ValueError, match=r"tokens_per_image is 4, and an any-resolution model \(resolution: anyres\)"):
        model(**inputs, tokens_per_image=4)
    with pytest.raises(ValueError, match="resolution: anyres"):
        Engine(model, processor, tokens_per_image=4)


def test_a_patch_size_given_as_two_numbers_is_read_as_one(build, processor):
    model, inputs = build(V1), processor.apply_chat_template(ask("What is the total?", page(1)), **PROMPT)
    with torch.inference_mode():
        expected = model(**inputs).logits
        model.config.vision_config.patch_size = [model.config.vision_config.patch_size] * 2
        assert torch.equal(model(**inputs).logits, expected)


@pytest.mark.parametrize("refusion", [pytest.param(V1, marks=pytest.mark.slow, id="v1"), pytest.param(V2, id="v2")])
def test_a_prefill_compiled_in_pieces_changes_no_bit(build, processor, refusion):
    """In one graph it cannot: how many views there are is read from the sizes."""
    model, inputs = stir(build(refusion)), processor.apply_chat_template(ask("Total?", page(1)), **PROMPT)
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = model(**inputs).logits
        assert torch.equal(torch.compile(model.forward, backend="eager")(**inputs).logits, expected)
