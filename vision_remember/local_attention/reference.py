"""Local attention, written plainly: the meaning that every faster back end is compared with."""

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over its own window, in float32 or better; see the room's ``attend``."""
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    group = q.shape[1] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)  # [N, W, H, K]
    scores = torch.einsum("nhk,nwhk->nhw", q, k) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~valid[:, None, :], -torch.inf).softmax(dim=-1)
    return torch.einsum("nhw,nwhk->nhk", weights, v).to(dtype), weights.to(dtype)
