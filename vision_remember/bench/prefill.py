"""What compressing saves and remembering costs in time: a model whose images are all their patches, one that pools four of them into a
token, and the latter with three insertions of `remember`, measured in turns.

Their weights are equal and random: what a layer costs does not depend on what it has learned. In each round all read one page and a
question until the first answer token can be chosen (prefill, the encoder included) and then decode, the order changing from
round to round; a ratio is taken inside each round, so whatever else the machine does falls on all of them, and the median over rounds is
reported with the middle half of them.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision_remember.model import VisionRememberConfig, VisionRememberForConditionalGeneration
from vision_remember.model.clock import now
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


_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_QWEN2 = {"vocab_size": 151936, "num_key_value_heads": 2, "tie_word_embeddings": True}
SIZES = {
    "tiny": Size(
        name="tiny",
        vision={
            **_CLIP_L,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
        },
        text={
            **_QWEN2,
            "vocab_size": 300,
            "hidden_size": 28,
            "intermediate_size": 64,
            "num_hidden_layers": 6,
            "num_attention_heads": 14,
        },
    ),
    "0.5b": Size(
        name="CLIP-L/14-336 + Qwen2-0.5B",
        vision=_CLIP_L,
        text={
            **_QWEN2,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
        },
    ),
    "2b": Size(
        name="CLIP-L/14-336 + Qwen2-1.5B",
        vision=_CLIP_L,
        text={
            **_QWEN2,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
        },
    ),
}
MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "uncompressed": {"projector": {"type": "mlp"}, "refusion": {"type": "none"}},
    "none": {"projector": {"type": "avg_pool", "scale": 2}, "refusion": {"type": "none"}},
    "remember": {"projector": {"type": "avg_pool", "scale": 2}, "refusion": {"type": "remember"}},
}


def measure(size: Size, *, rounds: int, batch: int = 1) -> dict[str, Any]:
    """Times the models of `MODELS`, on the first GPU in bfloat16 if there is one, else on the CPU in float32.

    Args:
        size: of the backbones.
        rounds: measured ones, after 2 that are thrown away.
        batch: pages read at once, each with its question.

    Returns:
        Milliseconds of a batch and ratios (remember / none, remember / uncompressed; decode in tokens a second), as JSON can hold them.

    Raises:
        ValueError: no round, or no page.
    """
    if rounds < 2 or batch < 1:
        raise ValueError(f"{rounds} rounds of {batch} pages: take at least 2 rounds and 1 page")
    models = build(size, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    inputs = {name: _inputs(model, batch) for name, model in models.items()}
    for number in range(WARM_UP + rounds):
        for name in sorted(models, reverse=bool(number % 2)):
            one = _timed(models[name], inputs[name])
            if number >= WARM_UP:
                seconds[name].append(one)
    ours = models["remember"]

    def ratios(other: str, stage: int) -> list[float]:
        return [mine[stage] / its[stage] for mine, its in zip(seconds["remember"], seconds[other], strict=True)]

    return {
        "size": size.name,
        "tokens": {name: model.config.token_grid.num_cells for name, model in models.items()},
        "text_tokens": NUM_TEXT_TOKENS,
        "batch": batch,
        "layers": list(ours.model.refusion.layers),
        "rounds": rounds,
        "new_tokens": NEW_TOKENS,
        "device": torch.cuda.get_device_name() if ours.device.type == "cuda" else "CPU",
        "dtype": str(ours.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prefill_ms": {name: 1000 * statistics.median(pre for pre, _ in times) for name, times in seconds.items()},
        "decode_tokens_per_second": {
            name: batch * NEW_TOKENS / statistics.median(dec for _, dec in times) for name, times in seconds.items()
        },
        "prefill_ratio": _spread(ratios("none", 0)),
        "decode_ratio": _spread([1 / ratio for ratio in ratios("none", 1)]),
        "uncompressed_prefill_ratio": _spread(ratios("uncompressed", 0)),
        "uncompressed_decode_ratio": _spread([1 / ratio for ratio in ratios("uncompressed", 1)]),
        "bars": {"prefill_ratio": PREFILL_BAR, "decode_ratio": DECODE_BAR},
    }


def build(size: Size, device: torch.device) -> dict[str, VisionRememberForConditionalGeneration]:
    """The models of `MODELS`, which share the weights of what they have in common: in bfloat16 on a GPU, else in float32."""
    torch.manual_seed(0)
    with device:
        models = {
            name: VisionRememberForConditionalGeneration(_config(size, **parts)) for name, parts in MODELS.items()
        }
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = models["remember"].to(device, dtype).state_dict()
    for name in ("uncompressed", "none"):
        own = models[name].state_dict()
        models[name].load_state_dict({key: weights.get(key, own[key]) for key in own}, assign=True)
        models[name].to(device, dtype)
    return {name: model.eval() for name, model in models.items()}


def text_lines(found: dict[str, Any]) -> list[str]:
    """What :func:`measure` found, for people."""
    tokens, prefill, decode = found["tokens"], found["prefill_ms"], found["decode_tokens_per_second"]
    head = (
        f"{found['size']} on {found['device']} in {found['dtype']}, {found['batch']} x {found['text_tokens']} text tokens and an image, "
        f"remember after layers {found['layers']}; {found['rounds']} rounds, {found['threads']} threads"
    )
    rows = [
        f"{name:<13}{tokens[name]:>4} tokens   prefill {prefill[name]:8.1f} ms   decode {decode[name]:8.1f} tokens/s"
        for name in tokens
    ]
    return [
        head,
        *rows,
        f"remember / none           prefill {_ratio(found, 'prefill', 'at most')}; decode {_ratio(found, 'decode', 'at least')}",
        f"remember / uncompressed   prefill {_middle(found['uncompressed_prefill_ratio'])}; "
        f"decode {_middle(found['uncompressed_decode_ratio'])}",
    ]


def _ratio(found: dict[str, Any], what: str, bound: str) -> str:
    return f"{_middle(found[f'{what}_ratio'])}, bar: {bound} {found['bars'][f'{what}_ratio']}"


def _middle(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.4f} [{ratio['quarter']:.4f} to {ratio['three_quarters']:.4f}]"


def _spread(ratios: list[float]) -> dict[str, float]:
    quarter, median, three_quarters = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": median, "quarter": quarter, "three_quarters": three_quarters}


def _config(size: Size, *, projector: dict[str, Any], refusion: dict[str, Any]) -> VisionRememberConfig:
    last = size.text["vocab_size"] - 1
    return VisionRememberConfig(
        vision_config={"model_type": "clip_vision_model", **size.vision},
        text_config={"model_type": "qwen2", **size.text},
        projector=projector,
        refusion=refusion,
        image_token_id=last,
        turn_start_token_id=last - 1,
        turn_end_token_id=last - 2,
    )


def _inputs(model: VisionRememberForConditionalGeneration, batch: int) -> dict[str, Tensor]:
    pixels = torch.randn(batch, *model.config.pixel_shape, generator=torch.Generator().manual_seed(0))
    ids = prompt_ids(model.config, NUM_TEXT_TOKENS).expand(batch, -1)
    return {"input_ids": ids.to(model.device), "pixel_values": pixels.to(model.device, model.dtype)}


@torch.inference_mode()
def _timed(model: VisionRememberForConditionalGeneration, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Seconds of the prefill, and of the tokens decoded after it; always as many, whatever they say."""
    found: list[Any] = []
    prefill = _seconds(model.device, lambda: found.append(model(**inputs, use_cache=True, logits_to_keep=1)))
    token, cache = inputs["input_ids"].new_zeros(len(inputs["input_ids"]), 1), found[0].past_key_values

    def decode() -> None:
        for _ in range(NEW_TOKENS):
            model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return prefill, _seconds(model.device, decode)


def _seconds(device: torch.device, call: Callable[[], Any]) -> float:
    start = now(device)
    call()
    return now(device) - start
