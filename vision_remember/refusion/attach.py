"""Puts a re-fusion method between the layers of a Hugging Face decoder: the only file that knows how.

Every decoder layer becomes a runtime subclass of its own class. The layers where the method acts get an insertion as
child ``refusion`` (before the first layer: ``refusion_before``), applied to the layer's output inside its activation
checkpoint; all layers take the keyword ``refusion`` out of what they pass down to their attention. Parameter names of
the base model stay as they are, recorded hidden states are those after re-fusion, and nothing is stored between calls.
Wrapper modules would rename parameters and recompute three times, and forward hooks are not recomputed at all.

A method that drops tokens (``Method.drops_after``) needs more. The attention of its layer also measures what the asking token
looks at, beside whichever implementation the decoder uses. The layers above replace the mask and the rotary embeddings of the
whole sequence by those of the tokens that are left; which these are is kept in the cache, for the steps that follow.
"""

import copy
import functools
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vision_remember.refusion import Method, RefusionState, Shortening

ASKED = "vision_remember_asked"  # name of our attention implementation, which asks beside the decoder's own


def attach(language_model: Any, refusion: Method) -> None:
    """Lets a decoder apply a re-fusion method: ``language_model(..., refusion=state)``.

    Args:
        language_model: A Hugging Face causal LM or its decoder; changed in place.
        refusion: A method of this room. One without layers leaves the decoder as it is.

    Raises:
        ValueError: If the decoder has another re-fusion already, lacks a layer that the method names, does not pass keywords
            down to its layers, or cannot be shortened by a method that drops tokens.
    """
    decoder = language_model.get_decoder()
    name = type(decoder).__name__
    if not decoder._supports_attention_backend:
        raise ValueError(
            f"{name} passes no keywords down to its layers, so re-fusion cannot reach them; use another LLM"
        )
    layers = decoder.layers
    if any(isinstance(layer, _Attached) for layer in layers):
        raise ValueError(f"{name} already has a re-fusion method attached; attach to a fresh decoder")
    for layer in refusion.layers:
        if not -1 <= layer < len(layers) or refusion.layers.count(layer) > 1:
            raise ValueError(
                f"re-fusion after layer {layer} of {name} with {len(layers)} layers; layers are distinct and from -1 "
                f"(before the first) to {len(layers) - 1}, got {refusion.layers}"
            )
    if not refusion.layers:
        return
    if refusion.drops_after is not None and not _can_be_shortened(decoder):
        raise ValueError(
            f"{name} has layers with a sliding window, a state or positions of their own, and {type(refusion).__name__} shortens full "
            "attention with rotary embeddings only; use another LLM"
        )
    for number, layer in enumerate(layers):
        layer.__class__ = _attached(layer.__class__)
        layer.refusion_layer = number
    for number in refusion.layers:
        layers[max(number, 0)].add_module("refusion" if number >= 0 else "refusion_before", refusion.insertion(number))
    if refusion.drops_after is not None:
        _shorten(layers, refusion.drops_after)


class _Attached:
    """Marks a decoder layer whose class was made by :func:`attach`."""


@functools.cache
def _attached(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a decoder layer's class that applies its insertions."""

    def forward(self, hidden_states: Tensor, *args, refusion: RefusionState | Shortening | None = None, **kwargs):
        children = self._modules
        if refusion is not None and "refusion_before" in children:
            hidden_states, refusion = self.refusion_before(hidden_states, refusion, -1)
        output = base.forward(self, hidden_states, *args, **kwargs)
        if refusion is None or "refusion" not in children:
            return output
        if isinstance(output, tuple):  # older layers return (hidden, ...)
            return (self.refusion(output[0], refusion, self.refusion_layer)[0], *output[1:])
        return self.refusion(output, refusion, self.refusion_layer)[0]

    return _subclass(base, forward, _Attached)


def _subclass(base: type[nn.Module], forward: Any, *marks: type) -> type[nn.Module]:
    # The name is kept because Hugging Face finds layers by it when it shards a model or maps it to devices.
    return type(base.__name__, (base, *marks), {"forward": forward, "__module__": base.__module__})


class PlacesLayer(DynamicLayer):
    """The cache of the first layer above a drop, which also knows where its entries come from, for all layers above.

    Args:
        places: ``long[B, entries]``, the position of each token in the whole sequence, -1 for padding.
    """

    def __init__(self, places: Tensor) -> None:
        super().__init__()
        self.places = places

    def reset(self) -> None:
        super().reset()
        self.__class__ = DynamicLayer  # the next prompt may drop nothing

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.places = self.places[beam_idx.to(self.places.device)]

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.places = self.places[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.places = self.places.repeat_interleave(repeats, dim=0)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.places = self.places[:, : self.get_seq_length()]


def _can_be_shortened(decoder: Any) -> bool:
    """Whether all layers cache every token and are told the rotary embeddings of their tokens."""
    told = all("position_embeddings" in inspect.signature(layer.forward).parameters for layer in decoder.layers)
    return told and _is_plain(DynamicCache(config=decoder.config))


def _shorten(layers: Any, drop: int) -> None:
    """Prepares the layer ``drop``, which asks, and those above it, which run on what it leaves."""
    layers[drop].__class__ = _asking(layers[drop].__class__)
    attention = layers[drop].self_attn
    attention.plain_config, attention.config = attention.config, copy.copy(attention.config)
    attention.config._attn_implementation = ASKED
    for layer in layers[drop + 1 :]:
        layer.__class__ = _above_drop(layer.__class__)
        layer.refusion_drop = drop


@functools.cache
def _asking(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a layer that hands the state to its attention when there is something to drop."""

    def forward(self, hidden_states: Tensor, *args, refusion: Shortening | None = None, **kwargs):
        if refusion is not None and refusion.vision is not None:
            _check_is_empty(kwargs.get("past_key_values"), self.refusion_layer)
            kwargs["asking_state"] = refusion
        return base.forward(self, hidden_states, *args, refusion=refusion, **kwargs)

    return _subclass(base, forward)


@functools.cache
def _above_drop(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a layer above the drop: it sees mask and rotary embeddings of the tokens that are left."""

    def forward(self, hidden_states: Tensor, *args, refusion: Shortening | None = None, **kwargs):
        state, cache = Shortening() if refusion is None else refusion, kwargs.get("past_key_values")
        is_first = self.refusion_layer == self.refusion_drop + 1
        if is_first:
            _keep_places(cache, self.refusion_layer, state, hidden_states)
        places = state.places if cache is None else _places(cache, self.refusion_drop + 1)
        if places is not None:
            if is_first or refusion is None:
                state.mask = create_causal_mask(
                    config=self.self_attn.config,
                    inputs_embeds=hidden_states,
                    attention_mask=places >= 0,
                    past_key_values=cache,
                    layer_idx=self.refusion_layer,
                )
            kwargs["attention_mask"] = state.mask
        if state.places is not None:
            # Rotary embeddings carry the original positions; position ids with gaps would read as several packed samples.
            kwargs["position_embeddings"] = tuple(state.gather(x) for x in kwargs["position_embeddings"])
            kwargs["position_ids"] = None
        return base.forward(self, hidden_states, *args, refusion=refusion, **kwargs)

    return _subclass(base, forward)


def _keep_places(cache: Cache | None, number: int, state: Shortening, hidden: Tensor) -> None:
    """Brings the cache of the first layer above the drop up to the tokens that it is about to see."""
    if cache is not None and state.places is not None:
        cache.layers[number : number + 1] = [PlacesLayer(state.places)]
    elif cache is not None and (known := _places(cache, number)) is not None:
        new = torch.arange(-hidden.shape[1], 0, device=hidden.device) + cache.get_seq_length(number - 1)
        new = new.expand(len(hidden), -1) if state.valid is None else new.where(state.valid, -1)
        cache.layers[number].places = torch.cat([known, new], dim=1)


def _places(cache: Cache, number: int) -> Tensor | None:
    """The places of the tokens that the layers above a drop hold; None if nothing was dropped."""
    layer = cache.layers[number] if number < len(cache.layers) else None
    return layer.places if isinstance(layer, PlacesLayer) else None


def _is_plain(cache: Cache) -> bool:
    return all(type(layer) in (DynamicLayer, PlacesLayer) for layer in cache.layers)


def _check_is_empty(cache: Cache | None, number: int) -> None:
    """Refuses a cache that cannot get shorter, or one that holds tokens before the vision tokens of this call."""
    if cache is None:
        return
    if not _is_plain(cache):
        raise ValueError(
            f"dropping vision tokens shortens the cache, and a {type(cache).__name__} cannot; use the default dynamic cache"
        )
    if length := cache.get_seq_length(number):
        raise ValueError(
            f"the cache already holds {length} tokens, and vision tokens are dropped by the last token of the whole prompt; prefill it "
            "in one call, with an empty cache"
        )


class _Plain:
    """An attention module with the decoder's own config, by which kernels find out what they are."""

    def __init__(self, attention: Any) -> None:
        self.attention, self.config = attention, attention.plain_config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attention, name)


def _asked_attention(
    attention: Any, query: Tensor, key: Tensor, *args, asking_state: Shortening | None = None, scaling: float, **kwargs
) -> tuple[Tensor, Tensor | None]:
    """The decoder's own attention, and beside it what the asking tokens look at."""
    if asking_state is not None:
        asking_state.ask(query, key, scaling)
    plain, family = _Plain(attention), sys.modules[type(attention).forward.__module__]
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(
        plain.config._attn_implementation, family.eager_attention_forward
    )
    return implementation(plain, query, key, *args, scaling=scaling, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(ASKED, _asked_attention)
