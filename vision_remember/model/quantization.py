"""Quantised backbones around modules that keep their dtype.

Projector and re-fusion are a few per cent of the weights and carry what compression would lose, so they are never quantised: their names
are added to whatever a `quantization_config` of `transformers` is told to leave alone.
"""

import copy
from typing import Any

SPARED = (
    r".*\.refusion",
    r".*\.refusion_before",
    r".*multi_modal_projector",
)  # regular expressions from the start of a name
SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert")  # what bitsandbytes and all others call the list


def sparing_our_modules(quantization_config: Any) -> Any:
    """A copy of a quantisation config that leaves projector and re-fusion alone.

    Args:
        quantization_config: A config object of `transformers`, or its dict. Without a list of its own, the head is left alone too, as
            `transformers` does by default.

    Raises:
        ValueError: The method has no list of modules to leave alone.
    """
    is_dict = isinstance(quantization_config, dict)
    quantization_config = copy.deepcopy(quantization_config)
    fields = quantization_config if is_dict else vars(quantization_config)
    names = [name for name in SKIP_LISTS if name in fields]
    if is_dict and not names:
        is_bnb = str(fields.get("quant_method", "")).endswith("bitsandbytes") or any(
            "load_in_" in key for key in fields
        )
        names = [SKIP_LISTS[0] if is_bnb else SKIP_LISTS[1]]
    if not names:
        raise ValueError(
            f"{type(quantization_config).__name__} cannot be told to leave the re-fusion and the projector alone; quantise with a method "
            f"that has {' or '.join(SKIP_LISTS)}, or quantise the language model before joining the backbones"
        )
    given = fields[names[0]] if fields.get(names[0]) is not None else ["lm_head"]
    fields[names[0]] = [*given, *(name for name in SPARED if name not in given)]
    return quantization_config
