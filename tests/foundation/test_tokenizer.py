"""The embedded tokenizer: any text survives it, and what stands on a page is spelt one token a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision_remember.data.synthetic.canvas import CHARACTERS
from vision_remember.foundation.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(0, pages=20)


def test_capitals_and_digits_are_tokens_of_their_own(tokenizer):
    assert len(tokenizer("KAMO 4172")["input_ids"]) == 9
    for character in CHARACTERS:
        assert len(tokenizer(character)["input_ids"]) == 1


def test_questions_come_in_pieces(tokenizer):
    assert len(tokenizer("What is the value of")["input_ids"]) <= 6


def test_text_survives(tokenizer):
    @settings(max_examples=100, deadline=None)
    @given(
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<|" not in text)
    )
    def survives(text):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    survives()


def test_it_has_chatml_and_no_image_token(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") != tokenizer.unk_token_id
    assert "<image>" not in tokenizer.get_vocab()
