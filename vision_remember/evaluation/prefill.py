"""What a page and a question cost until the first token can be chosen: time and FLOPs.

Rows are measured in turns, round by round, so that whatever else the machine does in the meantime falls on all of them alike.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from vision_remember.evaluation.tasks import Question
from vision_remember.model.clock import now
from vision_remember.model.engine import Engine
from vision_remember.model.flops import prefill_flops

WARM_UP, ROUNDS = 2, 21


def prefill_cost(
    engines: Mapping[str, Engine], question: Question, *, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Return `{"prefill_ms", "prefill_flops"}` of every engine for one prompt: encoder, projector, re-fusion and decoder.

    Args:
        engines: by row name.
        question: one page and question; every engine builds its own prompt of it beforehand.
        rounds: measured rounds, after 2 that are thrown away.
    """
    inputs = {name: _prompt(engine, question) for name, engine in engines.items()}
    names = list(engines)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = _timed(engines[name], inputs[name])
            if number >= WARM_UP:
                times[name].append(seconds)
    return {
        name: {
            "prefill_ms": 1000 * statistics.median(times[name]),
            "prefill_flops": prefill_flops(engines[name].model, inputs[name]),
        }
        for name in names
    }


def _prompt(engine: Engine, question: Question) -> dict[str, Any]:
    request = question.request()
    encoding = engine.processor.encode(request.messages, request.images, add_generation_prompt=True)
    batch = engine.processor.pad([encoding], side="left").to(engine.model.device)
    names = ("input_ids", "attention_mask", "pixel_values", "tokens_per_image")
    return {name: batch[name] for name in names if name in batch}


@torch.inference_mode()
def _timed(engine: Engine, inputs: Mapping[str, Any]) -> float:
    device = engine.model.device
    start = now(device)
    engine.model(**inputs, use_cache=True, logits_to_keep=1)
    return now(device) - start
