"""What methods that drop tokens need from the model: who may be dropped, who decides, and the ways to generate that cannot work.

Such a method decides once, when the whole prompt is read, by what the prompt's last token looks at, and the cache keeps what it decided.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from vision_remember.refusion import Shortening


def shortening_of_chunk(
    is_placeholder: Tensor, attention_mask: Tensor | dict | None, is_answer: Tensor | None, *, has_images: bool
) -> Shortening:
    """The state of one call of the decoder.

    Args:
        is_placeholder: bool[B, T], the vision tokens.
        attention_mask: bool or long[B, T or more]; its last T columns tell tokens from padding. None: no padding.
        is_answer: bool[B, T], the tokens to be learned; None when there is nothing to learn.
        has_images: Whether any token of `is_placeholder` is True.

    Returns:
        The state. The token that asks is the last of its row, or, when training, the one before the first answer after the row's images.

    Raises:
        ValueError: The mask is not one of tokens and padding.
    """
    if isinstance(attention_mask, dict):  # ready masks, which `generate` makes for caches that it could compile
        raise ValueError(
            "a method that drops tokens shortens its cache; use the default dynamic cache, no static or sliding one"
        )
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"a method that drops tokens reads an attention_mask [B, T], got {list(attention_mask.shape)}; give the mask of the padding"
        )
    length = is_placeholder.shape[1]
    valid = torch.ones_like(is_placeholder) if attention_mask is None else attention_mask[:, -length:].bool()
    if not has_images:
        return Shortening(valid=valid)
    place = torch.arange(length, device=valid.device)
    asking = (place * valid).amax(1)
    if is_answer is not None:
        last_image = (place * is_placeholder).amax(1, keepdim=True)
        answers = is_answer & (place > last_image)
        asking = torch.where(answers.any(1), answers.long().argmax(1) - 1, asking)
    return Shortening(valid=valid, vision=is_placeholder, asking=asking.clamp(min=0))


def check_generation(mode: GenerationMode, config: Any, method: str) -> None:
    """Refuse the ways of generating in which the last token of a call is not the last of the prompt, or nothing can be kept.

    Args:
        mode: How `generate` searches.
        config: The resolved `GenerationConfig`.
        method: Name of the re-fusion method, for the message.

    Raises:
        ValueError: Names the option and what to use instead.
    """
    refused = {
        "assisted decoding": mode == GenerationMode.ASSISTED_GENERATION,
        f"prefill_chunk_size={config.prefill_chunk_size}": config.prefill_chunk_size is not None,
        "use_cache=False": config.use_cache is False,
        f"cache_implementation={config.cache_implementation!r}": config.cache_implementation
        not in (None, "dynamic", "offloaded"),
    }
    for option, is_asked_for in refused.items():
        if is_asked_for:
            raise ValueError(
                f"{method} drops vision tokens once, when it reads the whole prompt, and keeps its choice in a dynamic cache; it cannot "
                f"generate with {option}: leave that option out"
            )
