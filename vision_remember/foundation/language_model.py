"""The embedded language model: a Qwen2-architecture decoder pretrained on the synthetic documents as text.

It reads pages as characters (sometimes cell by cell, as an image would be read, sometimes line by line) with questions and answers, then
pages in tokens of several characters (`packed_pages.py`), so that looking things up and spelling are its skill and only the pixels are
new to it when an encoder is put in front.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vision_remember.data.synthetic.canvas import CHARACTERS
from vision_remember.data.synthetic.pages import Page, make_page
from vision_remember.data.synthetic.samples import READ_ALL
from vision_remember.foundation.chat import Chat, encode, pad, spell
from vision_remember.foundation.fit import Schedule, fit
from vision_remember.foundation.packed_pages import pretrain_on_packed_pages
from vision_remember.foundation.tokenizer import build_tokenizer

SCHEDULE = Schedule(steps=1500, learning_rate=2e-3, warmup=50)
LETTERS = CHARACTERS[:36]
BATCH, PAGES_BATCH = 32, 16
SHARES = {
    "table": 0.35,
    "chart": 0.25,
    "text": 0.2,
    "form": 0.15,
    "layout": 0.05,
}  # the shapes of a layout are no characters
QUESTIONS = 5  # at most, a page
# Look-up is a plateau when it is asked for at once, so it is built from its parts: until this step, these shares of the drills below.
CURRICULUM = {275: (8, 2, 0, 0), 425: (1, 6, 3, 0), 550: (1, 2, 4, 3), 700: (1, 1, 2, 6)}
DRILLS_AFTER = 0.1  # share of the last drills among the pages that follow
DENSE_PAGES = 0.6  # share of the pages whose empty rows are left out


def pretrain_language_model(folder: Path, seed: int) -> Qwen2ForCausalLM:
    """Trains, and writes `language_model` (with its tokenizer) and `packing` to `folder`; resumes from `folder`."""
    tokenizer = build_tokenizer(seed)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        ids, labels = _batch(tokenizer, seed, step)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        truth = labels[:, 1:]
        chosen = truth != -100
        guesses, truth = model.lm_head(hidden[chosen]), truth[chosen]
        right = (guesses.argmax(-1) == truth).float().mean().item()
        return torch.nn.functional.cross_entropy(guesses, truth), {"right": right, "length": ids.shape[1]}

    fit(model, loss, SCHEDULE, folder / "language_model_run", "language model")
    reader = pretrain_on_packed_pages(model, tokenizer, folder, seed)
    reader.packing.save(folder / "packing")
    model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    return model


def _batch(tokenizer: PreTrainedTokenizerFast, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """ids and labels int64[B, T], right-padded; only answers are targets."""
    rng = random.Random(f"{seed}/language/{step}")
    shares = next((shares for until, shares in CURRICULUM.items() if step < until), None)
    is_drill = shares is not None
    rows = []
    for place in range(BATCH if is_drill else PAGES_BATCH):
        if is_drill or rng.random() < DRILLS_AFTER:
            drill = rng.choices((_copying, _listing, _prompted_look_up, _look_up), shares or (0, 0, 0, 1))[0]
            rows.append(drill(tokenizer, rng))
        else:
            family = rng.choices([*SHARES], [*SHARES.values()])[0]
            page = make_page(family, "train", seed, step * BATCH + place)
            rows.append(_page(page, tokenizer, rng))
    return pad(rows, tokenizer.pad_token_id)


def _copying(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Chat:
    """Random characters, to be repeated."""
    text = spell(tokenizer, "".join(rng.choice(LETTERS + "  ") for _ in range(rng.randrange(6, 30))))
    chat = Chat(tokenizer)
    chat.turn(text, text)
    return chat


def _listing(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Chat:
    """A list of entries and the same entries in another order, whose values are the targets."""
    entries, gap = _entries(rng)
    chat = Chat(tokenizer)
    chat.add(_list(tokenizer, entries, gap))
    for key in rng.sample(list(entries), len(entries)):
        chat.add(spell(tokenizer, f"{key}{gap}"))
        chat.add(spell(tokenizer, f"{entries[key]} "), is_target=True)
    return chat


def _look_up(tokenizer: PreTrainedTokenizerFast, rng: random.Random, *, is_prompted: bool = False) -> Chat:
    """A list of entries, then a question for every key."""
    entries, gap = _entries(rng)
    listed = _list(tokenizer, entries, gap)
    chat = Chat(tokenizer)
    for place, key in enumerate(rng.sample(list(entries), len(entries))):
        begun = f"{key}{gap}"[rng.randrange(len(key) + len(gap) + 1) :] if is_prompted else ""
        asked = spell(tokenizer, key)
        chat.turn([*listed, *asked] if place == 0 else asked, spell(tokenizer, entries[key]), spell(tokenizer, begun))
    return chat


def _prompted_look_up(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Chat:
    """The same, with some end of the key given at the start of the answer: the steps from `_listing` to `_look_up`."""
    return _look_up(tokenizer, rng, is_prompted=True)


def _entries(rng: random.Random) -> tuple[dict[str, str], str]:
    """A few random keys of different initials with values, and what stands between them."""

    def draw(shortest: int, longest: int) -> str:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(shortest, longest + 1)))

    entries: dict[str, str] = {}
    for initial in rng.sample(LETTERS, rng.randrange(2, 7)):
        entries[initial + draw(0, 3)] = draw(2, 4)
    return entries, rng.choice(["", ":"]) + " " * rng.randrange(0, 4)


def _list(tokenizer: PreTrainedTokenizerFast, entries: dict[str, str], gap: str) -> list[int]:
    return spell(tokenizer, "".join(f"{key}{gap}{value} " for key, value in entries.items()))


def _page(page: Page, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Chat:
    """A page written as text, mostly cell by cell as an image is read, with questions or to be read out."""
    is_dense = rng.random() < DENSE_PAGES
    rows = [row for row in page.text if row.strip() or not is_dense]
    if rng.random() < 0.75:
        written = spell(tokenizer, "".join(rows))
    else:
        written = encode(tokenizer, "\n".join(row.rstrip() for row in rows if row.strip()))
    turns = [
        (question.question, question.answer)
        for question in rng.sample(page.questions, min(QUESTIONS, len(page.questions)))
    ]
    if page.transcript and rng.random() < 0.15:
        turns = [(READ_ALL, page.transcript), *turns[:1]]
    chat = Chat(tokenizer)
    for place, (question, answer) in enumerate(turns):
        head = [*written, *encode(tokenizer, "\n")] if place == 0 else []
        chat.turn([*head, *encode(tokenizer, question)], encode(tokenizer, answer))
    return chat
