"""Re-fusion: what lets the vision tokens see encoder features again between decoder layers. One file per method.

A method is a ``Refusion`` module, shared by all layers (at ``model.refusion``), that turns encoder features into one
memory row per vision token, and makes an :class:`Insertion` for every decoder layer it acts after. Both are plain torch;
``attach.py`` alone knows how insertions get between the layers of a Hugging Face decoder.

    refusion = build_refusion({"type": "remember", "layers": [1, 3]}, Backbones.from_configs(vision_config, text_config))
    attach(language_model, refusion)
    memory = refusion.memory(features, token_grid)                 # once per image
    language_model(inputs_embeds=..., refusion=RefusionState(...)) # rows of the vision tokens of this chunk

Where weights were published, the module that has them, method or insertion, takes them with ``load_original(state_dict)``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from vision_remember import plugins
from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.refusion.state import Memory, RefusionState, Shortening, flat_positions

__all__ = [
    "Backbones",
    "Insertion",
    "Memory",
    "Method",
    "RefusionState",
    "Shortening",
    "build_refusion",
    "flat_positions",
]


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

    @property
    def heads(self) -> dict[str, int]:
        """The LLM's heads, for options of these names."""
        return {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}

    def levels_at(self, *parts: int, of: int) -> tuple[int, ...]:
        """The encoder's ``hidden_states`` at these parts of its depth, from the first layer's on: 13 of 24, scaled to any depth."""
        return tuple(sorted({max(self.encoder_layers * part // of, 1) for part in parts}))

    def layers_before(self, *parts: int, of: int) -> tuple[int, ...]:
        """The decoder layers right before these parts of its depth, -1 before part 0: after 8 of 28 for part 1 of 3."""
        return tuple(sorted({self.decoder_layers * part // of - 1 for part in parts}))

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


class Method(nn.Module):
    """The part of a re-fusion method that all layers share; a plug-in file calls its own ``Refusion``.

    Attributes:
        config: Its options, with the values of defaults that follow from the backbones (``plugins.settle``), for ``config.json``.
        layers: Decoder layers after which it acts, -1 being before the first.
        levels: The encoder's ``hidden_states`` that it reads.
        views: Enlarged pages that it wants beside the page itself, each as a grid of canvases: ``Grid(2, 2)`` is the page at
            twice the size, cut into four crops, row by row. Every crop passes encoder and projector as the page does.
        has_windows: Whether each token looks into its own window of the patches, and so needs a place among them.
        needs_whole_images: Whether a prefill chunk must not cut an image.
        needs_guidance: Whether it reads the user text of each image's own turn.
        drops_after: The decoder layer after which it drops tokens, so that all layers above run on a shorter sequence; None for
            methods that keep every token. Its state is a :class:`Shortening`, and it is asked for no memory.
    """

    layers: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
    views: tuple[Grid, ...] = ()
    has_windows: bool = False
    needs_whole_images: bool = False
    needs_guidance: bool = False
    drops_after: int | None = None

    def __init__(self, config: Any, backbones: Backbones) -> None:
        super().__init__()
        self.config, self.backbones = config, backbones

    def memory(self, features: VisionFeatures, token_grid: Grid) -> Memory:
        """The memory of B images for vision tokens on ``token_grid``, made once per image."""
        raise NotImplementedError

    def memory_of_views(self, tokens: Tensor, token_grid: Grid) -> Memory:
        """The same for a method that asks for ``views``: from the vision tokens of their X crops, ``float[B, X, V, D]``."""
        raise NotImplementedError

    def insertion(self, layer: int) -> "Insertion":
        """The child of one decoder layer."""
        raise NotImplementedError


class Insertion(nn.Module):
    """The child of one decoder layer; ``forward(hidden, state, layer) -> (hidden, state)``.

    ``hidden`` is ``float[B, T, D]`` and comes back as a new tensor in which only the rows ``state.position`` differ, or, where
    the method drops tokens and ``state`` is a :class:`Shortening`, with the rows of the tokens that are left.
    """

    def forward(self, hidden: Tensor, state: Any, layer: int) -> tuple[Tensor, Any]:
        raise NotImplementedError


def build_refusion(options: Mapping[str, Any], backbones: Backbones) -> Method:
    """The re-fusion method of ``{"type": name, **options}``."""
    config = plugins.build_config("refusion", options)
    return plugins.load("refusion", options["type"]).Refusion(config, backbones)
