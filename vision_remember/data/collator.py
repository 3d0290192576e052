"""From samples to a model's batch, through the processor, naming the sample whenever something does not fit.

The collator knows no model: it is given a processor with `encode`, `pad` and `image_token_id`, the same one that serves, so what trains
is what serves. A sample that has nothing to learn, too many tokens, or an unreadable image is an error; whether it ends the run or goes to
the quarantine is decided by whoever calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from vision_remember.data.schema import DataError, Sample


class Encoding(Protocol):
    """One conversation as ids; `target` is True where the model is to speak; `pixel_values` float[n, 3, height, width]."""

    input_ids: list[int]
    target: list[bool]
    pixel_values: Tensor


class Processor(Protocol):
    """What the collator needs of a processor."""

    image_token_id: int

    def encode(self, messages: Sequence[dict], images: Sequence[Any]) -> Any:
        """One conversation and its images to an `Encoding`."""
        ...

    def pad(self, encodings: Sequence[Any], *, side: Literal["left", "right"]) -> Mapping[str, Tensor]:
        """Encodings to a batch."""
        ...


class Collator:
    """Makes batches.

    Args:
        processor: The model's processor.
        max_length: Most tokens T of one sample, image slots expanded; None for no limit.
        overlong: `error`, or `truncate` to cut text off the end; an image slot is never cut and one target token must be left.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        max_length: int | None = None,
        overlong: Literal["error", "truncate"] = "error",
    ):
        self.processor, self.max_length, self.overlong = processor, max_length, overlong

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Tensor]:
        """Encodes and pads a batch of B samples, on the right.

        Returns:
            `input_ids`, `attention_mask` and `labels` long[B, T], `pixel_values` where a sample has images. Without any sample, because
            all of a batch were set aside, one row without a label, whose loss is 0.

        Raises:
            DataError: A sample cannot be used.
        """
        encodings = [self.encode(sample) for sample in samples] or [self._silence()]
        return self.processor.pad(encodings, side="right")

    def encode(self, sample: Sample, images: Sequence[Any] | None = None) -> Any:
        """Encodes one sample.

        Args:
            sample: The sample.
            images: What the processor is given for its images; None: the images, read now.

        Raises:
            DataError: An unreadable image, no target token, more than `max_length` tokens, or whatever the processor refuses.
        """
        images = sample.load_images() if images is None else images
        try:
            encoding = self.processor.encode(sample.messages(), images)
        except ValueError as error:
            raise _error(sample, "sample.encode", str(error), "mend the sample") from None
        if self.max_length is not None and len(encoding.input_ids) > self.max_length:
            encoding = self._shorten(encoding, sample, self.max_length)
        if not any(encoding.target):
            raise _error(sample, "sample.no_target", "no token to learn from", "add an assistant's answer")
        return encoding

    def _shorten(self, encoding: Any, sample: Sample, length: int) -> Any:
        ids, slot = encoding.input_ids, self.processor.image_token_id
        num_slots, cut_slots = ids.count(slot), ids[length:].count(slot)
        why = f"{len(ids)} tokens ({num_slots} of them image slots), limit {length}"
        if self.overlong == "error":
            raise _error(sample, "sample.too_long", why, "raise max_length or shorten the text")
        if cut_slots:
            raise _error(
                sample, "sample.too_long", f"{why}: cutting would lose {cut_slots} image slots", "raise max_length"
            )
        if not any(encoding.target[:length]):
            raise _error(sample, "sample.too_long", f"{why}: cutting would leave nothing to learn", "raise max_length")
        return dataclasses.replace(encoding, input_ids=ids[:length], target=encoding.target[:length])

    def _silence(self) -> Any:
        messages = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
        encoding = self.processor.encode(messages, [])
        return dataclasses.replace(encoding, target=[False] * len(encoding.input_ids))


def _error(sample: Sample, code: str, why: str, fix: str) -> DataError:
    return DataError.of([sample.problem(code, why, fix)])
