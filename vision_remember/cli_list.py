"""`vision-remember list`: what is in the two plug-in rooms, and what each costs at the size of the paper's model.

Nothing is listed by name: the rooms are read, each plug-in is built on the meta device with its default options, and its own code says
how many tokens and parameters that makes.
"""

import math
from typing import Any

import torch
from torch import nn

from vision_remember import plugins
from vision_remember.geometry import Grid
from vision_remember.projectors import build_projector
from vision_remember.refusion import Backbones, build_refusion

PATCHES = Grid(24, 24)  # CLIP-L/14 at 336 px
PAPER = Backbones(  # CLIP-L/14 and Qwen2-1.5B
    feature_width=1024,
    encoder_layers=24,
    text_width=1536,
    decoder_layers=28,
    num_heads=12,
    num_kv_heads=2,
    head_width=128,
)


def projectors() -> list[dict]:
    """Name, one line, tokens and parameters of every projector."""
    found = []
    for name in plugins.names("projectors"):
        with torch.device("meta"):
            projector: Any = build_projector(name, feature_width=PAPER.feature_width, text_width=PAPER.text_width)
        tokens = projector.tokens_out(PATCHES).num_cells
        found.append(
            {"name": name, "about": _about("projectors", name), "tokens": tokens, "parameters": _count(projector)}
        )
    return found


def refusions() -> list[dict]:
    """Name, one line, insertions and parameters of every re-fusion method."""
    found = []
    for name in plugins.names("refusion"):
        with torch.device("meta"):
            refusion = build_refusion({"type": name}, PAPER)
            parts = [refusion, *(refusion.insertion(layer) for layer in refusion.layers)]
        parameters = sum(_count(part) for part in parts)
        found.append(
            {"name": name, "about": _about("refusion", name), "layers": [*refusion.layers], "parameters": parameters}
        )
    return found


def _about(room: str, name: str) -> str:
    return (plugins.load(room, name).__doc__ or "").strip().split("\n")[0]


def _count(module: nn.Module) -> int:
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
