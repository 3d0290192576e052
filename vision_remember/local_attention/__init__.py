"""Local attention: every query attends to its own masked window. One operation, several back ends, one contract.

Used by every module in which a vision token looks at the patches of its own region.
"""

from typing import Literal

from torch import Tensor

from vision_remember.local_attention import fused, reference

BACKENDS = {"reference": reference.attend, "fused": fused.attend}


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    valid: Tensor,
    bias: Tensor | None = None,
    *,
    need_weights: bool = False,
    backend: Literal["auto", "reference", "fused"] = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of N queries, each over the W keys of its own window.

    Args:
        q: ``float[N, H, K]``.
        k: ``float[N, W, Hkv, K]``; H is a multiple of Hkv, and head h uses key head ``h // (H / Hkv)``.
        v: ``float[N, W, Hkv, K]``.
        valid: ``bool[N, W]``, False where a slot of the window is empty. A query whose window is all empty gets zeros.
        bias: ``float[N, H, W]`` added to the scores after their scaling by ``K ** -0.5``.
        need_weights: Also return the attention weights, which only the reference makes.
        backend: ``"auto"`` takes the fused path unless weights are needed.

    Returns:
        ``float[N, H, K]`` in the dtype of ``q``, and the weights ``float[N, H, W]`` or None.

    Raises:
        ValueError: For an unknown back end, weights from one that has none, or heads that do not divide.
    """
    if backend == "auto":
        # The fused kernels lose the gradient of the bias when there is no query at all (a batch of text alone).
        backend = "reference" if need_weights or len(q) == 0 else "fused"
    if backend not in BACKENDS:
        raise ValueError(f"no local attention back end {backend!r}; there are auto, {', '.join(BACKENDS)}")
    if need_weights and backend != "reference":
        raise ValueError(f"the {backend} back end has no attention weights; use backend='reference' or 'auto'")
    if q.shape[1] % k.shape[2]:
        raise ValueError(
            f"{q.shape[1]} query heads cannot share {k.shape[2]} key heads; make one a multiple of the other"
        )
    empty = ~valid.any(dim=1)[:, None]  # softmax over nothing is not a number: look at everything, then take zeros
    out, weights = BACKENDS[backend](q, k, v, valid | empty, bias)
    out = out.masked_fill(empty[:, :, None], 0.0)
    return out, None if weights is None else weights.masked_fill(empty[:, :, None], 0.0)
