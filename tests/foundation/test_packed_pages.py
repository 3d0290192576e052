"""Packed pages: what a token of several characters holds, and that nothing of the answers is given away."""

import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vision_remember.data.synthetic.pages import make_page
from vision_remember.foundation.chat import spell
from vision_remember.foundation.packed_pages import PARTS, SQUARES, PackedReader, _batch, _chat, right_answers
from vision_remember.foundation.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(0, pages=20)


@pytest.fixture(scope="module")
def reader(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return PackedReader(Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **shape)), tokenizer)


def cells(tokenizer, **written: str) -> torch.Tensor:
    """A page with characters at `r{row}c{column}`."""
    page = [" "] * 144
    for place, character in written.items():
        row, column = place[1:].split("c")
        page[12 * int(row) + int(column)] = character
    return torch.tensor([spell(tokenizer, "".join(page))])


@pytest.mark.parametrize("side", SQUARES)
def test_a_character_changes_the_token_of_its_own_square_alone(reader, tokenizer, side):
    blank, written = (reader.tokens(page, side) for page in (cells(tokenizer), cells(tokenizer, r7c5="K")))
    changed = (blank != written).any(-1)[0].view(12 // side, 12 // side)
    assert changed.nonzero().tolist() == [[7 // side, 5 // side]]


def test_a_square_tells_the_order_of_its_characters(reader, tokenizer):
    one, other = (reader.tokens(cells(tokenizer, r0c0=a, r0c1=b), 3) for a, b in ("AB", "BA"))
    assert not torch.allclose(one[0, 0], other[0, 0], atol=1e-3)


def test_tokens_have_the_size_of_text_embeddings(reader, tokenizer):
    size = reader.model.get_input_embeddings().weight.pow(2).mean(1).sqrt().median()
    tokens = reader.tokens(cells(tokenizer, r0c0="A"), 3)
    assert torch.allclose(tokens.pow(2).mean(-1).sqrt(), size.expand(1, 16), rtol=1e-3)


def test_the_page_stands_once_and_only_answers_are_targets(tokenizer):
    page = make_page("form", "train", 0, 0)
    chat = _chat(page, tokenizer, random.Random(0), 3)
    assert chat.ids.count(-1) == 16
    targets = tokenizer.decode([label for label in chat.labels if label != -100])
    assert all(question.answer in targets for question in page.questions[:1]) and "What" not in targets


def test_exercises_are_asked_for_in_pretraining_alone(tokenizer):
    page = make_page("table", "train", 0, 0)
    chat = _chat(page, tokenizer, random.Random(0), 3, practised=1.0)
    assert "with its" in tokenizer.decode([token for token in chat.ids if token >= 0])
    assert {question.level for question in page.questions} == {0} and {one.level for one in page.exercises} == {1, 2}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_step_names_its_batch(tokenizer, part):
    side, ids, labels, pages = _batch(tokenizer, part, 0, 7)
    assert (side, ids.tolist(), labels.tolist()) == (lambda s, i, t, _: (s, i.tolist(), t.tolist()))(
        *_batch(tokenizer, part, 0, 7)
    )
    assert len(ids) == len(pages) == SQUARES[side] and ((ids < 0).sum(1) == (12 // side) ** 2).all()


def test_right_answers_are_counted_whole(reader, tokenizer):
    class Oracle:
        """Knows the next token of every place but one."""

        def __init__(self, spoilt: int):
            self.model, self.spoilt = self, spoilt

        def __call__(self, ids, cells, side):
            truth = ids.clamp(min=0).clone()
            truth[0, torch.where(ids[0] == tokenizer.eos_token_id)[0][1]] += self.spoilt  # the end of the first answer
            return torch.nn.functional.one_hot(truth.roll(-1, 1), len(tokenizer) + 1).float()

        def lm_head(self, hidden):
            return hidden

    assert right_answers(Oracle(0), tokenizer, "form", 3, count=3) == 1
    assert 0.5 < right_answers(Oracle(1), tokenizer, "form", 3, count=3) < 1
