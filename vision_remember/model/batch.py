"""From encoded conversations to a padded batch: the one place where padding and labels are laid down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import BatchFeature

from vision_remember.model.canvases import stack_views

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """One conversation, ready to be padded into a batch.

    Attributes:
        input_ids: Token ids, T of them, image slots expanded.
        target: True on assistant text and its end token.
        pixel_values: float[n, 3, height, width], one per image in reading order; n may be 0. With views, float[n, 1 + X, 3, height, width].
        image_sizes: Of an any-resolution model: height and width of each image in pixels.
    """

    input_ids: list[int]
    target: list[bool]
    pixel_values: Tensor
    image_sizes: Sequence[tuple[int, int]] = ()


def pad(encodings: Sequence[Encoding], *, pad_token_id: int, side: Literal["left", "right"]) -> BatchFeature:
    """Pad conversations into a batch.

    Args:
        encodings: B conversations.
        pad_token_id: Fills the rest of a row.
        side: "left" for generation, "right" for training.

    Returns:
        `input_ids` long[B, T], `attention_mask` long[B, T], `labels` long[B, T] (-100 where nothing is to be said), and `pixel_values`
        float[N, 3, height, width] (with views, [N, 1 + X, 3, height, width]) of all images in order, absent when there is none. At any
        resolution also `image_sizes` long[N, 2].

    Raises:
        ValueError: There is nothing to pad, or the side is neither.
    """
    if not encodings or side not in ("left", "right"):
        raise ValueError(
            f"cannot pad {len(encodings)} conversations on the side {side!r}; give one or more, and left or right"
        )
    length = max(len(encoding.input_ids) for encoding in encodings)
    shape = (len(encodings), length)
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED_LABEL)
    for row, encoding in enumerate(encodings):
        count = len(encoding.input_ids)
        span = slice(length - count, length) if side == "left" else slice(0, count)
        ids = torch.tensor(encoding.input_ids)
        input_ids[row, span] = ids
        attention_mask[row, span] = 1
        labels[row, span] = torch.where(torch.tensor(encoding.target), ids, IGNORED_LABEL)
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    if sizes := [size for encoding in encodings for size in encoding.image_sizes]:
        batch["image_sizes"] = torch.tensor(sizes)
    join = stack_views if sizes else torch.cat
    pixel_values = join([encoding.pixel_values for encoding in encodings])
    return BatchFeature(batch | ({"pixel_values": pixel_values} if len(pixel_values) else {}))


def share_out(images: Sequence, num_texts: int) -> list[list]:
    """Which images belong to which text: nested lists say so themselves; a flat list serves one text, or one image per text."""
    images = list(images)
    if images and all(isinstance(group, (list, tuple)) for group in images):
        shares = [list(group) for group in images]
    elif num_texts == 1:
        shares = [images]
    else:
        shares = [[image] for image in images] or [[] for _ in range(num_texts)]
    if len(shares) != num_texts:
        raise ValueError(f"{num_texts} texts, images for {len(shares)}; pass one list of images per text")
    return shares
