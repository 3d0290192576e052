"""Between the thread that generates and the one that reads: new tokens travel one way, the wish to stop travels back."""

import queue
import threading
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer


class TokenQueue(BaseStreamer):
    """A streamer and a stopping criterion of `generate` in one, for a single prompt; iterating yields new token ids.

    Attributes:
        items: Tokens, then None; or the error that ended generation.
        is_abandoned: Set by the reader when it wants no more.
    """

    def __init__(self) -> None:
        self.items: queue.Queue[int | BaseException | None] = queue.Queue()
        self.is_abandoned = threading.Event()
        self.has_seen_prompt = False

    def put(self, value: Tensor) -> None:
        if self.has_seen_prompt:
            self.items.put(int(value))
        self.has_seen_prompt = True

    def end(self) -> None:
        self.items.put(None)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        """A stopping criterion: bool[B], True once nobody reads any more."""
        return torch.full((len(input_ids),), self.is_abandoned.is_set(), device=input_ids.device)

    def __iter__(self) -> Iterator[int]:
        while (item := self.items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
