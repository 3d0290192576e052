"""What remembering costs in time: one model with three insertions of `remember` and the same model without, measured in turns.

Their weights are equal and random: what a layer costs does not depend on what it has learned. In each round both read one page and a
question until the first answer token can be chosen (prefill, the encoder included) and then decode, the order of the two changing from
round to round; a ratio is taken inside each round, so whatever else the machine does falls on both, and the median over rounds is
reported with the middle half of them.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration
from vision_remember.model.flops import prompt_ids

NUM_TEXT_TOKENS = 50
WARM_UP = 2
NEW_TOKENS = 16  # decoded in every round
PREFILL_BAR, DECODE_BAR = 1.05, 0.99


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shapes of the two backbones, as their configs name them."""

    name: str
    vision: dict[str, Any]
    text: dict[str, Any]


LARGEST = Size(
    name="CLIP-L/14-336 + Qwen2-0.5B",
    vision={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    text={
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
)
TINY = Size(
    name="tiny",
    vision={
        **LARGEST.vision,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    },
    text={**LARGEST.text, "vocab_size": 300, "hidden_size": 28, "intermediate_size": 64, "num_hidden_layers": 6},
)


def measure(size: Size, *, rounds: int) -> dict[str, Any]:
    """Times both models.

    Args:
        size: of the backbones.
        rounds: measured pairs, after 2 that are thrown away.

    Returns:
        Milliseconds and ratios (remember / none; decode in tokens a second), as JSON can hold them.
    """
    models = pair(size)
    generator = torch.Generator().manual_seed(0)
    config = models["none"].config
    inputs = {
        "input_ids": prompt_ids(config, NUM_TEXT_TOKENS),
        "pixel_values": torch.randn(1, *config.pixel_shape, generator=generator),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(WARM_UP + rounds):
        for name in sorted(models, reverse=bool(number % 2)):
            one = _timed(models[name], inputs)
            if number >= WARM_UP:
                seconds[name].append(one)
    both = list(zip(seconds["remember"], seconds["none"], strict=True))
    return {
        "size": size.name,
        "tokens": config.token_grid.num_cells,
        "text_tokens": NUM_TEXT_TOKENS,
        "layers": list(models["remember"].model.refusion.layers),
        "rounds": rounds,
        "new_tokens": NEW_TOKENS,
        "threads": torch.get_num_threads(),
        "prefill_ms": {name: 1000 * statistics.median(pre for pre, _ in times) for name, times in seconds.items()},
        "decode_tokens_per_second": {
            name: NEW_TOKENS / statistics.median(dec for _, dec in times) for name, times in seconds.items()
        },
        "prefill_ratio": _spread([ours[0] / theirs[0] for ours, theirs in both]),
        "decode_ratio": _spread([theirs[1] / ours[1] for ours, theirs in both]),
        "bars": {"prefill_ratio": PREFILL_BAR, "decode_ratio": DECODE_BAR},
    }


def pair(size: Size) -> dict[str, VisionRememberForConditionalGeneration]:
    """The two models, with equal weights."""
    torch.manual_seed(0)
    ours, theirs = (
        VisionRememberForConditionalGeneration(_config(size, {"type": method})).eval()
        for method in ("remember", "none")
    )
    weights = ours.state_dict()
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()})
    return {"none": theirs, "remember": ours}


def text_lines(found: dict[str, Any]) -> list[str]:
    """What :func:`measure` found, for people."""
    shape = f"{found['size']}, {found['tokens']} vision and {found['text_tokens']} text tokens, remember after layers {found['layers']}"
    prefill, decode = found["prefill_ms"], found["decode_tokens_per_second"]
    return [
        f"{shape}; {found['rounds']} rounds, {found['threads']} threads",
        f"prefill  none {prefill['none']:.1f} ms, remember {prefill['remember']:.1f} ms; {_ratio(found, 'prefill', 'at most')}",
        f"decode   none {decode['none']:.1f} tokens/s, remember {decode['remember']:.1f}; {_ratio(found, 'decode', 'at least')}",
    ]


def _ratio(found: dict[str, Any], what: str, bound: str) -> str:
    ratio = found[f"{what}_ratio"]
    middle = f"{ratio['quarter']:.4f} to {ratio['three_quarters']:.4f}"
    return f"ratio {ratio['median']:.4f} [{middle}], bar: {bound} {found['bars'][f'{what}_ratio']}"


def _spread(ratios: list[float]) -> dict[str, float]:
    quarter, median, three_quarters = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "quarter": quarter, "three_quarters": three_quarters}


def _config(size: Size, refusion: dict[str, Any]) -> VisionRememberConfig:
    last = size.text["vocab_size"] - 1
    return VisionRememberConfig(
        vision_config={"model_type": "clip_vision_model", **size.vision},
        text_config={"model_type": "qwen2", **size.text},
        projector={"type": "avg_pool", "scale": 2},
        refusion=refusion,
        image_token_id=last,
        turn_start_token_id=last - 1,
        turn_end_token_id=last - 2,
    )


@torch.inference_mode()
def _timed(model: VisionRememberForConditionalGeneration, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Seconds of the prefill, and of the tokens decoded after it; always as many, whatever they say."""
    found: list[Any] = []
    prefill = _seconds(lambda: found.append(model(**inputs, use_cache=True, logits_to_keep=1)))
    token, cache = inputs["input_ids"].new_zeros(1, 1), found[0].past_key_values

    def decode() -> None:
        for _ in range(NEW_TOKENS):
            model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return prefill, _seconds(decode)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
