"""Vision Remember: between decoder layers, every vision token looks again at its own region of the image.

A projector compresses P patches into V vision tokens, and what it drops is gone for all layers above. Here each token,
which by then has met the text, resamples multi-level encoder features, read by one MLP, inside its own window:

    hidden [B, T, D] -- vision rows --> x [N, D]
        x + out(TokenBidirectionalSelfAttention(norm(x), guide))   v2 only: the tokens of one image agree what to look for
        x + out(TokenFeatureCrossAttention(norm(x), memory))       every token looks into its own window of the image
        x + ffn(norm(x))
    x -- vision rows --> hidden; text rows stay as they are

The last linear of every branch starts at zero, so a fresh module changes nothing, bit for bit. Decode steps carry no
vision token: the module acts in the prefill only, and the layers above it cache tokens that have already remembered.

Source: Feng et al., arXiv 2506.03928, v1 (local attention over CLIP levels 13, 18 and 23 between LLM layers) and v2 (the
two named parts and the text-guided token). No code is public: the MLP, Config's fields, norms, shapes, start and order are our choice.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, gather_windows, lattice_distances, windows
from vision_remember.local_attention import attend
from vision_remember.plugins import Origin, settle
from vision_remember.refusion import Backbones, Insertion, Memory, Method, RefusionState
from vision_remember.refusion.feed_forward import FeedForward, memory_reader

ORIGIN = Origin(paper="arXiv 2506.03928")


@dataclass(frozen=True, kw_only=True)
class Config:
    """``Config()`` is v1; ``Config(bidirectional=True, guidance=True)`` is v2.

    Attributes:
        layers: Act after these decoder layers, -1 being before the first; None: before the first of every third of the decoder.
        levels: Encoder ``hidden_states`` that make the memory; None: at 13/24, 18/24 and 23/24 of the encoder.
        num_heads: Attention heads, each as wide as one of the LLM's; None: as many as the LLM.
        num_kv_heads: Key and value heads that they share; None: as many as the LLM.
        margin: Whole patches by which a window reaches over every edge of the token's own cell.
        position_side: Side of the learned position table laid over a window; 1 gives all its patches one place.
        focus: How much a head leans, at the start, to a place of the window that is its own; 0 for not at all.
        bidirectional: Whether the tokens of one image attend to each other before they look.
        guidance: Whether they then also see the text-guided token, the mean of the user text of the image's turn.
        ffn_ratio: Width of the feed-forward branch in units of D; 0 for none.
        zero_init: Whether the module starts as the identity.
        memory_width: Width of the MLP that reads the levels of a patch, once for all insertions; None: that of one level; 0 for no MLP.
    """

    layers: tuple[int, ...] | None = None
    levels: tuple[int, ...] | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    margin: int = 0
    position_side: int = 5  # tells all patches of windows up to 5x5 apart; odd, so the table mirrors with the window
    focus: float = 2.0
    bidirectional: bool = False
    guidance: bool = False
    ffn_ratio: float = 1.0
    zero_init: bool = True
    memory_width: int | None = None

    def __post_init__(self) -> None:
        if self.guidance and not self.bidirectional:
            raise ValueError("remember: guidance enters through the self-attention; set bidirectional: true as well")
        if self.layers == () or self.levels == ():
            raise ValueError("remember: needs at least one layer and one level; for no re-fusion use type: none")
        counts, sizes = ("num_heads", "num_kv_heads", "position_side"), ("margin", "focus", "ffn_ratio", "memory_width")
        for name in (*counts, *sizes):
            if (value := getattr(self, name)) is not None and value < (least := int(name in counts)):
                raise ValueError(f"remember: {name} is at least {least}, got {value}")


class VisionRemember(Method):
    """Makes the memory, once per image, and the :class:`RememberLayer` of every chosen decoder layer."""

    def __init__(self, config: Config, backbones: Backbones) -> None:
        layers, levels = backbones.layers_before(0, 1, 2, of=3), backbones.levels_at(13, 18, 23, of=24)
        config = settle(config, layers=layers, levels=levels, memory_width=backbones.feature_width, **backbones.heads)
        super().__init__(config, backbones.with_heads(config.num_heads, config.num_kv_heads))
        self.layers, self.levels, inner = self.config.layers, self.config.levels, self.config.memory_width
        width = len(self.levels) * backbones.feature_width
        self.memory_width, self.reader = inner or width, memory_reader(width, inner) if inner else nn.Identity()
        self.has_windows, self.needs_whole_images, self.needs_guidance = True, config.bidirectional, config.guidance

    def memory(self, features: VisionFeatures, token_grid: Grid) -> Memory:
        """Hands each token its own window of what there is to remember, flattened into channels."""
        return self.windowed(self.reader(self.normed(features)), features, token_grid)

    def normed(self, features: VisionFeatures) -> Tensor:
        """Every level normalised, one behind the other, ``float[B, P, L * C]``; whatever reads them holds the scale."""
        return F.layer_norm(features.stack(self.levels), (self.backbones.feature_width,)).flatten(2)

    def windowed(self, patches: Tensor, features: VisionFeatures, token_grid: Grid) -> Memory:
        """Rows ``float[B, V, W * M]`` of ``patches float[B, P, M]``; patches marked invalid are not seen."""
        own = windows(features.grid, token_grid, self.config.margin, device=patches.device)
        valid = own.valid.expand(len(patches), -1, -1)  # [B, V, W]
        if features.valid is not None:
            valid = valid & gather_windows(features.valid, own)
        place = own.table_index(self.config.position_side).expand_as(valid)
        return Memory(rows=gather_windows(patches, own).flatten(2), valid=valid, place=place)

    def insertion(self, layer: int) -> "RememberLayer":
        """The child of decoder layer ``layer``; every layer has its own parameters."""
        return RememberLayer(self.config, self.backbones, self.memory_width)


class RememberLayer(Insertion):
    """Everything that happens to the vision tokens after one decoder layer."""

    def __init__(self, config: Config, backbones: Backbones, memory_width: int) -> None:
        super().__init__()
        inner = round(backbones.text_width * config.ffn_ratio)
        self.self_attention = TokenBidirectionalSelfAttention(config, backbones) if config.bidirectional else None
        self.cross_attention = TokenFeatureCrossAttention(config, backbones, memory_width)
        self.ffn = FeedForward(backbones.text_width, inner) if inner else None
        for branch in (self.self_attention, self.cross_attention, self.ffn):
            if config.zero_init and branch is not None:
                nn.init.zeros_(branch.out.weight)

    def forward(self, hidden: Tensor, state: RefusionState, layer: int) -> tuple[Tensor, RefusionState]:
        flat = hidden.flatten(0, 1)
        x = flat.index_select(0, state.position)  # [N, D], the vision tokens
        if self.self_attention is not None:
            x = x + self.self_attention(x, hidden, state)
        seen, weights = self.cross_attention(x, state)
        x = x + seen
        if self.ffn is not None:
            x = x + self.ffn(x)
        if state.attentions is not None and weights is not None:
            state.attentions[layer] = weights
        return flat.index_copy(0, state.position, x.to(hidden.dtype)).view_as(hidden), state


class Attention(nn.Module):
    """What both attentions are made of: the LLM's own attention shape, its grouped heads included, without biases."""

    def __init__(self, backbones: Backbones, memory_width: int) -> None:
        super().__init__()
        width, self.head_width = backbones.text_width, backbones.head_width
        query_width, key_width = backbones.num_heads * self.head_width, backbones.num_kv_heads * self.head_width
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, query_width, bias=False)
        self.k = nn.Linear(memory_width, key_width, bias=False)
        self.v = nn.Linear(memory_width, key_width, bias=False)
        self.out = nn.Linear(query_width, width, bias=False)

    def project(self, tokens: Tensor, memory: Tensor) -> list[Tensor]:
        """Queries of the tokens ``[..., H, K]``, keys and values of the memory ``[..., Hkv, K]``."""
        return [x.unflatten(-1, (-1, self.head_width)) for x in (self.q(tokens), self.k(memory), self.v(memory))]


class TokenFeatureCrossAttention(Attention):
    """Every vision token attends to the multi-level features of its own window, told apart by content and by place."""

    def __init__(self, config: Config, backbones: Backbones, memory_width: int) -> None:
        super().__init__(backbones, memory_width)
        self.position = nn.Parameter(-config.focus * lattice_distances(config.position_side, backbones.num_heads))

    def forward(self, x: Tensor, state: RefusionState) -> tuple[Tensor, Tensor | None]:
        """From ``x float[N, D]`` to what the tokens saw, ``float[N, D]``, and the weights ``[N, H, W]`` if asked for."""
        memory = state.rows.unflatten(1, (state.valid.shape[1], self.k.in_features))  # [N, W, L * C] or [N, W, M]
        q, k, v = self.project(self.norm(x), memory)
        bias = F.embedding(state.place, self.position).transpose(1, 2)  # [N, H, W]
        seen, weights = attend(q, k, v, state.valid, bias, need_weights=state.attentions is not None)
        return self.out(seen.flatten(1)), weights


class TokenBidirectionalSelfAttention(Attention):
    """The vision tokens of one image attend to each other, both ways, and to the text-guided token of their image."""

    def __init__(self, config: Config, backbones: Backbones) -> None:
        super().__init__(backbones, backbones.text_width)
        self.no_text = nn.Parameter(torch.randn(backbones.text_width)) if config.guidance else None

    def forward(self, x: Tensor, hidden: Tensor, state: RefusionState) -> Tensor:
        """From ``x float[N, D]`` to what the tokens heard, ``float[N, D]``; ``hidden float[B, T, D]`` holds the text."""
        tokens, valid = state.pad(x)  # [I, S, D], [I, S]
        if self.no_text is not None:
            tokens = torch.cat([tokens, self.guide(hidden, state)[:, None]], dim=1)
            valid = F.pad(valid, (0, 1), value=True)
        tokens = self.norm(tokens)
        q, k, v = (y.transpose(1, 2) for y in self.project(tokens[:, : state.max_count], tokens))
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None], enable_gqa=True)
        return self.out(state.unpad(heard.transpose(1, 2).flatten(2)))

    def guide(self, hidden: Tensor, state: RefusionState) -> Tensor:
        """One token per image, ``float[I, D]``: the mean user text of its turn, or the learned vector if it has none."""
        assert state.guidance is not None and self.no_text is not None
        count = state.guidance.sum(dim=1, keepdim=True)
        share = (state.guidance / count.clamp(min=1)).to(hidden.dtype)  # [I, T]
        mean = torch.einsum("it,itd->id", share, hidden.index_select(0, state.batch_row))
        return torch.where(count > 0, mean, self.no_text)


Refusion = VisionRemember
