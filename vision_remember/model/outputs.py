"""What the model returns: the field names are those that `generate` and the Hugging Face Trainer look for."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast


@dataclass
class VisionRememberImageFeatures(BaseModelOutputWithPooling):
    """What `generate` carries from the encoder to the decoder.

    Attributes:
        pooler_output: A list with one float[V, D] per image: the vision tokens.
        deepstack_features: The memory rows of `rows.pack`, two lists with one tensor per image; None for methods without memory.
    """

    pooler_output: Any = None
    deepstack_features: Any = None


@dataclass
class VisionRememberModelOutput(BaseModelOutputWithPast):
    """Decoder output.

    Attributes:
        remember_attentions: When asked for, float[N, H, W] of every insertion in the order of the decoder layers, for the N vision
            tokens of this call.
    """

    remember_attentions: tuple[Tensor, ...] | None = None


@dataclass
class VisionRememberCausalLMOutput(CausalLMOutputWithPast):
    """Loss, logits float[B, T, vocabulary] and, when asked for, `remember_attentions` as in `VisionRememberModelOutput`."""

    remember_attentions: tuple[Tensor, ...] | None = None
