"""Ways of calling `generate` that would answer wrongly without a word, refused by name for every re-fusion method.

What only methods that drop tokens cannot do is in `shortening.py`.
"""

from typing import Any

from torch import Tensor


def check_padding(attention_mask: Tensor | None) -> None:
    """Refuse prompts that end in padding: the first new token would continue the padding.

    Args:
        attention_mask: long[B, T] of the prompts; anything else passes.

    Raises:
        ValueError: Names the first such row.
    """
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 and not attention_mask[:, -1].all():
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"prompt {row} of {len(attention_mask)} is padded on the right, and generation continues on the right; pad on the left, as the "
            "processor does"
        )


def check_assistant(generation_config: Any, assistant: Any | None) -> None:
    """Refuse assistants that would have to see the images: `generate` gives them none, or those of another projector.

    Args:
        generation_config: The resolved `GenerationConfig`.
        assistant: The `assistant_model` of this call.

    Raises:
        ValueError: Names the assistant and what to use instead.
    """
    cure = "assist with a causal LM of the same tokenizer, or with prompt_lookup_num_tokens"
    if assistant is not None and "image" in assistant.input_modalities:
        raise ValueError(f"assistant_model {type(assistant).__name__} would guess without the images; {cure}")
    if generation_config.assistant_early_exit is not None:
        raise ValueError(f"assistant_early_exit would cut the decoder where it has yet to remember; {cure}")
