"""The perceiver resampler of Idefics2: learned latents look at the patches and at each other, and become the tokens.

    c = down(silu(gate(x)) * up(x))
    per layer:  z = z + attention(RMS(z) -> [RMS'(c), RMS(z)]);  z = z + mlp(RMS(z))
    tokens = RMS(z)

It knows no positions but those that the encoder left in its features. The tokens are a set, not a grid; the grid that
``tokens_out`` states only says how many they are, in a shape near the image's.

Source: transformers ``models/idefics2/modeling_idefics2.py``, ``Idefics2Connector``, arXiv 2405.02246. The original
starts all latents at one, and so all tokens as equals; here that is the option ``init="ones"``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid
from vision_remember.original import load_original
from vision_remember.plugins import Origin, settle

ORIGIN = Origin(paper="arXiv 2405.02246", code="huggingface/transformers models/idefics2", licence="Apache-2.0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``resampler``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads. In Idefics2 that is the last one behind the encoder's final norm,
            which no hidden state has passed.
        num_latents: Tokens it makes.
        depth: Layers.
        num_heads: Attention heads.
        num_kv_heads: Key and value heads that they share.
        head_width: Width of one head.
        intermediate_size: Inner width of the projection of the patches, in the original the LLM's own; None: 3.5 times
            the LLM's width, as in the LLM of Idefics2.
        init: Start of the latents: ``"normal"`` with a deviation of 0.02, or ``"ones"``.
    """

    level: int = -1
    num_latents: int = 64
    depth: int = 3
    num_heads: int = 16
    num_kv_heads: int = 4
    head_width: int = 96
    intermediate_size: int | None = None
    init: Literal["normal", "ones"] = "normal"

    def __post_init__(self) -> None:
        for name in ("num_latents", "depth", "num_heads", "num_kv_heads", "head_width", "intermediate_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"resampler: {name} is at least 1, got {value}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"resampler: {self.num_heads} heads cannot share {self.num_kv_heads} key heads; set a divisor"
            )


class Resampler(nn.Module):
    """A gated projection of the patches, then layers of latents that attend to them."""

    tokens_are_a_set = True

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = settle(config, intermediate_size=7 * text_width // 2)
        self.levels = (config.level,)
        self.projection = GatedMlp(feature_width, self.config.intermediate_size, text_width)
        self.latents = nn.Parameter(torch.ones(config.num_latents, text_width))
        self.layers = nn.ModuleList(ResamplerLayer(config, text_width) for _ in range(config.depth))
        self.norm = nn.RMSNorm(text_width, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        if config.init == "normal":
            nn.init.normal_(self.latents, std=0.02)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """As many cells as latents, in the shape closest to ``grid``.

        Raises:
            ValueError: If another number of tokens is asked for.
        """
        self._check(num_tokens)
        return closest_grid(self.config.num_latents, like=grid)

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``; patches marked invalid are not seen."""
        self._check(num_tokens)
        context = self.projection(features.level(self.config.level))
        mask = None
        if features.valid is not None:
            mask = F.pad(features.valid, (0, self.config.num_latents), value=True)[:, None, None]  # [B, 1, 1, P + V]
        latents = self.latents.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        return self.norm(latents)

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes the names of transformers' Idefics2: ``model.connector.modality_projection.gate_proj.weight``, ..."""
        layer, ours = r"perceiver_resampler\.layers\.(\d+)", r"layers.\1"
        renames = {
            r"modality_projection\.(gate|up|down)_proj\.weight": r"projection.\1.weight",
            r"perceiver_resampler\.latents": "latents",
            rf"{layer}\.input_latents_norm\.weight": rf"{ours}.latents_norm.weight",
            rf"{layer}\.input_context_norm\.weight": rf"{ours}.context_norm.weight",
            rf"{layer}\.post_attention_layernorm\.weight": rf"{ours}.mlp_norm.weight",
            rf"{layer}\.self_attn\.([qkvo])_proj\.weight": rf"{ours}.\2.weight",
            rf"{layer}\.mlp\.(gate|up|down)_proj\.weight": rf"{ours}.mlp.\2.weight",
            r"perceiver_resampler\.norm\.weight": "norm.weight",
        }
        load_original(self, state_dict, renames, prefixes=("connector.", "model.connector."))

    def _check(self, num_tokens: int | None) -> None:
        if num_tokens not in (None, self.config.num_latents):
            raise ValueError(
                f"resampler makes {self.config.num_latents} tokens of any image, not {num_tokens}; set num_latents"
            )


class ResamplerLayer(nn.Module):
    """The latents look at the context and at each other, then each passes a gated MLP."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.head_width = config.head_width
        query_width, key_width = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.latents_norm = nn.RMSNorm(width, eps=1e-6)
        self.context_norm = nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, query_width, bias=False)
        self.k = nn.Linear(width, key_width, bias=False)
        self.v = nn.Linear(width, key_width, bias=False)
        self.o = nn.Linear(query_width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.mlp = GatedMlp(width, 4 * width, width)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """From latents ``float[B, V, D]`` to the same; context ``float[B, P, D]``, mask ``bool[B, 1, 1, P + V]``."""
        normed = self.latents_norm(latents)
        keys = torch.cat([self.context_norm(context), normed], dim=1)
        q, k, v = (
            projected.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for projected in (self.q(normed), self.k(keys), self.v(keys))
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        latents = latents + self.o(seen.transpose(1, 2).flatten(2))
        return latents + self.mlp(self.mlp_norm(latents))


class GatedMlp(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, width: int, inner: int, out_width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


Projector = Resampler
