"""The embedded language model: a Qwen2-architecture decoder pretrained on the synthetic documents as text.

It reads pages as characters (sometimes cell by cell, as an image would be read, sometimes line by line) with questions and answers, so
that looking things up is its skill and only the pixels are new to it when an encoder is put in front.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vision_remember.data.synthetic.canvas import CHARACTERS
from vision_remember.data.synthetic.pages import Page, families, make_page
from vision_remember.foundation.fit import Schedule, fit
from vision_remember.foundation.tokenizer import build_tokenizer

SCHEDULE = Schedule(steps=2000, learning_rate=1e-3)
BATCH = 24
QUESTIONS = 5  # at most, a page
DRILL = 700  # steps of copying and look-up drills alone, in which the model learns to look things up; then pages take over
MIXED = 400  # steps in which drills fade out to one document in ten
SHORT_PAGES = 1300  # steps in which empty rows at the end of a page are left out


def pretrain_language_model(folder: Path, seed: int) -> Qwen2ForCausalLM:
    """Trains, and writes model and tokenizer to `folder / "language_model"`; resumes from `folder`."""
    tokenizer = build_tokenizer(seed)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.05,  # 0.02 suits a width of a thousand; at 128 look-up then takes several times longer to appear
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        ids, labels = _batch(tokenizer, seed, step)
        logits = model(input_ids=ids).logits[:, :-1]
        targets = labels[:, 1:]
        chosen = targets != -100
        guesses, truth = logits[chosen], targets[chosen]
        right = (guesses.argmax(-1) == truth).float().mean().item()
        return torch.nn.functional.cross_entropy(guesses, truth), {"right": right, "length": ids.shape[1]}

    fit(model, loss, SCHEDULE, folder / "language_model_run", "language model")
    model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    return model


def _batch(tokenizer: PreTrainedTokenizerFast, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """ids and labels int64[BATCH, T], right-padded; only answers are targets."""
    rng = random.Random(f"{seed}/language/{step}")
    drills = min(1.0, max(0.1, 1 - (step - DRILL) / MIXED))
    rows = []
    for place in range(BATCH):
        if rng.random() < drills:
            writer = rng.choices([_copying, _listing, _look_up], [1, 3, 4])[0](tokenizer, rng)
        else:
            page = make_page(rng.choice(families()), "train", seed, step * BATCH + place)
            writer = _page(page, tokenizer, rng, is_short=step < SHORT_PAGES)
        rows.append(writer)
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((BATCH, longest), tokenizer.pad_token_id)
    labels = torch.full((BATCH, longest), -100)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        labels[place, : len(row.ids)] = torch.tensor(row.labels)
    return ids, labels


class _Chat:
    """Token ids of a ChatML conversation, and labels that are set on answers alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.labels: list[int] = []

    def turn(self, asked: list[int], answer: list[int]) -> _Chat:
        start, end = self.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        user, assistant, newline = (_encode(self.tokenizer, text) for text in ("user\n", "assistant\n", "\n"))
        before, target = [start, *user, *asked, end, *newline, start, *assistant], [*answer, end]
        self.ids += [*before, *target, *newline]
        self.labels += [*[-100] * len(before), *target, -100]
        return self


def _copying(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> _Chat:
    """Random characters, to be repeated."""
    letters = _characters(tokenizer)
    text = [letters[rng.choice(CHARACTERS + "   ")] for _ in range(rng.randrange(6, 28))]
    return _Chat(tokenizer).turn(text, text)


def _entries(rng: random.Random) -> tuple[dict[str, str], str]:
    """A few random keys with values, and what stands between them."""

    def draw(shortest: int, longest: int) -> str:
        return "".join(rng.choice(CHARACTERS[:36]) for _ in range(rng.randrange(shortest, longest + 1)))

    entries: dict[str, str] = {}
    while len(entries) < 2 or (len(entries) < 6 and rng.random() < 0.7):
        entries[draw(1, 3)] = draw(2, 4)
    return entries, rng.choice(["", ":"]) + " " * rng.randrange(1, 4)


def _listing(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> _Chat:
    """A list of entries and the same entries in another order, whose values are the targets."""
    letters = _characters(tokenizer)
    entries, gap = _entries(rng)
    chat = _Chat(tokenizer)
    chat.ids = [letters[character] for key, value in entries.items() for character in f"{key}{gap}{value} "]
    chat.labels = [-100] * len(chat.ids)
    for key in rng.sample(list(entries), len(entries)):
        head, value = ([letters[character] for character in text] for text in (f"{key}{gap}", f"{entries[key]} "))
        chat.ids += [*head, *value]
        chat.labels += [*[-100] * len(head), *value]
    return chat


def _look_up(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> _Chat:
    """A list of entries, then a question for every key."""
    letters = _characters(tokenizer)
    entries, gap = _entries(rng)
    listed = [letters[character] for key, value in entries.items() for character in f"{key}{gap}{value} "]
    chat = _Chat(tokenizer)
    for place, key in enumerate(rng.sample(list(entries), len(entries))):
        asked = [letters[character] for character in key]
        chat.turn([*listed, *asked] if place == 0 else asked, [letters[character] for character in entries[key]])
    return chat


def _page(page: Page, tokenizer: PreTrainedTokenizerFast, rng: random.Random, is_short: bool) -> _Chat:
    """A page written as text, mostly cell by cell as an image is read, with questions or to be read out."""
    rows = list(page.text)
    while is_short and not rows[-1].strip():
        rows.pop()
    if rng.random() < 0.75:
        written = [_characters(tokenizer)[character] for character in "".join(rows)]
    else:
        written = _encode(tokenizer, "\n".join(row.rstrip() for row in rows if row.strip()))
    turns = [(question.question, question.answer) for question in rng.sample(page.questions, min(QUESTIONS, len(page.questions)))]
    if page.transcript and rng.random() < 0.3:
        turns = [("Read the page.", page.transcript), *turns[:1]]
    chat = _Chat(tokenizer)
    for place, (question, answer) in enumerate(turns):
        head = [*written, *_encode(tokenizer, "\n")] if place == 0 else []
        chat.turn([*head, *_encode(tokenizer, question)], _encode(tokenizer, answer))
    return chat


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@cache
def _characters(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {character: _encode(tokenizer, character)[0] for character in map(chr, range(32, 127))}
