"""Re-fusion: what lets the vision tokens see encoder features again between decoder layers. One file per method.

A method is a ``Refusion`` module, shared by all layers (at ``model.refusion``), that turns encoder features into one
memory row per vision token, and makes an :class:`Insertion` for every decoder layer it acts after. Both are plain torch;
``attach.py`` alone knows how insertions get between the layers of a Hugging Face decoder.

    refusion = build_refusion({"type": "remember", "layers": [1, 3]}, Backbones.from_configs(vision_config, text_config))
    attach(language_model, refusion)
    memory = refusion.memory(features, token_grid)                 # once per image
    language_model(inputs_embeds=..., refusion=RefusionState(...)) # rows of the vision tokens of this chunk
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vision_remember import plugins


@dataclass(frozen=True, kw_only=True)
class Backbones:
    """What a method may know of the two models that it stands between."""

    feature_width: int
    encoder_layers: int
    text_width: int
    decoder_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int

    @classmethod
    def from_configs(cls, vision_config: Any, text_config: Any) -> "Backbones":
        """Reads the shapes from the Hugging Face configs of encoder and decoder."""
        num_heads = text_config.num_attention_heads
        text = text_config.to_dict()  # not every text model has grouped heads or states the width of a head
        return cls(
            feature_width=vision_config.hidden_size,
            encoder_layers=vision_config.num_hidden_layers,
            text_width=text_config.hidden_size,
            decoder_layers=text_config.num_hidden_layers,
            num_heads=num_heads,
            num_kv_heads=text.get("num_key_value_heads") or num_heads,
            head_width=text.get("head_dim") or text_config.hidden_size // num_heads,
        )

    def with_heads(self, num_heads: int | None, num_kv_heads: int | None) -> "Backbones":
        """The same with another number of heads of the same width; None keeps the LLM's.

        Raises:
            ValueError: If the heads cannot be shared out evenly.
        """
        heads, kv_heads = num_heads or self.num_heads, num_kv_heads or self.num_kv_heads
        if heads % kv_heads:
            raise ValueError(
                f"{heads} attention heads cannot share {kv_heads} key heads; set num_kv_heads to a divisor"
            )
        return replace(self, num_heads=heads, num_kv_heads=kv_heads)


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

    N counts the vision tokens of this chunk that own a memory row, over all I images, in the order of their positions.

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
        present = torch.bincount(self.image, minlength=len(self.batch_row))[self.image]
        if not torch.equal(present, self.count):
            row = int((present != self.count).nonzero()[0])
            raise ValueError(
                f"a prefill chunk holds {int(present[row])} of the {int(self.count[row])} vision tokens of image "
                f"{int(self.image[row])}, and this re-fusion method attends over whole images; prefill in larger chunks"
            )


class Insertion(nn.Module):
    """The child of one decoder layer; ``forward(hidden, state, layer) -> (hidden, state)``.

    ``hidden`` is ``float[B, T, D]`` and comes back as a new tensor in which only the rows ``state.position`` differ.
    """

    def forward(self, hidden: Tensor, state: RefusionState, layer: int) -> tuple[Tensor, RefusionState]:
        raise NotImplementedError


def build_refusion(options: Mapping[str, Any], backbones: Backbones) -> nn.Module:
    """The re-fusion method of ``{"type": name, **options}``."""
    config = plugins.build_config("refusion", options)
    return plugins.load("refusion", options["type"]).Refusion(config, backbones)


def flat_positions(mask: Tensor, num_rows: int) -> Tensor:
    """``RefusionState.position`` of a ``bool[B, T]`` mask with ``num_rows`` True entries, without a data-dependent shape."""
    return mask.flatten().nonzero_static(size=num_rows).squeeze(1)
