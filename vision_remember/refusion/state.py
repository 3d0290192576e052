"""What travels to the insertions: the memory, one row per vision token, and the state of one call of the language model.

Rows, because whatever repeats, slices or packs the tokens of an image (beams, chunked prefill, serving engines) can do the
same to rows, and would silently mis-slice a feature map. Methods that drop tokens have no memory and another state,
:class:`Shortening`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """The memory of B images, one row per vision token, so that whatever repeats, slices or packs tokens may do the same to it.

    Attributes:
        rows: ``float[B, V, M]``, the window of each token flattened into channels.
        valid: ``bool[B, V, W]``, which slots of the window hold a patch.
        place: ``long[B, V, W]``, where in the window each slot lies (an index of the method's own position table).
    """

    rows: Tensor
    valid: Tensor
    place: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusionState:
    """Everything the insertions need in one call of the language model; passed down as ``refusion=``, never stored.

    N counts the vision tokens of this chunk that own a memory row, over all I images, in the order of their positions. An
    image of any resolution is several here, its base view and each of its tiles; their tokens may stand between each other's.

    Attributes:
        position: ``long[N]``, flat place ``b * T + t`` in the chunk, increasing (:func:`flat_positions` of a mask).
        rows, valid, place: ``[N, ...]``, the rows of :class:`Memory` for these tokens.
        image: ``long[N]``, which of the I images of this call a token belongs to.
        index: ``long[N]``, number of the token in its image, from 0.
        count: ``long[N]``, how many tokens its image has in all.
        batch_row: ``long[I]``, the row of the batch that holds each image.
        max_count: The largest ``count``; a plain number, so that padding to it needs no device synchronisation.
        guidance: ``bool[I, T]``, the user text of each image's own turn, or None for methods without guidance.
        attentions: None, or an empty dict that the call fills: decoder layer -> attention ``float[N, H, W]``.
    """

    position: Tensor
    rows: Tensor
    valid: Tensor
    place: Tensor
    image: Tensor
    index: Tensor
    count: Tensor
    batch_row: Tensor
    max_count: int
    guidance: Tensor | None = None
    attentions: dict[int, Tensor] | None = None

    def pad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sorts tokens ``float[N, D]`` into images of ``max_count`` places: ``float[I, S, D]`` and which are filled, ``bool[I, S]``."""
        place, images = self._place, (len(self.batch_row), self.max_count)
        tokens = x.new_zeros(images[0] * images[1], x.shape[1]).index_copy(0, place, x)
        filled = place.new_zeros(images[0] * images[1], dtype=torch.bool).index_fill(0, place, True)
        return tokens.unflatten(0, images), filled.unflatten(0, images)

    def unpad(self, x: Tensor) -> Tensor:
        """Back from ``float[I, S, D]`` to the tokens, ``float[N, D]``."""
        return x.flatten(0, 1).index_select(0, self._place)

    @property
    def _place(self) -> Tensor:
        return self.image * self.max_count + self.index

    def check_whole_images(self) -> None:
        """Refuses a chunk that cuts an image; called once per chunk for methods with ``needs_whole_images``."""
        present = torch.zeros_like(self.count).index_add(0, self.image, torch.ones_like(self.image))[self.image]
        is_whole = present == self.count
        if torch.compiler.is_compiling():
            torch._check_tensor_all(is_whole)  # a compiled call cannot tell which image it was
        elif not is_whole.all():
            row = int((~is_whole).nonzero()[0])
            raise ValueError(
                f"a prefill chunk holds {int(present[row])} of the {int(self.count[row])} vision tokens of image "
                f"{int(self.image[row])}, and this re-fusion method attends over whole images; prefill in larger chunks"
            )

    def to(self, device: Any, non_blocking: bool = False) -> "RefusionState":
        """The same on another device: what ``device_map`` asks of arguments when a layer lives elsewhere."""
        return replace(self, **_moved(self, device, non_blocking))


@dataclass(kw_only=True, eq=False)
class Shortening:
    """The state of a method that drops tokens, for one call of the language model; passed down as ``refusion=``.

    The caller gives the first three; the decoder layer under the drop fills ``received``, the method ``places``, and the
    layers above work on what is left. Decoding and text alone drop nothing: there ``vision`` and ``asking`` are None.

    Attributes:
        valid: ``bool[B, T]``, which positions of the chunk hold a token; None for all.
        vision: ``bool[B, T]``, the vision tokens, which may be dropped.
        asking: ``long[B]``, the position whose attention decides: the last token of each prompt.
        received: ``float[B, T]``, attention that every position receives from the asking one, the mean over the heads.
        places: ``long[B, S]``, the positions that are left, increasing, then -1 up to the longest of the batch.
        mask: What the decoder's attention takes as its mask among the tokens that are left.
    """

    valid: Tensor | None = None
    vision: Tensor | None = None
    asking: Tensor | None = None
    received: Tensor | None = None
    places: Tensor | None = None
    mask: Any = None

    def to(self, device: Any, non_blocking: bool = False) -> "Shortening":
        """Moves to another device, itself and no copy: what one layer leaves behind is for all layers above."""
        vars(self).update(_moved(self, device, non_blocking))
        return self

    @torch.no_grad()
    def ask(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Measures ``received``, in float32, from one layer's queries ``[B, H, T, K]`` and keys ``[B, Hkv, T, K]``."""
        assert self.asking is not None and self.valid is not None
        at = self.asking[:, None, None, None].expand(-1, query.shape[1], 1, query.shape[3])
        asked = query.gather(2, at).float().view(len(query), key.shape[1], -1, query.shape[3])  # [B, Hkv, H / Hkv, K]
        seen = self.valid & (torch.arange(key.shape[2], device=key.device) <= self.asking[:, None])
        logits = (asked @ key.float().mT * scaling).masked_fill(~seen[:, None, None], float("-inf"))
        self.received = logits.softmax(-1).mean((1, 2))

    def leave(self, kept: Tensor) -> None:
        """Fills ``places`` with the positions of ``kept bool[B, T]``."""
        count = kept.sum(1, keepdim=True)
        length = int(count.max())
        order = kept.long().argsort(dim=1, descending=True, stable=True)[:, :length]
        self.places = order.where(torch.arange(length, device=kept.device) < count, -1)

    def gather(self, x: Tensor) -> Tensor:
        """From one row per position, ``[B, T, D]`` or ``[1, T, D]``, to one per place, ``[B, S, D]``; padding repeats row 0."""
        assert self.places is not None
        at = self.places.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])
        return x.expand(len(at), -1, -1).gather(1, at)

    def spread(self, x: Tensor) -> Tensor:
        """Back from one row per place, ``[B, S, D]``, to one per position, ``[B, T, D]``; dropped positions are 0."""
        assert self.places is not None and self.vision is not None
        length = self.vision.shape[1]
        at = self.places.where(self.places >= 0, length)[..., None].expand_as(x)
        return x.new_zeros(len(x), length + 1, x.shape[2]).scatter(1, at, x)[:, :length]


def _moved(state: RefusionState | Shortening, device: Any, non_blocking: bool) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=non_blocking) for k, v in vars(state).items() if isinstance(v, Tensor)}


def flat_positions(mask: Tensor, num_rows: int) -> Tensor:
    """``RefusionState.position`` of a ``bool[B, T]`` mask with ``num_rows`` True entries, without a data-dependent shape."""
    return mask.flatten().nonzero_static(size=num_rows).squeeze(1)
