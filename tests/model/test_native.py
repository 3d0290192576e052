"""The model under the library's own handles: dtypes, device maps, shards, batches of the pipeline."""

import dataclasses

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import send_to_device
from transformers import AutoModelForImageTextToText, pipeline

from tests.model.conftest import METHODS, MIXED, NONE, V1, V2, answered, ask, page, stir
from tests.model.test_generation_ways import FASTV, GREEDY, PROMPT
from vision_remember.model.chat import first_question
from vision_remember.model.engine import Engine, Request
from vision_remember.model.rows import state_of_chunk
from vision_remember.model.shortening import shortening_of_chunk
from vision_remember.refusion import Shortening

EVERY = METHODS | {"fastv": FASTV}
TRAINED = [answered("What is the total?", "42 euros", page(1)), answered("Compare", "Equal", page(2), page(3))]


def logits_of(model, inputs):
    """Logits of every real token, in float32."""
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()].float()


@pytest.fixture(scope="module")
def inputs(build, processor):
    return processor.apply_chat_template(MIXED, **PROMPT)


@pytest.fixture(scope="module", params=EVERY)
def saved(build, request, tmp_path_factory):
    """A stirred model of every method, and the folder it was saved to in several shards."""
    model, folder = stir(build(EVERY[request.param])), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder, max_shard_size="60KB")
    return model, folder


def test_several_shards_load_to_the_same_weights(saved, inputs):
    model, folder = saved
    assert len(list(folder.glob("model-0*-of-0*.safetensors"))) > 2
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in again.state_dict().items())
    assert torch.equal(logits_of(again, inputs), logits_of(model, inputs))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_answers_as_float32_does_to_its_rounding(saved, inputs, half):
    model, folder = saved
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=half)
    assert {weight.dtype for weight in loaded.parameters()} == {half}
    found, expected = logits_of(loaded, inputs), logits_of(model, inputs)
    # 8 (11) bits of mantissa through about thirty roundings that add up like random steps; wide logits of a random decoder.
    steps = 30**0.5 * torch.finfo(half).eps
    assert (found - expected).square().mean().sqrt() <= 2 * steps * expected.square().mean().sqrt()
    out = loaded.generate(**inputs, **(GREEDY | {"max_new_tokens": 2}))
    assert out.sequences.shape[0] == len(MIXED)


def test_a_fresh_remember_changes_no_bit_in_bfloat16(build, inputs):
    expected = logits_of(build(NONE).to(torch.bfloat16), inputs)
    for method in (V1, V2):
        assert torch.equal(logits_of(build(method).to(torch.bfloat16), inputs), expected)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_device_map_changes_no_bit(saved, inputs, device_map):
    model, folder = saved
    loaded = AutoModelForImageTextToText.from_pretrained(folder, device_map=device_map)
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def test_a_model_split_between_memory_and_disk_answers_the_same(saved, inputs, tmp_path):
    """Every decoder layer is a block of its own, and every other one is read from disk when its turn comes."""
    model, folder = saved
    # The position tables of sva are a list without a forward of its own, which accelerate does not bring back from disk.
    away = (2, 3) if model.config.refusion["type"] == "sva" else (1, 3)
    on_disk = [f"model.language_model.layers.{number}" for number in away] + ["model.vision_tower"]
    device_map = dict.fromkeys(
        [
            *("model.multi_modal_projector", "model.refusion", "lm_head", "model.language_model.embed_tokens"),
            *("model.language_model.norm", "model.language_model.rotary_emb"),
            *(f"model.language_model.layers.{number}" for number in range(4) if number not in away),
        ],
        "cpu",
    ) | dict.fromkeys(on_disk, "disk")
    loaded = AutoModelForImageTextToText.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    assert {name for name, weight in loaded.named_parameters() if weight.is_meta} == {
        name for name, _ in model.named_parameters() if name.startswith(tuple(f"{block}." for block in on_disk))
    }
    assert torch.equal(logits_of(loaded, inputs), logits_of(model, inputs))


def test_an_automatic_device_map_never_cuts_a_decoder_layer_from_its_insertion(saved):
    model, _ = saved
    has_parted = False
    for size in range(100_000, 2_000_000, 50_000):
        sizes = {0: size, 1: 120_000, "cpu": 10_000_000}
        found = infer_auto_device_map(model, max_memory=sizes, no_split_module_classes=model._no_split_modules)
        layers = [name for name in found if name.startswith("model.language_model.layers.")]
        assert not [name for name in layers if name.count(".") > 3]
        has_parted |= len({found[name] for name in layers}) > 1
    assert has_parted


def test_what_is_passed_to_a_layer_moves_to_its_device(build, processor, inputs):
    """As `device_map` moves it: every tensor of the state, into a copy for methods with memory, in place for those that drop."""
    model = build(V2)
    is_placeholder = inputs["input_ids"] == processor.image_token_id
    image = model.get_image_features(inputs["pixel_values"])
    state = state_of_chunk(model.model, image, is_placeholder, inputs["input_ids"], attentions={})
    moved = send_to_device(state, "meta")
    assert moved.attentions is state.attentions and moved.max_count == state.max_count
    shortening = shortening_of_chunk(is_placeholder, inputs["attention_mask"], None, has_images=True)
    assert send_to_device(shortening, "meta") is shortening, "what one layer leaves behind is for all above"
    for found, was in ((moved, state), (shortening, Shortening())):
        for field in dataclasses.fields(found):
            value = getattr(found, field.name)
            assert not isinstance(value, torch.Tensor) or value.is_meta
            assert found is shortening or isinstance(value, torch.Tensor) == isinstance(
                getattr(was, field.name), torch.Tensor
            )


@pytest.mark.parametrize("method", EVERY)
def test_activation_checkpointing_changes_no_bit_of_any_gradient(build, processor, method):
    batch = processor.pad([processor.encode(chat) for chat in TRAINED], side="right")
    found = []
    for is_checkpointed in (False, True):
        model = stir(build(EVERY[method])).train()
        if is_checkpointed:
            model.activation_checkpointing_enable()
        model(**batch, use_cache=False).loss.backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_the_pipeline_answers_a_batch_as_it_answers_each(saved, processor):
    model, folder = saved
    processor.save_pretrained(folder)
    answer = pipeline("image-text-to-text", model=str(folder), device="cpu")
    options = {"max_new_tokens": 5, "return_full_text": False}
    chats = [ask("What?", page(1)), ask("Which colour is the larger one?", page(2)), ask("", page(3))]
    together = answer(text=chats, batch_size=3, **options)
    for messages, said in zip(chats, together, strict=True):
        assert said[0]["generated_text"] == answer(text=messages, **options)[0]["generated_text"]


def test_the_pipeline_takes_an_image_and_a_question_beside_each_other(build, processor, tmp_path):
    model = stir(build(V2))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answer = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    [found] = answer(images=page(1), text="What?", max_new_tokens=5, return_full_text=False)
    request = Request(first_question("What?", num_images=1), [page(1)])
    assert found["generated_text"] == Engine(model, processor).answer([request], max_new_tokens=5)[0].text
