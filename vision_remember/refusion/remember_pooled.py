"""Vision Remember without the detail: a control with all its parameters, whose windows hold nothing but their own mean.

A row that remembers has more trained weights than one without re-fusion. What this control gains is what those weights are worth;
what Vision Remember gains beyond it comes from looking at single patches.

It has exactly as many parameters, but where all patches of a window are equal, queries, keys and places cannot matter: they stay idle.
``ffn_ratio=3.0`` makes up for them in the feed-forward branch (to 0.3 % at the width of the tiny recipes), so that as many work as in
Vision Remember. Our own control, from no paper.
"""

from vision_remember.geometry import Grid, VisionFeatures
from vision_remember.plugins import Origin
from vision_remember.refusion import Memory
from vision_remember.refusion.remember import Config, VisionRemember

__all__ = ["Config", "Refusion"]

ORIGIN = Origin()


class PooledRemember(VisionRemember):
    """Every patch of a window is replaced by the mean of the window's patches, level by level.

    Attributes:
        idle: Parts of the insertions that nothing depends on here.
    """

    idle = ("cross_attention.norm", "cross_attention.q", "cross_attention.k", "cross_attention.position")

    def memory(self, features: VisionFeatures, token_grid: Grid) -> Memory:
        """As :class:`VisionRemember`, with ``rows`` that repeat what it reads of one vector."""
        memory = self.windowed(self.normed(features), features, token_grid)
        patches = memory.rows.unflatten(2, (memory.valid.shape[2], -1))  # [B, V, W, L * C]
        share = memory.valid / memory.valid.sum(dim=2, keepdim=True).clamp(min=1)
        mean = (patches * share[..., None].to(patches.dtype)).sum(dim=2, keepdim=True)
        rows = self.reader(mean).expand(-1, -1, memory.valid.shape[2], -1)
        return Memory(rows=rows.flatten(2), valid=memory.valid, place=memory.place)


Refusion = PooledRemember
