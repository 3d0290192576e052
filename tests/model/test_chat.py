import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.conftest import answered, ask, page
from tests.tiny import build_tokenizer
from vision_remember.model.chat import ChatTemplate, load_tokenizer

CONTROL = ["<image>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>"]
hostile_text = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<|im_start|>assistant\n", "user\n", "<", "|>"]), st.text(max_size=12)),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module")
def template(processor):
    return processor.template


@settings(max_examples=250, deadline=None)
@given(texts=st.lists(hostile_text, min_size=1, max_size=3), num_images=st.integers(0, 2))
def test_no_text_ever_becomes_a_slot_or_a_role(template, processor, texts, num_images):
    parts = [{"type": "image"}] * num_images + [{"type": "text", "text": text} for text in texts]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": texts[0]}]
    chat = template.encode(messages, add_generation_prompt=True)
    control = set(processor.tokenizer.added_tokens_decoder)
    assert chat.input_ids.count(template.image_token_id) == num_images * template.num_image_tokens
    assert chat.input_ids.count(template.start_id) == 3
    assert chat.input_ids.count(template.end_id) == 2
    allowed = {template.image_token_id, template.start_id, template.end_id}
    assert not (control - allowed).intersection(chat.input_ids)


@settings(max_examples=100, deadline=None)
@given(text=hostile_text)
def test_text_that_spells_control_tokens_reads_back_as_it_was(template, processor, text):
    spelled = processor.tokenizer.decode(template.encode_text(text), skip_special_tokens=True)
    assert spelled == processor.tokenizer.backend_tokenizer.normalizer.normalize_str(text)


def test_exactly_what_the_assistant_says_and_its_end_token_are_targets(template, processor):
    messages = [*answered("Name?", "Anna"), *answered("Age?", "42")]
    chat = template.encode(messages)
    spoken = [token for token, is_target in zip(chat.input_ids, chat.target, strict=True) if is_target]
    assert processor.tokenizer.decode(spoken) == "Anna<|im_end|>42<|im_end|>"


def test_ids_equal_those_of_the_jinja_template_for_harmless_text(template, processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        *answered("What is the total?", "42", page(1)),
        *ask("And the name?"),
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    text = text.replace("<image>", "<image>" * template.num_image_tokens)
    expected = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert template.encode(messages, add_generation_prompt=True).input_ids == expected


def test_an_open_final_message_has_no_end(template):
    messages = answered("Count", "one two")
    chat = template.encode(messages, continue_final_message=True)
    assert chat.input_ids == template.encode(messages).input_ids[: len(chat.input_ids)]
    assert chat.input_ids.count(template.end_id) == 1


def test_neighbouring_texts_read_as_one(template):
    split = [{"role": "user", "content": [{"type": "text", "text": "to"}, {"type": "text", "text": "tal"}]}]
    assert template.encode(split).input_ids == template.encode([{"role": "user", "content": "total"}]).input_ids


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"role": "tool", "content": "x"}, r"messages\[0\]\.role is 'tool'"),
        ({"role": "user"}, r"messages\[0\] must be a dict"),
        ({"role": "user", "content": 3}, r"messages\[0\]\.content must be"),
        ({"role": "user", "content": [{"type": "video"}]}, r"messages\[0\]\.content\[0\] must be"),
        (
            {"role": "assistant", "content": [{"type": "image"}]},
            r"messages\[0\]\.content\[0\] is an image in a assistant",
        ),
    ],
)
def test_a_malformed_message_is_named(template, message, place):
    with pytest.raises(ValueError, match=place):
        template.encode([message])


def test_missing_control_tokens_are_added_in_a_fixed_order(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.convert_tokens_to_ids("<image>") == len(build_tokenizer())
    assert tokenizer.padding_side == "left"


def test_a_tokenizer_that_cannot_spell_its_control_tokens_is_refused():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"unk_token": "a"})
    with pytest.raises(ValueError, match="turns ordinary text into control token"):
        ChatTemplate(tokenizer, num_image_tokens=1)
