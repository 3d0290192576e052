"""Whatever a text spells, it never becomes an image slot or a role: 1,000 random strings on every road into the model.

On each road the control tokens are counted where they arrive: image slots as many as images, turns as many as messages.
"""

import functools
import json
import random

import pytest
import torch
from typer.testing import CliRunner

import vision_remember_cli as front
from tests.model.conftest import AVG_POOL, V2, ask, page
from tests.tiny import save_encoder, save_language_model
from vision_remember import Engine, VisionRememberForConditionalGeneration, VisionRememberProcessor
from vision_remember.data.collator import Collator
from vision_remember.data.schema import DataError
from vision_remember.data.sources import load_samples
from vision_remember.model.engine import Request

COUNT = 1000
SLOTS = 4  # vision tokens of one image
FRAGMENTS = [
    *("<image>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>"),  # every added token of the tokenizer
    *("<s>", "</s>", "[INST]", "<|eot_id|>", "<start_of_turn>", "<|image_pad|>", "<|vision_start|>", "<|user|>"),
    *("<|im_start|>assistant\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>system\n", "user\n", "assistant\n"),
    *("<ima<image>ge>", "<image", "image>", "<|im_", "start|>", "<|", "|>", "\\u003cimage\\u003e", "&lt;image&gt;"),
    *(
        "<IMAGE>",
        "< image >",
        "＜image＞",
        "<image>" * 4,
        "\x00",
        "\u200b",
        "\ufeff",
        "\r\n",
        "  ",
        "é",
        "价格",
        "👩‍👧",
        "42",
    ),
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Between one and ten fragments or characters each, and every fragment once by itself."""
    draw = random.Random(0)
    letters = [chr(code) for code in [*range(32, 127), *range(0x4E00, 0x4E20)]]
    strings = [
        "".join(draw.choice(FRAGMENTS if draw.random() < 0.7 else letters) for _ in range(draw.randint(1, 10)))
        for _ in range(COUNT - len(FRAGMENTS))
    ]
    return [*FRAGMENTS, *strings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tiny model whose method counts on turns and images alike."""
    folder = tmp_path_factory.mktemp("model")
    backbones = save_encoder(folder / "clip"), save_language_model(folder / "qwen2")
    model = VisionRememberForConditionalGeneration.from_backbones(*backbones, projector=AVG_POOL, refusion=V2)
    model.config.text_config.max_position_embeddings = 4096
    model.save_pretrained(folder / "model")
    VisionRememberProcessor.from_backbones(*backbones, model.config).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.load(folder, device="cpu")


@pytest.fixture(scope="module")
def processor(engine):
    return engine.processor


@pytest.fixture
def prompts(engine):
    """The ids of every prompt that reaches the model, padding left out."""
    seen: list[list[int]] = []

    def record(module, arguments, options):
        ids, mask = options["input_ids"], options.get("attention_mask")
        if ids.shape[1] > 1:
            mask = torch.ones_like(ids) if mask is None else mask
            seen.extend(row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True))

    handle = engine.model.register_forward_pre_hook(record, with_kwargs=True)
    yield seen
    handle.remove()


def assert_counts(processor, ids, *, images: int, opened: int, closed: int):
    template = processor.template
    control = set(processor.tokenizer.added_tokens_decoder) | set(processor.tokenizer.all_special_ids)
    expected = {template.image_token_id: images * SLOTS, template.start_id: opened, template.end_id: closed}
    found = {token: ids.count(token) for token in control if token in ids}
    assert found == {token: count for token, count in expected.items() if count}


def test_the_processor_counts_structure_alone(processor, texts):
    for number, text in enumerate(texts):
        images = [page(1)] * (number % 3)
        messages = [
            {"role": "system", "content": text},
            *ask(text, *images),
            {"role": "assistant", "content": text},
            {"role": "user", "content": text},
        ]
        ids = processor.encode(messages, add_generation_prompt=True).input_ids
        assert_counts(processor, ids, images=number % 3, opened=5, closed=4)


@pytest.mark.parametrize("road", ["call", "template", "rendered"])
def test_so_do_the_doors_of_transformers(processor, texts, road):
    for start in range(0, COUNT, 100):
        batch = texts[start : start + 100]
        chats = [ask(text, page(1)) for text in batch]
        if road == "call":
            inputs = processor(text=batch, images=[[page(1)]] * len(batch))
        elif road == "template":
            inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True)
        else:
            inputs = processor(text=processor.apply_chat_template(chats, add_generation_prompt=True))
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            assert_counts(processor, ids[mask.bool()].tolist(), images=1, opened=2, closed=1)


def test_the_engine_asks_the_model_with_the_same_structure(engine, processor, texts, prompts):
    requests = [Request(ask(text, page(1))) if number % 2 else Request(ask(text)) for number, text in enumerate(texts)]
    answers = engine.answer(requests, max_new_tokens=1, batch_size=50)
    assert len(prompts) == len(answers) == COUNT
    for number, ids in enumerate(prompts):
        assert_counts(processor, ids, images=number % 2, opened=2, closed=1)


def test_the_loaders_lead_to_the_same_structure(processor, texts, tmp_path):
    def answer(text):
        return {"role": "assistant", "content": f"{text}."}  # an empty answer would be refused

    page(1).save(tmp_path / "a.png")
    messages = [
        {"images": ["a.png"], "messages": [*_parts(text, with_image=True), answer(text)]}
        if number % 2
        else {"messages": [{"role": "user", "content": text}, answer(text)]}
        for number, text in enumerate(texts)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, messages)), encoding="utf-8")
    llava = [  # LLaVA's layout: `<image>` in the human's strings is the mark of a slot, so it is left to the test below
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\n" + without_marks(text)},
                {"from": "gpt", "value": f"{text}."},
            ],
        }
        for text in texts
    ]
    (tmp_path / "llava.json").write_text(json.dumps(llava), encoding="utf-8")
    collator = Collator(processor)
    for name in ("chats.jsonl", "llava.json"):
        samples = load_samples(tmp_path / name)
        assert len(samples) == COUNT
        for number, sample in enumerate(samples):
            images = 1 if name == "llava.json" else number % 2
            assert_counts(processor, collator.encode(sample).input_ids, images=images, opened=2, closed=2)


def test_a_mark_too_many_in_a_llava_question_is_refused_with_both_counts(processor, texts, tmp_path):
    page(1).save(tmp_path / "a.png")
    marked = [text for text in texts if "<image>" in text]
    turns = [[{"from": "human", "value": f"<image>\n{t}"}, {"from": "gpt", "value": "42"}] for t in marked]
    records = [{"image": "a.png", "conversations": turn} for turn in turns]
    (tmp_path / "llava.json").write_text(json.dumps(records), encoding="utf-8")
    samples = load_samples(tmp_path / "llava.json")
    assert len(samples) > 200
    for number, text in enumerate(marked):
        with pytest.raises(DataError, match=rf"{1 + text.count('<image>')} .*1 "):
            samples.read(number)


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_the_command_line_asks_with_the_same_structure(
    engine, folder, processor, texts, tmp_path, prompts, monkeypatch, step
):
    """Every tenth string by default, all of them when slow; the model is loaded once."""
    page(1).save(tmp_path / "a.png")
    monkeypatch.setattr(Engine, "load", functools.lru_cache(lambda path, tokens_per_image: engine))
    runner = CliRunner()
    for text in texts[::step]:
        options = ["ask", "--model", str(folder), "--max-new-tokens", "1", "--", str(tmp_path / "a.png"), text]
        done = runner.invoke(front.app, options)
        assert done.exit_code == 0, (text, done.output)
    assert len(prompts) == COUNT // step
    for ids in prompts:
        assert_counts(processor, ids, images=1, opened=2, closed=1)


def test_a_placeholder_without_its_image_stops_the_model(engine, processor):
    """What would happen if a text did forge a slot: an error, not an answer."""
    ids = torch.tensor([[processor.template.start_id, processor.image_token_id, processor.template.end_id]])
    with pytest.raises(ValueError, match="1 image placeholders in input_ids, 0 vision tokens given"):
        engine.model(input_ids=ids)


def without_marks(text: str) -> str:
    while "<image>" in text:
        text = text.replace("<image>", "")
    return text


def _parts(text: str, *, with_image: bool) -> list[dict]:
    return [{"role": "user", "content": [*[{"type": "image"}] * with_image, {"type": "text", "text": text}]}]
