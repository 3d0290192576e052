"""Converted LLaVA checkpoints say what transformers' own classes say: ids, pixels and logits, over random page sizes and mixed batches."""

import itertools
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.llava import save_llava
from tests.model.conftest import page
from vision_remember import Engine
from vision_remember.model.conversion import convert

TOLERANCE = 1e-5  # the bar; the operations are the same in the same order, so 0 is what is seen
PROMPT = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
LEFT = {"padding": True, "padding_side": "left"}
ALL = list(itertools.product(("llava", "llava_next"), ("clip", "siglip"), ("llama", "qwen2", "mistral")))
COVERING = [
    ("llava", "clip", "llama"),
    ("llava", "siglip", "qwen2"),
    ("llava_next", "clip", "mistral"),
    ("llava_next", "siglip", "llama"),
]
REMEMBER = {"type": "remember", "layers": [0, 1], "bidirectional": True}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of checkpoints, made when first asked for."""
    root, made = tmp_path_factory.mktemp("llava"), {}

    def folder(*kinds: str):
        if kinds not in made:
            made[kinds] = save_llava(root / "-".join(kinds), *kinds)
        return made[kinds]

    return folder


def user(text: str, *images) -> dict:
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def sizes_of_pages(count: int, seed: int) -> list[tuple[int, int]]:
    """Random widths and heights: small, square, large, and strips up to 1 to 40."""
    draw = random.Random(seed)
    sizes = [(1, 1), (48, 48), (96, 96), (7, 200), (300, 8), (88, 55), (48, 96), (96, 48)]
    while len(sizes) < count:
        sizes.append((draw.randint(3, 300), draw.randint(3, 300)))
    return sizes[:count]


def batches_of(sizes) -> list[list[list[dict]]]:
    """Conversations with one image, two, none and one per turn, four to a batch."""
    images = iter([page(number, size) for number, size in enumerate(sizes)])
    chats = []
    for number in itertools.count():
        try:
            kind = number % 4
            if kind == 0:
                chats.append([user("What is the total?", next(images))])
            elif kind == 1:
                chats.append([user("Which is the longer of these two pages", next(images), next(images))])
            elif kind == 2:
                chats.append([user("Hello, who are you?")])
            else:
                chats.append([user("Name?", next(images)), assistant("Anna"), user("And  here?", next(images))])
        except StopIteration:
            return [chats[start : start + 4] for start in range(0, len(chats), 4)]


def assert_equal_to_transformers(folder, num_sizes: int, refusion=None) -> None:
    model, processor = convert(folder, refusion=refusion)
    llava = AutoModelForImageTextToText.from_pretrained(folder).eval()
    theirs = AutoProcessor.from_pretrained(folder)
    for chats in batches_of(sizes_of_pages(num_sizes, seed=1)):
        expected = theirs.apply_chat_template(chats, return_tensors="pt", processor_kwargs=dict(LEFT), **PROMPT)
        found = processor.apply_chat_template(chats, **PROMPT)
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name], expected[name]), name
        with torch.no_grad():
            difference = (model(**found).logits - llava(**expected).logits).abs().max()
        assert difference <= TOLERANCE


@pytest.mark.parametrize("kinds", COVERING, ids="-".join)
def test_a_converted_model_says_what_transformers_class_says(saved, kinds):
    assert_equal_to_transformers(saved(*kinds), num_sizes=16)


@pytest.mark.slow
@pytest.mark.parametrize("refusion", [None, REMEMBER], ids=["none", "remember"])
@pytest.mark.parametrize("kinds", ALL, ids="-".join)
def test_every_pair_says_what_transformers_class_says_over_fifty_sizes(saved, kinds, refusion):
    assert_equal_to_transformers(saved(*kinds), num_sizes=50, refusion=refusion)


@pytest.mark.parametrize("kinds", COVERING[1:3], ids="-".join)
@pytest.mark.parametrize("refusion", [REMEMBER, {"type": "sva", "width": 16, "num_heads": 2}], ids=lambda r: r["type"])
def test_an_untrained_method_changes_nothing(saved, kinds, refusion):
    assert_equal_to_transformers(saved(*kinds), num_sizes=12, refusion=refusion)


@pytest.mark.parametrize("kinds", COVERING[::2], ids="-".join)
def test_generation_equals_that_of_transformers(saved, kinds):
    folder = saved(*kinds)
    model, processor = convert(folder, refusion=REMEMBER)
    llava = AutoModelForImageTextToText.from_pretrained(folder).eval()
    [chats, *_] = batches_of(sizes_of_pages(8, seed=2))
    inputs = processor.apply_chat_template(chats, **PROMPT)
    options = {"max_new_tokens": 6, "suppress_tokens": [processor.image_token_id]}
    for search in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}):
        assert torch.equal(model.generate(**inputs, **options, **search), llava.generate(**inputs, **options, **search))


def test_the_folder_loads_with_the_auto_classes_and_answers(saved, tmp_path):
    model, processor = convert(saved("llava_next", "clip", "mistral"), refusion=REMEMBER)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, tokens = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    chat = [user("What is the total?", page(1, (90, 61)))]
    inputs = tokens.apply_chat_template(chat, **PROMPT)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert again.config.vision_token_rms is None and again.config.turn_start_token_id is None
    assert tokens.chat_template == processor.chat_template
    engine = Engine.load(tmp_path, device="cpu")
    said = engine.ask(page(1, (90, 61)), "What is the total?")
    answer = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    assert answer(text=chat, max_new_tokens=64, return_full_text=False)[0]["generated_text"] == said


def test_the_dtype_of_the_checkpoint_is_kept(saved, tmp_path):
    llava = AutoModelForImageTextToText.from_pretrained(saved("llava", "clip", "llama"), dtype=torch.bfloat16)
    llava.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(saved("llava", "clip", "llama")).save_pretrained(tmp_path)
    model, _ = convert(tmp_path, refusion=REMEMBER)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (("llava", "clip", "llama"), {"vision_feature_select_strategy": "full"}, "1 tokens before its patches and .*'full'"),
        (("llava", "siglip", "llama"), {"vision_feature_select_strategy": "default"}, "0 tokens before its patches and .*'default'"),
        (("llava", "clip", "llama"), {"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\].* reads one level"),
        (("llava", "clip", "llama"), {"projector_hidden_act": "relu"}, "projector with relu"),
        (("llava_next", "clip", "llama"), {"multimodal_projector_bias": False}, "bias=False"),
    ],
)  # fmt: skip
def test_what_our_projector_does_not_compute_is_refused_by_name(tmp_path, kinds, options, message):
    with pytest.raises(ValueError, match=message):
        convert(save_llava(tmp_path, *kinds, **options))


@pytest.mark.parametrize("layer", [-1, -2, 1, [-2]])
@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_any_one_level_of_the_encoder_is_read(tmp_path, vision, layer):
    assert_equal_to_transformers(
        save_llava(tmp_path, "llava", vision, "llama", vision_feature_layer=layer), num_sizes=4
    )


def edit(folder, name: str, **values) -> None:
    path = folder / name
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **values}))


def test_a_pickle_a_missing_template_and_other_models_are_refused(tmp_path):
    folder = save_llava(tmp_path / "llava", "llava", "clip", "llama")
    (folder / "chat_template.jinja").rename(tmp_path / "template")
    with pytest.raises(ValueError, match="has no chat template"):
        convert(folder)
    (tmp_path / "template").rename(folder / "chat_template.jinja")
    with pytest.raises(ValueError, match="leave out vision and text"):
        convert(folder, vision="somewhere")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no .safetensors weights; pickled weights are not read"):
        convert(folder)
    edit(folder, "config.json", model_type="qwen2")
    with pytest.raises(ValueError, match="a model of type 'qwen2'; llava, llava_next and the original LLaVA"):
        convert(folder)
    with pytest.raises(ValueError, match="has no readable config.json"):
        convert(tmp_path / "nothing")


def test_pinpoints_and_sizes_that_disagree_are_refused(tmp_path):
    folder = save_llava(tmp_path, "llava_next", "clip", "llama")
    edit(folder, "config.json", image_grid_pinpoints=[[48, 96]])
    with pytest.raises(ValueError, match="make them agree"):
        convert(folder)
    folder = save_llava(tmp_path / "other", "llava", "clip", "llama")
    name = "processor_config.json"
    images = json.loads((folder / name).read_text())["image_processor"]
    edit(folder, name, image_processor={**images, "size": {"shortest_edge": 64}})
    with pytest.raises(ValueError, match=r"resizes to \{.*64.*\} and crops to .* reads 48 x 48 pixels"):
        convert(folder)


def test_a_method_that_reads_turns_needs_a_template_that_marks_them(saved):
    guided = {**REMEMBER, "guidance": True}
    with pytest.raises(ValueError, match="chat template marks no turns"):
        convert(saved("llava", "clip", "llama"), refusion=guided)
    model, processor = convert(saved("llava", "siglip", "qwen2"), refusion=guided)
    with torch.no_grad():
        for _, parameter in model.parts()["refusion"]:
            parameter.normal_(std=0.3)
    first, other = (
        model(**processor.apply_chat_template([user(text, page(1))], **PROMPT)).logits[0, :20]
        for text in ("What is the total?", "Which colour is it")
    )
    assert not torch.equal(first, other), "the question guides the tokens of its image"


def test_a_weight_that_is_missing_is_named(tmp_path):
    folder = save_llava(tmp_path, "llava", "clip", "llama")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.endswith("linear_2.weight"))
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights of LlavaForConditionalGeneration, first .*linear_2.weight"):
        convert(folder)
