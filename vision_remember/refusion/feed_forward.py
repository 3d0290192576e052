"""What stands before and after a look: an MLP that makes the memory out of encoder levels, and the feed-forward branch of a token."""

import torch.nn.functional as F
from torch import Tensor, nn


def memory_reader(width: int, out_width: int) -> nn.Sequential:
    """From the levels of a patch, one behind the other, ``float[..., width]``, to what insertions find there, ``float[..., out_width]``."""
    first, second = nn.Linear(width, out_width), nn.Linear(out_width, out_width)
    return nn.Sequential(first, nn.GELU(), second, nn.LayerNorm(out_width))


class FeedForward(nn.Module):
    """``out(gelu(up(norm(x))))``, for every token by itself."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up, self.out = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(self.norm(x))))
