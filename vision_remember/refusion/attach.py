"""Puts a re-fusion method between the layers of a Hugging Face decoder: the only file that knows how.

Every decoder layer becomes a runtime subclass of its own class. The layers where the method acts get an insertion as
child ``refusion`` (before the first layer: ``refusion_before``), applied to the layer's output inside its activation
checkpoint; all layers take the keyword ``refusion`` out of what they pass down to their attention. Parameter names of
the base model stay as they are, recorded hidden states are those after re-fusion, and nothing is stored between calls.
Wrapper modules would rename parameters and recompute three times, and forward hooks are not recomputed at all.
"""

import functools
from typing import Any

from torch import Tensor, nn

from vision_remember.refusion import Method, RefusionState


def attach(language_model: Any, refusion: Method) -> None:
    """Lets a decoder apply a re-fusion method: ``language_model(..., refusion=state)``.

    Args:
        language_model: A Hugging Face causal LM or its decoder; changed in place.
        refusion: A method of this room. One without layers leaves the decoder as it is.

    Raises:
        ValueError: If the decoder has another re-fusion already, lacks a layer that the method names, or does not pass
            keywords down to its layers.
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
    for number, layer in enumerate(layers):
        layer.__class__ = _attached(layer.__class__)
        layer.refusion_layer = number
    for number in refusion.layers:
        layers[max(number, 0)].add_module("refusion" if number >= 0 else "refusion_before", refusion.insertion(number))


class _Attached:
    """Marks a decoder layer whose class was made by :func:`attach`."""


@functools.cache
def _attached(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a decoder layer's class that applies its insertions."""

    def forward(self, hidden_states: Tensor, *args, refusion: RefusionState | None = None, **kwargs):
        children = self._modules
        if refusion is not None and "refusion_before" in children:
            hidden_states, refusion = self.refusion_before(hidden_states, refusion, -1)
        output = base.forward(self, hidden_states, *args, **kwargs)
        if refusion is None or "refusion" not in children:
            return output
        if isinstance(output, tuple):  # older layers return (hidden, ...)
            return (self.refusion(output[0], refusion, self.refusion_layer)[0], *output[1:])
        return self.refusion(output, refusion, self.refusion_layer)[0]

    # The name is kept because Hugging Face finds layers by it when it shards a model or maps it to devices.
    return type(base.__name__, (base, _Attached), {"forward": forward, "__module__": base.__module__})
