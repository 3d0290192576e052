"""No re-fusion: the baseline that every method is measured against. No layers, no parameters, nothing to remember."""

from dataclasses import dataclass

from vision_remember.plugins import Origin
from vision_remember.refusion import Method

ORIGIN = Origin()


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


class NoRefusion(Method):
    """A method that acts after no layer, so the model asks it for nothing else."""


Refusion = NoRefusion
