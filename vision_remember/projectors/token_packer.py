"""TokenPacker: a coarse look at the image asks, and every token collects the detail of its own cell at several levels.

    q = LN(Wq resize(x));  k = LN(MLP_k(levels));  v = LN(MLP_v(levels))
    tokens = MLP(attention of each q over the k, v of its own cell)

Source: CircleRadon/TokenPacker ``llava/model/multimodal_projector/builder.py``, arXiv 2407.02392; written from its
equations. The original needs a square that the scale divides; here cells are the bins of adaptive pooling, which are the
same where it does, and widths and levels are options.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid, gather_windows, windows
from vision_remember.local_attention import attend
from vision_remember.original import LLAVA_PREFIXES, load_original
from vision_remember.plugins import Origin
from vision_remember.projectors.cells import cell_grid, from_map, to_map
from vision_remember.projectors.mlp import linears
from vision_remember.projectors.packed_attention import PackedProjections

ORIGIN = Origin(paper="arXiv 2407.02392", code="CircleRadon/TokenPacker", licence="none stated")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``token_packer``.

    Attributes:
        levels: The encoder's ``hidden_states`` indices that make keys and values; the last makes the queries as well.
        scale: Patches per token along each side; a last incomplete cell counts, so 14 patches at scale 3 give 5 tokens.
        width: Width of queries, keys and values.
        num_heads: Attention heads.
    """

    levels: tuple[int, ...] = (12, 16, 22, 23)
    scale: int = 2
    width: int = 1024
    num_heads: int = 8

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("token_packer: needs at least one level")
        for name in ("scale", "width", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"token_packer: {name} is at least 1, got {getattr(self, name)}")


class TokenPacker(nn.Module):
    """Point-to-region attention: each token of a resized image attends to the patches of its cell."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.levels = config.levels
        width, detail_width = config.width, len(config.levels) * feature_width
        self.query = nn.Linear(feature_width, width, bias=False)
        self.key = nn.Sequential(*linears(detail_width, width))
        self.value = nn.Sequential(*linears(detail_width, width))
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.key_norm = nn.LayerNorm(width, eps=1e-6)
        self.value_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(*linears(width, text_width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.attention = PackedProjections(width, config.num_heads)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """``grid`` reduced by the scale, or the grid of ``num_tokens`` cells whose shape is closest to it.

        Raises:
            ValueError: If more tokens are asked for along a side than there are patches.
        """
        tokens = grid.reduced(self.config.scale) if num_tokens is None else closest_grid(num_tokens, like=grid)
        return cell_grid(grid, tokens)

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``; patches marked invalid are no keys."""
        tokens = self.tokens_out(features.grid, num_tokens)
        coarse = _resize(features.level(self.levels[-1]), features.grid, tokens)
        detail = features.stack(self.levels).flatten(2)  # [B, P, L * C]
        q, k, v = self.attention.heads(
            self.query_norm(self.query(coarse)),
            self.key_norm(self.key(detail)),
            self.value_norm(self.value(detail)),
        )  # [B, V, H, K], [B, P, H, K] twice
        own = windows(features.grid, tokens, device=detail.device)
        valid = own.valid.expand(len(detail), -1, -1)  # [B, V, W]
        if features.valid is not None:
            valid = valid & gather_windows(features.valid, own)
        seen, _ = attend(
            q.flatten(0, 1),
            gather_windows(k, own).flatten(0, 1),
            gather_windows(v, own).flatten(0, 1),
            valid.flatten(0, 1),
        )
        return self.mlp(self.attention.join(seen.unflatten(0, q.shape[:2])))

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes TokenPacker's names: ``model.mm_projector.q_proj_1.weight``, ``.clip_attn.in_proj_weight``, ..."""
        renames = {
            r"q_proj_1\.weight": "query.weight",
            r"k_proj_1\.([02])\.(weight|bias)": r"key.\1.\2",
            r"v_proj_1\.([02])\.(weight|bias)": r"value.\1.\2",
            r"ln_q_1\.(weight|bias)": r"query_norm.\1",
            r"ln_k_1\.(weight|bias)": r"key_norm.\1",
            r"ln_v_1\.(weight|bias)": r"value_norm.\1",
            r"clip_attn\.in_proj_(weight|bias)": r"attention.in_proj.\1",
            r"clip_attn\.out_proj\.(weight|bias)": r"attention.out_proj.\1",
            r"mlp\.([02])\.(weight|bias)": r"mlp.\1.\2",
        }
        load_original(self, state_dict, renames, prefixes=LLAVA_PREFIXES)


def _resize(x: Tensor, grid: Grid, tokens: Grid) -> Tensor:
    """``x float[B, P, C]`` sampled between its patches at the centres of the cells, ``float[B, V, C]``."""
    plane = to_map(x, grid).to(torch.promote_types(x.dtype, torch.float32))
    plane = F.interpolate(plane, size=(tokens.height, tokens.width), mode="bilinear", align_corners=False)
    return from_map(plane).to(x.dtype)


Projector = TokenPacker
