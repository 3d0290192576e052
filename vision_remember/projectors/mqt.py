"""Matryoshka query transformer: nested queries, of which any number from the front can be used at inference.

    q = LN(query[:m] + position[:m]);  k = LN(position resized to the patch grid);  v = LN(x)
    tokens = attention(q, k, v) @ proj

The keys carry position only, so a token is a mean of projected patches with weights that no image changes. Queries do not
interact: the tokens for m are the first m of those for any larger number. They are a list, not a grid; the grid that
``tokens_out`` states only says how many they are, in a shape near the image's.

In training the original draws m anew at every step (:meth:`Mqt.draw_num_tokens`); its first stage and inference fix it.

Source: gordonhu608/MQT-LLaVA ``llava/model/multimodal_projector/builder.py``, arXiv 2405.19315.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid
from vision_remember.original import LLAVA_PREFIXES, load_original
from vision_remember.plugins import Origin, settle
from vision_remember.projectors.cells import from_map, to_map
from vision_remember.projectors.packed_attention import PackedProjections

ORIGIN = Origin(paper="arXiv 2405.19315", code="gordonhu608/MQT-LLaVA", licence="Apache-2.0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``mqt``; its width is that of the encoder.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
        num_queries: Learned queries, a square number, and so the most tokens it can make.
        num_tokens: Tokens it makes when a call does not say; None: all.
        num_heads: Attention heads.
    """

    level: int = -2
    num_queries: int = 256
    num_tokens: int | None = None
    num_heads: int = 16

    def __post_init__(self) -> None:
        if self.num_queries < 1 or math.isqrt(self.num_queries) ** 2 != self.num_queries:
            raise ValueError(f"mqt: num_queries lie on a square and must be a square number, got {self.num_queries}")
        if self.num_tokens is not None and not 1 <= self.num_tokens <= self.num_queries:
            raise ValueError(f"mqt: num_tokens is 1 to {self.num_queries} (num_queries), got {self.num_tokens}")
        if self.num_heads < 1:
            raise ValueError(f"mqt: num_heads is at least 1, got {self.num_heads}")


class Mqt(nn.Module):
    """One attention of nested queries over the patches, then one matrix to the LLM's width."""

    pos_embed: Tensor
    tokens_are_a_set = True
    anchored_counts = (4, 16, 36, 64, 144, 256)

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = settle(config, num_tokens=config.num_queries)
        self.levels = (config.level,)
        self.query = nn.Parameter(torch.empty(config.num_queries, feature_width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.side = math.isqrt(config.num_queries)
        self.register_buffer("pos_embed", sine_positions(self.side, feature_width))
        self.query_norm = nn.LayerNorm(feature_width, eps=1e-6)
        self.key_norm = nn.LayerNorm(feature_width, eps=1e-6)
        self.value_norm = nn.LayerNorm(feature_width, eps=1e-6)
        self.attention = PackedProjections(feature_width, config.num_heads)
        self.proj = nn.Parameter(torch.randn(feature_width, text_width) * text_width**-0.5)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """As many cells as tokens, in the shape closest to ``grid``.

        Raises:
            ValueError: If there are not that many queries.
        """
        return closest_grid(self._num_tokens(num_tokens), like=grid)

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """The first ``num_tokens`` tokens, ``float[B, V, D]``; patches marked invalid are not seen."""
        m = self._num_tokens(num_tokens)
        x = features.level(self.config.level)
        # A model that is loaded in another dtype keeps the table in float32.
        positions = self.pos_embed.to(self.query.dtype)
        q, k, v = self.attention.heads(
            self.query_norm(self.query[:m] + positions[:m]),
            self.key_norm(self._over_patches(positions, features.grid)),
            self.value_norm(x),
        )  # [m, H, K], [P, H, K], [B, P, H, K]
        v = v.transpose(1, 2)  # [B, H, P, K]
        q, k = (y.transpose(0, 1).expand(len(x), -1, -1, -1) for y in (q, k))
        mask = None if features.valid is None else features.valid[:, None, None]
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.attention.join(seen.transpose(1, 2)) @ self.proj

    def draw_num_tokens(self, step: int, seed: int = 0) -> int:
        """How many tokens to train with at one step: even, up to all queries, each as likely.

        Args:
            step: Of the training; with the seed it decides alone, so that all ranks and a resumed run agree.
            seed: Of the run.
        """
        return 2 * random.Random(f"mqt/{seed}/{step}").randint(1, self.config.num_queries // 2)

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes MQT-LLaVA's names: ``model.mm_projector.query``, ``.attn.in_proj_weight``, ``.ln_q.weight``, ..."""
        renames = {
            r"query": "query",
            r"pos_embed": "pos_embed",
            r"attn\.in_proj_(weight|bias)": r"attention.in_proj.\1",
            r"attn\.out_proj\.(weight|bias)": r"attention.out_proj.\1",
            r"ln_q\.(weight|bias)": r"query_norm.\1",
            r"ln_k\.(weight|bias)": r"key_norm.\1",
            r"ln_v\.(weight|bias)": r"value_norm.\1",
            r"proj": "proj",
        }
        load_original(self, state_dict, renames, prefixes=LLAVA_PREFIXES)

    def _num_tokens(self, num_tokens: int | None) -> int:
        m = self.config.num_tokens if num_tokens is None else num_tokens
        if not 1 <= m <= self.config.num_queries:
            raise ValueError(f"mqt has {self.config.num_queries} queries, it cannot make {m} tokens; ask for fewer")
        return m

    def _over_patches(self, positions: Tensor, grid: Grid) -> Tensor:
        """The position table ``float[num_queries, C]`` laid over the patches, ``float[P, C]``."""
        table = to_map(positions[None], Grid(self.side, self.side))
        table = table.to(torch.promote_types(table.dtype, torch.float32))
        table = F.interpolate(table, size=(grid.height, grid.width), mode="bicubic", align_corners=False)
        return from_map(table)[0].to(positions.dtype)


def sine_positions(side: int, width: int) -> Tensor:
    """Sine and cosine positions of a square, ``float[side * side, width]``, rounded to half precision as the original's.

    The first half of the channels tells the column, the second the row; each is ``[sin(n w_k) | cos(n w_k)]`` with
    ``w_k = 10000 ** (-4 k / width)``.
    """
    if width % 4:
        raise ValueError(f"mqt needs an encoder width divisible by 4 for its sine positions, got {width}")
    # In float32 and as a quotient, like the original: another order of rounding moves some entries by one half-precision step.
    frequency = 1 / 10000.0 ** (torch.arange(width // 4, dtype=torch.float32) / (width / 4))
    angle = torch.arange(side, dtype=torch.float32)[:, None] * frequency  # [side, C / 4]
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = axis.expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1).half().float()


Projector = Mqt
