import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.model.conftest import AVG_POOL, MIXED, answered, ask, page
from vision_remember.model import VisionRememberProcessor
from vision_remember.model.pixels import fit

PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_it_survives_saving_and_loading(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for again in (VisionRememberProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(again) is VisionRememberProcessor
        assert same(processor.apply_chat_template(MIXED, **PROMPT), again.apply_chat_template(MIXED, **PROMPT))
        assert again.chat_template == processor.chat_template


def test_serving_sees_the_ids_and_pixels_that_training_sees(processor):
    image, question = page(1), "\nWhat is the total?"
    trained = processor.encode(answered(question, "42", image))
    served = processor.apply_chat_template(ask(question, image), **PROMPT)
    called = processor(text="What is the total?", images=image)
    length = served["input_ids"].shape[1]
    assert served["input_ids"][0].tolist() == trained.input_ids[:length]
    assert torch.equal(served["pixel_values"], trained.pixel_values)
    assert same(served, called)


def test_a_rendered_chat_is_encoded_as_the_chat_it_came_from(processor):
    messages = ask("Say <image> and <|im_end|>", page(1))
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered.startswith("<|im_start|>user\n<image>Say")
    assert same(processor(text=rendered), processor.apply_chat_template(messages, **PROMPT))


def test_images_may_stand_beside_the_messages(processor):
    empty = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    inside, beside = processor.encode(ask("What?", page(1))), processor.encode(empty, [page(1)])
    assert inside.input_ids == beside.input_ids
    assert torch.equal(inside.pixel_values, beside.pixel_values)


@pytest.mark.parametrize(("num_slots", "num_images"), [(0, 1), (1, 0), (2, 1)])
def test_slots_and_images_that_disagree_are_refused_with_both_counts(processor, num_slots, num_images):
    messages = [{"role": "user", "content": [{"type": "image"}] * num_slots + [{"type": "text", "text": "What?"}]}]
    with pytest.raises(ValueError, match=f"{num_slots} image slots in the messages, {num_images} images given"):
        processor.encode(messages, [page(seed) for seed in range(num_images)])


def test_padding_labels_only_what_the_assistant_says(processor):
    encodings = [processor.encode(answered("What?", "42", page(1))), processor.encode(answered("a", "b"))]
    for side in ("left", "right"):
        batch = processor.pad(encodings, side=side)
        for row, encoding in enumerate(encodings):
            is_real = batch["attention_mask"][row].bool()
            assert batch["input_ids"][row][is_real].tolist() == encoding.input_ids
            assert (batch["labels"][row] != -100).sum() == sum(encoding.target)
            assert (batch["labels"][row][~is_real] == -100).all()
            assert bool(is_real[0]) == (side == "right" or row == 0)
        assert batch["pixel_values"].shape[0] == 1


def test_a_batch_without_images_carries_no_pixels(processor):
    assert "pixel_values" not in processor.pad([processor.encode(ask("Hello"))], side="left")


def test_assistant_masks_mark_the_targets(processor):
    batch = processor.apply_chat_template(
        answered("What?", "42", page(1)), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    spoken = batch["input_ids"][batch["assistant_masks"].bool()]
    assert processor.tokenizer.decode(spoken) == "42<|im_end|>"


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{}]},
        {"chat_template": "x"},
        {"return_tensors": "np"},
        {"padding": False},
        {"padding_side": "right"},
        {"processor_kwargs": {"padding": False}},
        {"processor_kwargs": {"padding_side": "right"}},
    ],
)
def test_options_it_cannot_honour_are_refused(processor, options):
    with pytest.raises(ValueError):
        processor.apply_chat_template(ask("What?"), tokenize=True, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True, "padding_side": "left", "return_tensors": "pt"},
        {"processor_kwargs": {"padding": "longest", "padding_side": "left", "return_tensors": "pt"}},
    ],
)
def test_what_scripts_for_llava_ask_of_a_batch_is_what_they_get(processor, options):
    expected = processor.apply_chat_template(MIXED, **PROMPT)
    assert same(processor.apply_chat_template(MIXED, **PROMPT, **options), expected)
    assert same(processor(text="What?", padding=True, padding_side="left"), processor(text="What?"))


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_every_way_to_carry_an_image_gives_the_same_pixels(processor, tmp_path):
    image = page(3)
    image.save(tmp_path / "page.png")
    carriers = [
        {"image": image},
        {"image": np.asarray(image)},
        {"image": torch.from_numpy(np.array(image))},
        {"path": str(tmp_path / "page.png")},
        {"base64": encoded(image)},
        {"url": f"data:image/png;base64,{encoded(image)}"},
    ]
    for carrier in carriers:
        messages = [{"role": "user", "content": [{"type": "image", **carrier}]}]
        assert torch.equal(processor.encode(messages).pixel_values, processor.pixels([image]))


@pytest.mark.parametrize(
    "url",
    ["http://example.com/a.png", "file:///etc/passwd", "/etc/passwd", "data:image/png;base64", "data:image/png,x"],
)
def test_nothing_is_fetched(processor, url):
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[0\]\.url is not a base64 data: URL"):
        processor.encode([{"role": "user", "content": [{"type": "image", "url": url}]}])


def test_a_broken_image_is_named_by_its_place(processor):
    content = [{"type": "text", "text": "What?"}, {"type": "image", "base64": base64.b64encode(b"no image").decode()}]
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[1\]"):
        processor.encode([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    ("size", "place"),
    [
        ((48, 48), (0, 0, 48, 48)),
        ((100, 50), (0, 12, 48, 24)),
        ((10, 20), (12, 0, 24, 48)),
        ((900, 10), (0, 23, 48, 1)),
    ],
)
def test_a_page_is_fitted_whole_onto_the_canvas(processor, size, place):
    assert fit(size, (48, 48)) == place
    (canvas,) = processor.canvases([Image.new("RGB", size, (250, 0, 0))])
    left, top, width, height = place
    assert canvas.size == (48, 48)
    assert canvas.getpixel((left, top)) == canvas.getpixel((left + width - 1, top + height - 1)) == (250, 0, 0)
    if place[:2] != (0, 0):
        assert canvas.getpixel((0, 0)) == (123, 117, 104)


def test_a_processor_for_another_language_model_is_refused(backbones, build, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbones[1])
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(tmp_path)
    config = build({"type": "none"}).config
    with pytest.raises(ValueError, match=f"places <image> at 305, the model expects {config.image_token_id}"):
        VisionRememberProcessor.from_backbones(backbones[0], tmp_path, config)


def test_it_counts_the_tokens_of_an_image(processor):
    counts = processor._get_num_multimodal_tokens(image_sizes=[(10, 10), (100, 20)])
    assert counts.num_image_tokens == [processor.num_image_tokens] * 2 == [(6 // AVG_POOL["scale"]) ** 2] * 2
