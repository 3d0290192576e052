"""Local attention on torch's fused kernels: one short attention per window.

The heads that share a key head become the query rows of one attention, so grouped keys are never repeated.
"""

import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, bias: Tensor | None) -> tuple[Tensor, None]:
    """Same numbers as the reference; the weights never exist. See the room's ``attend``."""
    num_kv_heads = k.shape[2]
    q = q.unflatten(1, (num_kv_heads, -1))  # [N, Hkv, H / Hkv, K]
    mask = valid[:, None, None, :]
    if bias is not None:
        mask = bias.masked_fill(~valid[:, None, :], float("-inf")).unflatten(1, (num_kv_heads, -1))
    out = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return out.flatten(1, 2), None
