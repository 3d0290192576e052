"""No re-fusion: the baseline that every method is measured against. No parameters, no insertions, nothing to remember."""

from dataclasses import dataclass

from torch import nn

from vision_remember.refusion import Backbones


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


class NoRefusion(nn.Module):
    """A method that acts after no layer, so the model asks it for nothing else."""

    layers: tuple[int, ...] = ()
    levels: tuple[int, ...] = ()
    views: tuple[str, ...] = ()
    needs_whole_images = False

    def __init__(self, config: Config, backbones: Backbones) -> None:
        super().__init__()


Refusion = NoRefusion
