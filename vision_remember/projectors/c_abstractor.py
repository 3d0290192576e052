"""Honeybee's C-Abstractor: convolutions before and after the pooling keep what lies side by side together.

    x = LN(x) if prenorm;  x = x + position
    tokens = readout(stage2(mean per cell(stage1(x))))
    stage = blocks of  silu(shortcut(x) + LN(conv1(SE(silu(LN(depthwise3(silu(LN(conv1(x))))))))))

Source: khanrc/honeybee ``honeybee/projectors/projectors.py``, ``CAbstractor``, arXiv 2312.06742; its blocks are
``RegStage`` of timm 0.9.8 with group size 1 and LayerNorm over channels. The original takes the root of the number of
patches for both sides; here the grids are given and may have any shape.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_remember.geometry import Grid, VisionFeatures, closest_grid
from vision_remember.original import load_original
from vision_remember.plugins import Origin
from vision_remember.projectors.cells import cell_grid, cell_means, from_map, option_grid, to_map
from vision_remember.projectors.mlp import linears

ORIGIN = Origin(paper="arXiv 2312.06742", code="khanrc/honeybee", licence="Apache-2.0 (weights CC-BY-NC-4.0)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of ``c_abstractor``.

    Attributes:
        level: The encoder's ``hidden_states`` index it reads.
        patch_grid: Rows and columns of the patches, each of which gets a learned position: no other grid can be read.
            None: no positions, any grid.
        token_grid: Rows and columns of its tokens.
        width: Channels M of the convolutions.
        depth: Blocks before the pooling, and as many after it.
        mlp_depth: Linears after the convolutions, a SiLU between any two.
        prenorm: Whether the patches are normalised first.
        num_eos_tokens: Learned tokens at the end, of no place in the image; with any, the tokens form a row, no grid.
    """

    level: int = -1
    patch_grid: tuple[int, int] | None = (24, 24)
    token_grid: tuple[int, int] = (12, 12)
    width: int = 1024
    depth: int = 3
    mlp_depth: int = 2
    prenorm: bool = False
    num_eos_tokens: int = 0

    def __post_init__(self) -> None:
        option_grid(self.token_grid, "c_abstractor: token_grid")
        if self.patch_grid is not None:
            option_grid(self.patch_grid, "c_abstractor: patch_grid")
        for name, least in {"width": 1, "depth": 1, "mlp_depth": 1, "num_eos_tokens": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"c_abstractor: {name} is at least {least}, got {getattr(self, name)}")


class CAbstractor(nn.Module):
    """A stage of convolutions on the patches, the mean of every cell, a stage on the tokens, an MLP."""

    def __init__(self, config: Config, feature_width: int, text_width: int) -> None:
        super().__init__()
        self.config = config
        self.levels = (config.level,)
        self.prenorm = nn.LayerNorm(feature_width) if config.prenorm else nn.Identity()
        self.patch_grid = None if config.patch_grid is None else Grid(*config.patch_grid)
        if self.patch_grid is not None:
            self.position = nn.Parameter(torch.empty(1, self.patch_grid.num_cells, feature_width))
            nn.init.trunc_normal_(self.position, std=0.02)
        self.stage1 = _stage(feature_width, config.width, config.depth)
        self.stage2 = _stage(config.width, config.width, config.depth)
        self.readout = nn.Sequential(*linears(config.width, text_width, config.mlp_depth, nn.SiLU))
        if config.num_eos_tokens:
            self.end = nn.Parameter(torch.empty(1, config.num_eos_tokens, text_width))
            nn.init.trunc_normal_(self.end, std=0.02)

    def tokens_out(self, grid: Grid, num_tokens: int | None = None) -> Grid:
        """The token grid of the config, or the grid of ``num_tokens`` cells whose shape is closest to ``grid``.

        Raises:
            ValueError: If ``grid`` is not the one that has positions, or has fewer patches along a side than tokens.
        """
        tokens = self._cells(grid, num_tokens)
        # One row: longer than a patch grid is wide, unless the tokens are very few, so that re-fusion refuses it by its size.
        return Grid(1, tokens.num_cells + self.config.num_eos_tokens) if self.config.num_eos_tokens else tokens

    def forward(self, features: VisionFeatures, num_tokens: int | None = None) -> Tensor:
        """From P patches to V tokens, ``float[B, V, D]``.

        Raises:
            ValueError: Also if some patches are marked invalid: a convolution has no mask.
        """
        grid, cells = features.grid, self._cells(features.grid, num_tokens)
        if features.valid is not None:
            raise ValueError("c_abstractor reads whole grids and has no mask; give features without `valid`")
        x = self.prenorm(features.level(self.config.level))
        if self.patch_grid is not None:
            x = x + self.position
        x = from_map(self.stage1(to_map(x, grid)))
        x = to_map(cell_means(x, None, grid, cells), cells)
        tokens = self.readout(from_map(self.stage2(x)))
        if self.config.num_eos_tokens:
            tokens = torch.cat([tokens, self.end.expand(len(tokens), -1, -1)], dim=1)
        return tokens

    def load_original(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes Honeybee's names: ``abstractor.pos_emb``, ``abstractor.net.0.b1.conv1.conv.weight``, ...

        A position table that is one row longer than the grid, as of old checkpoints, begins with the class token.
        """
        weights = dict(state_dict)
        for name in {"pos_emb", "abstractor.pos_emb"} & weights.keys():
            if self.patch_grid is not None and weights[name].shape[1:2] == (self.patch_grid.num_cells + 1,):
                weights[name] = weights[name][:, 1:]
        renames = {
            r"pos_emb": "position",
            r"eos_tokens": "end",
            r"prenorm\.(weight|bias)": r"prenorm.\1",
            r"net\.0\.(b\d+)\.(\w+)\.conv\.weight": r"stage1.\1.\2.conv.weight",
            r"net\.0\.(b\d+)\.(\w+)\.bn\.(weight|bias)": r"stage1.\1.\2.norm.\3",
            r"net\.0\.(b\d+)\.se\.(fc\d)\.(weight|bias)": r"stage1.\1.se.\2.\3",
            r"net\.2\.(b\d+)\.(\w+)\.conv\.weight": r"stage2.\1.\2.conv.weight",
            r"net\.2\.(b\d+)\.(\w+)\.bn\.(weight|bias)": r"stage2.\1.\2.norm.\3",
            r"net\.2\.(b\d+)\.se\.(fc\d)\.(weight|bias)": r"stage2.\1.se.\2.\3",
            r"readout\.(\d+)\.(weight|bias)": r"readout.\1.\2",
        }
        load_original(self, weights, renames, prefixes=("abstractor.",))

    def _cells(self, grid: Grid, num_tokens: int | None) -> Grid:
        """The grid of the pooled tokens."""
        if self.patch_grid is not None and grid != self.patch_grid:
            raise ValueError(
                f"c_abstractor has {self.patch_grid.num_cells} positions for a {self.patch_grid} grid, got "
                f"{grid.num_cells} patches on a {grid} grid; set patch_grid"
            )
        num_eos_tokens = self.config.num_eos_tokens
        if num_tokens is None:
            return cell_grid(grid, Grid(*self.config.token_grid))
        if num_tokens <= num_eos_tokens:
            raise ValueError(
                f"c_abstractor: {num_eos_tokens} of its tokens are eos tokens, ask for more than {num_tokens}"
            )
        return cell_grid(grid, closest_grid(num_tokens - num_eos_tokens, like=grid))


class SqueezeExcite(nn.Module):
    """Scales every channel by what the mean over the image says of it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class ConvNorm(nn.Module):
    """A convolution without bias, then LayerNorm over the channels of every place."""

    def __init__(self, width: int, out_width: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """One residual block, from ``[B, width, h, w]`` to ``[B, out_width, h, w]``."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, out_width)
        self.conv2 = ConvNorm(out_width, out_width, kernel=3, groups=out_width)
        self.se = SqueezeExcite(out_width, round(0.25 * width))  # of the channels that come in: timm's rule
        self.conv3 = ConvNorm(out_width, out_width)
        self.downsample = ConvNorm(width, out_width) if width != out_width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.conv2(F.silu(self.conv1(x))))
        return F.silu(self.conv3(self.se(y)) + self.downsample(x))


def _stage(width: int, out_width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict((f"b{i + 1}", Block(width if i == 0 else out_width, out_width)) for i in range(depth))
    )


Projector = CAbstractor
