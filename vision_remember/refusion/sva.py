"""Cambrian's spatial vision aggregator, between decoder layers: every vision token queries its window of every level.

    per level n:   f_n = LN(W2 gelu(W1 x_n))  [B, P, M],   context = mean over the patches of f_0  [B, M]
    z  = W_in [q, W_ctx context]
    z  = LN(z + attention(z, windows of all f_n + pos_n))        one attention over the patches of all levels
    q <- q + W_b gelu(W_a z)

The f_n and the context are made once per image and serve every insertion. The original has one encoder per n; here each
level of the one encoder stands for an encoder.

Source: cambrian-mllm/cambrian ``cambrian/model/vision_sampler.py`` (``VisionTokenSampler`` of one joint
``VisionCrossAttentionLayer``), ``cambrian_arch.py`` and ``language_model/cambrian_llama.py``, arXiv 2406.16860. The zero start
and windows of grids that do not divide are our choice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, gather_windows, windows
from vision_remember.local_attention import attend
from vision_remember.original import load_original
from vision_remember.plugins import Origin, settle
from vision_remember.refusion import Backbones, Insertion, Memory, Method, RefusionState
from vision_remember.refusion.feed_forward import memory_reader

ORIGIN = Origin(paper="arXiv 2406.16860", code="cambrian-mllm/cambrian", licence="Apache-2.0")

# May precede the names of one insertion: samplers between decoder layers are lists of one, the connector's have several.
SAMPLER = re.compile(r"(model\.)?(vision_sampler_(layers\.)?\d+\.)?layers\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``sva``; ``Config(zero_init=False)`` is the original of Cambrian-8B, but for its encoders.

    Attributes:
        layers: Act after these decoder layers, -1 being before the first; None: every third from 0 on, at most ten, and
            never the last, after which no token reads a vision token again.
        levels: Encoder ``hidden_states``, each in the place of an encoder; None: at 13/24, 18/24 and 23/24 of the encoder.
        width: M, of the f_n and of the attention.
        num_heads: Attention heads; they share M evenly.
        positions: Rows of the learned position table of a window, at least the patches of the largest window; those of
            the original have exactly as many. 1 for no table, as the original where tokens own one patch each.
        zero_init: Whether the last linear starts at zero, so that the module starts as the identity.
    """

    layers: tuple[int, ...] | None = None
    levels: tuple[int, ...] | None = None
    width: int = 1024
    num_heads: int = 16
    positions: int = 16
    zero_init: bool = True

    def __post_init__(self) -> None:
        if self.layers == () or self.levels == ():
            raise ValueError("sva: needs at least one layer and one level; for no re-fusion use type: none")
        for name in ("width", "num_heads", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"sva: {name} is at least 1, got {getattr(self, name)}")
        if self.width % self.num_heads:
            raise ValueError(f"sva: {self.num_heads} heads cannot share a width of {self.width}; choose a divisor")


class SpatialVisionAggregator(Method):
    """Projects every level once per image, and makes the :class:`SamplerLayer` of every chosen decoder layer."""

    def __init__(self, config: Config, backbones: Backbones) -> None:
        layers = tuple(range(0, max(backbones.decoder_layers - 1, 1), 3))[:10]
        super().__init__(settle(config, layers=layers, levels=backbones.levels_at(13, 18, 23, of=24)), backbones)
        self.layers, self.levels = self.config.layers, self.config.levels
        self.projectors = nn.ModuleList(memory_reader(backbones.feature_width, config.width) for _ in self.levels)

    def memory(self, features: VisionFeatures, token_grid: Grid) -> Memory:
        """Rows ``float[B, V, M + W * L * M]``: the context of the image, then the token's window of every f_n.

        A window in which every patch is padding is seen whole, as in the original; the context is the mean over all patches.

        Raises:
            ValueError: If a window has more patches than the position tables have rows.
        """
        own = windows(features.grid, token_grid, device=features.level(self.levels[0]).device)
        num_slots = own.index.shape[1]
        if num_slots > self.config.positions:
            raise ValueError(
                f"sva: windows of {token_grid} tokens over {features.grid} patches hold {num_slots} patches, the position "
                f"tables {self.config.positions}; set positions: {num_slots}"
            )
        levels = [project(features.level(i)) for project, i in zip(self.projectors, self.levels, strict=True)]
        context = levels[0].mean(dim=1, keepdim=True).expand(-1, token_grid.num_cells, -1)
        seen = gather_windows(torch.stack(levels, dim=2), own)  # [B, V, W, L, M]
        valid = own.valid.expand(len(seen), -1, -1)
        if features.valid is not None:
            real = valid & gather_windows(features.valid, own)
            valid = real | (valid & ~real.any(dim=-1, keepdim=True))
        place = torch.arange(num_slots, device=seen.device).expand_as(valid)
        return Memory(rows=torch.cat([context, seen.flatten(2)], dim=-1), valid=valid, place=place)

    def insertion(self, layer: int) -> "SamplerLayer":
        """The child of decoder layer ``layer``; every layer has its own parameters."""
        return SamplerLayer(self.config, self.backbones.text_width, len(self.levels))

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads the projection of every level: exactly Cambrian's ``[model.]mm_projector_aux_{n}.*``, n counting ``levels``.

        The weights of the insertions are loaded by their own ``load_original``.
        """
        names = {r"mm_projector_aux_(\d+)\.([023])\.(weight|bias)": r"projectors.\1.\2.\3"}
        load_original(self, state_dict, names, prefixes=("model.",))


class SamplerLayer(Insertion):
    """One cross-attention of the vision tokens over their windows, with the names of the original beside ours.

    ``query``, ``keys`` and ``values`` are its ``q_proj``, ``k_proj_n`` and ``v_proj_n``; ``out`` is its ``o_proj``.
    """

    RENAMES = {
        r"(proj_context|proj_in)\.weight": r"\1.weight",
        r"proj_out\.(linear_1|linear_2)\.weight": r"\1.weight",
        r"norm\.(weight|bias)": r"norm.\1",
        r"pos_embed_(\d+)": r"position.\1",
        r"cross_attn\.q_proj\.([01])\.(weight|bias)": r"query.\1.\2",
        r"cross_attn\.k_proj_(\d+)\.([01])\.(weight|bias)": r"keys.\1.\2.\3",
        r"cross_attn\.v_proj_(\d+)\.([01])\.(weight|bias)": r"values.\1.\2.\3",
        r"cross_attn\.o_proj\.weight": r"out.weight",
    }

    def __init__(self, config: Config, text_width: int, num_levels: int) -> None:
        super().__init__()
        width = config.width
        self.num_heads, self.num_levels = config.num_heads, num_levels
        self.proj_context = nn.Linear(width, width, bias=False)
        self.proj_in = nn.Linear(text_width + width, width, bias=False)
        tables = num_levels if config.positions > 1 else 0
        self.position = nn.ParameterList(torch.randn(config.positions, width) for _ in range(tables))
        self.query = _normed_linear(width)
        self.keys = nn.ModuleList(_normed_linear(width) for _ in range(num_levels))
        self.values = nn.ModuleList(_normed_linear(width) for _ in range(num_levels))
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, text_width, bias=False)
        if config.zero_init:
            nn.init.zeros_(self.linear_2.weight)

    def forward(self, hidden: Tensor, state: RefusionState, layer: int) -> tuple[Tensor, RefusionState]:
        flat = hidden.flatten(0, 1)
        tokens = flat.index_select(0, state.position)  # [N, D]
        width, num_slots = self.norm.weight.numel(), state.valid.shape[1]
        context, levels = state.rows[:, :width], state.rows[:, width:].unflatten(1, (num_slots, self.num_levels, width))
        z = self.proj_in(torch.cat([tokens, self.proj_context(context)], dim=-1))  # [N, M]
        seen, weights = self.look(z, levels, state)
        z = self.norm(z + seen)
        tokens = tokens + self.linear_2(F.gelu(self.linear_1(z)))
        if state.attentions is not None and weights is not None:
            state.attentions[layer] = weights.unflatten(2, (self.num_levels, num_slots)).sum(dim=2)
        return flat.index_copy(0, state.position, tokens.to(hidden.dtype)).view_as(hidden), state

    def look(self, z: Tensor, levels: Tensor, state: RefusionState) -> tuple[Tensor, Tensor | None]:
        """What ``z float[N, M]`` finds in ``levels float[N, W, L, M]``, and the weights ``[N, H, L * W]`` if asked for."""
        seen = list(levels.unbind(2))
        for n, table in enumerate(self.position):
            seen[n] = seen[n] + F.embedding(state.place, table)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.num_heads, -1))

        k = torch.cat([key(x) for key, x in zip(self.keys, seen, strict=True)], dim=1)  # [N, L * W, M]
        v = torch.cat([value(x) for value, x in zip(self.values, seen, strict=True)], dim=1)
        valid = state.valid.repeat(1, self.num_levels)
        found, weights = attend(
            heads(self.query(z)), heads(k), heads(v), valid, need_weights=state.attentions is not None
        )
        return self.out(found.flatten(1)), weights

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Loads one layer of one sampler of Cambrian: exactly its ``[model.][vision_sampler_layers.{j}.][layers.0.]*``.

        A layer of its connector, ``[model.]vision_sampler_{group}.layers.{d}.*``, is the same module where D is the width.
        """
        prefixes = {match.group() for match in map(SAMPLER.match, state_dict) if match}
        load_original(self, state_dict, self.RENAMES, prefixes=tuple(prefixes))


def _normed_linear(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))


Refusion = SpatialVisionAggregator
