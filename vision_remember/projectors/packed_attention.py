"""The projections of multi-head attention with queries, keys and values packed in one matrix, as ``nn.MultiheadAttention``.

The weights keep the names, shapes and start values of the originals that were trained with it; how the heads then attend
is up to their user.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class PackedProjections(nn.Module):
    """From three inputs of width E to heads, and from heads back to width E."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"a width of {width} cannot be shared by {num_heads} heads; set num_heads to a divisor")
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.trunc_normal_(self.out_proj.weight, std=0.02)
        nn.init.zeros_(self.out_proj.bias)

    def heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """The three inputs, each ``float[..., E]`` with its own leading dimensions, as heads ``[..., H, K]``."""
        weights, biases = self.in_proj.weight.chunk(3), self.in_proj.bias.chunk(3)
        return [
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1))
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def join(self, heads: Tensor) -> Tensor:
        """From what the heads saw, ``[..., H, K]``, to ``float[..., E]``."""
        return self.out_proj(heads.flatten(-2))
