"""Conversations as token ids, for pretraining the embedded language model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast


class Chat:
    """Token ids of a ChatML conversation, and labels that are set on answers alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.labels: list[int] = []

    def add(self, tokens: list[int], *, is_target: bool = False) -> None:
        self.ids += tokens
        self.labels += tokens if is_target else [-100] * len(tokens)

    def turn(self, asked: list[int], answer: list[int], begun: Sequence[int] = ()) -> None:
        """One question and its answer; `begun` is what the answer starts with and is not a target."""
        start, end = self.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        user, assistant, newline = (encode(self.tokenizer, text) for text in ("user\n", "assistant\n", "\n"))
        self.add([start, *user, *asked, end, *newline, start, *assistant, *begun])
        self.add([*answer, end], is_target=True)
        self.add(newline)


def pad(chats: Sequence[Chat], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """ids and labels int64[B, T], padded on the right; only answers are targets."""
    longest = max(len(chat.ids) for chat in chats)
    ids = torch.full((len(chats), longest), pad_token_id)
    labels = torch.full((len(chats), longest), -100)
    for place, chat in enumerate(chats):
        ids[place, : len(chat.ids)] = torch.tensor(chat.ids)
        labels[place, : len(chat.ids)] = torch.tensor(chat.labels)
    return ids, labels


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids, nothing added."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def spell(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """One token a character, spaces too, as the cells of a page are."""
    return [_characters(tokenizer)[character] for character in text]


@cache
def _characters(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {character: encode(tokenizer, character)[0] for character in map(chr, range(32, 127))}
