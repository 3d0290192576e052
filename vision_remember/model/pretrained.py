"""What the model with and without its LM head share: how they are loaded, and what they tell `transformers` that they can do.

Source: layout and names follow transformers/models/llava_next/modeling_llava_next.py.
"""

from typing import Any

from transformers import PreTrainedModel

from vision_remember.model.configuration import VisionRememberConfig
from vision_remember.model.quantization import sparing_our_modules


class VisionRememberPreTrainedModel(PreTrainedModel):
    """Loading and saving. Weights that are missing, left over or of another shape are an error, never a warning."""

    config: VisionRememberConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, quantization_config: Any = None, **kwargs):
        """Load a saved model from safetensors.

        Args:
            *args: As `transformers` takes them.
            output_loading_info: Also return what was found in the files.
            quantization_config: Of `transformers`; re-fusion, projector and head keep the dtype of the model (`quantization.py`).
            **kwargs: As `transformers` takes them.

        Raises:
            ValueError: The weights do not belong to the config; names the first parameter at fault.
        """
        kwargs.setdefault("use_safetensors", True)
        if quantization_config is not None:
            kwargs["quantization_config"] = sparing_our_modules(quantization_config)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, info[fault])):
                raise ValueError(
                    f"{len(names)} {fault.replace('_', ' ')} in the weights, first {names[0]}; config and weights belong to "
                    "different models"
                )
        return (model, info) if output_loading_info else model
